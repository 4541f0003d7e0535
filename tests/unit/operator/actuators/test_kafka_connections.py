"""Tests of connections of kafka-python to sockets of the test that are no broker: they fail in time and are closed."""

from __future__ import annotations

import gc
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import pytest

from bench import free_ports
from tidemill_operator.actuators.kafka.python_client import open_admin_client
from tidemill_operator.errors import Reason, TidemillError

SECONDS = 0.5
Answer = Callable[[socket.socket], None]
TLS = {"security.protocol": "SSL", "enable.ssl.certificate.verification": "false"}


def _closes(client: socket.socket) -> None:
    client.close()


def _is_silent(client: socket.socket) -> None:
    """Like a frozen broker, whose system still accepts connections."""


def _talks_otherwise(client: socket.socket) -> None:
    client.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n" * 10)


@contextmanager
def _listening(answer: Answer | None) -> Iterator[int]:
    """Yield the port of a server with this answer. With None, nothing listens on the port."""
    listener = socket.create_server(("127.0.0.1", 0))
    clients: list[socket.socket] = []

    def serve() -> None:
        with suppress(OSError):  # the listener is shut down at the end
            while answer is not None:
                client, _ = listener.accept()
                clients.append(client)
                with suppress(OSError):
                    answer(client)

    thread = threading.Thread(target=serve)
    if answer is None:
        listener.close()
        yield free_ports(1)[0]
        return
    thread.start()
    try:
        yield listener.getsockname()[1]
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()
        for item in (listener, *clients):
            item.close()


def _open_sockets() -> set[int]:
    sockets = [item for item in gc.get_objects() if issubclass(type(item), socket.socket)]
    return {item.fileno() for item in sockets if item.fileno() >= 0}


@pytest.mark.parametrize("config", [{}, TLS], ids=["plain", "tls"])
@pytest.mark.parametrize("answer", [None, _closes, _is_silent, _talks_otherwise])
def test_a_server_that_is_no_broker_is_an_error_in_time_without_open_sockets(
    answer: Answer | None, config: dict[str, str]
) -> None:
    """A TLS handshake that never ends fails in time too. No socket is left to the garbage collector."""
    gc.collect()
    with _listening(answer) as port:
        before, threads = _open_sockets(), threading.active_count()
        with (
            pytest.raises(TidemillError, match="does not answer") as raised,
            open_admin_client({"bootstrap.servers": f"127.0.0.1:{port}", **config}, SECONDS, "looking"),
        ):
            pass
        assert raised.value.reason is Reason.UNREACHABLE
        assert {fd for fd in _open_sockets() - before if _is_client_socket(fd, port)} == set()
        assert threading.active_count() == threads


def _is_client_socket(fd: int, port: int) -> bool:
    """Return whether the listener did not accept this socket."""
    item = socket.socket(fileno=fd)
    try:
        return bool(item.getsockname()[1] != port)
    finally:
        item.detach()
