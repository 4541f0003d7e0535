"""Connections of kafka-python to what is no broker: they end in time, told as such, and leave no socket open."""

from __future__ import annotations

import gc
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import pytest

from tidemill_operator.actuators.kafka.python_client import connected
from tidemill_operator.errors import Reason, TidemillError

SECONDS = 0.5
Answer = Callable[[socket.socket], None]
TLS = {"security.protocol": "SSL", "enable.ssl.certificate.verification": "false"}


def _closes(client: socket.socket) -> None:
    client.close()


def _is_silent(client: socket.socket) -> None:
    """As a frozen broker is: its system accepts for it."""


def _talks_otherwise(client: socket.socket) -> None:
    client.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n" * 10)


@contextmanager
def _listening(answer: Answer | None) -> Iterator[int]:
    """The port of something that answers so; None: nobody listens."""
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
        yield _free_port()
        return
    thread.start()
    try:
        yield listener.getsockname()[1]
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()
        for one in (listener, *clients):
            one.close()


def _free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


def _open_sockets() -> set[int]:
    found = [one for one in gc.get_objects() if issubclass(type(one), socket.socket)]
    return {one.fileno() for one in found if one.fileno() >= 0}


@pytest.mark.parametrize("config", [{}, TLS], ids=["plain", "tls"])
@pytest.mark.parametrize("answer", [None, _closes, _is_silent, _talks_otherwise])
def test_what_is_no_broker_is_told_in_time_and_leaves_no_socket(answer: Answer | None, config: dict[str, str]) -> None:
    """Also where a TLS handshake never ends. The garbage collector would close what is left, but nobody knows when."""
    gc.collect()
    with _listening(answer) as port:
        before, threads = _open_sockets(), threading.active_count()
        with (
            pytest.raises(TidemillError, match="does not answer") as told,
            connected({"bootstrap.servers": f"127.0.0.1:{port}", **config}, SECONDS, "looking"),
        ):
            pass
        assert told.value.reason is Reason.UNREACHABLE
        assert {fd for fd in _open_sockets() - before if _is_clients(fd, port)} == set()
        assert threading.active_count() == threads


def _is_clients(fd: int, port: int) -> bool:
    """Whether it is not one that the listener accepted."""
    one = socket.socket(fileno=fd)
    try:
        return bool(one.getsockname()[1] != port)
    finally:
        one.detach()
