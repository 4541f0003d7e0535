"""What the runs of faults hold against what was said; their proxy."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from faults import truth
from faults.proxy import Proxies, Proxy

# Events are counted until 10, then not (and from 20 to 30 that cannot be seen), and again from 40 on.
COUNTED: list[tuple[float, Any]] = [
    *((float(at), at) for at in range(11)),
    *((float(at), 10) for at in range(11, 20)),
    *((float(at), None) for at in range(20, 30)),
    *((float(at), 10) for at in range(30, 40)),
    *((float(at), at) for at in range(40, 61)),
]


def test_a_stall_is_where_nothing_was_counted_or_nobody_knows() -> None:
    assert truth.stalls(COUNTED, 0, 60) == [(10.0, 40.0)]
    assert truth.moving(COUNTED, 0, 60) == [(0, 10.0), (40.0, 60)]


def test_a_stall_lasts_until_the_end_if_nothing_moves_again() -> None:
    assert truth.stalls(COUNTED[:35], 5, 35) == [(10.0, 35)]


@pytest.mark.parametrize(
    ("said", "expected", "reason"),
    [
        ([(float(at), "well") for at in range(60)], 30.0, "all along"),
        ([(float(at), "well" if at < 25 else "ill") for at in range(60)], 14.0, "from 10 to 24"),
        ([(float(at), "ill" if 15 < at < 20 else "well") for at in range(60)], 20.0, "again after it was not"),
        ([(float(at), "ill") for at in range(60)], 0.0, "never"),
    ],
)
def test_how_long_it_was_called_well_in_a_stall(said: list[tuple[float, Any]], expected: float, reason: str) -> None:
    assert truth.longest(said, [(10.0, 40.0)], lambda what: what == "well") == expected, reason


def test_a_figure_is_old_while_it_does_not_change() -> None:
    said = [(float(at), min(at, 20)) for at in range(41)]
    assert truth.unchanged(said, [(10.0, 40.0)], lambda what: what is not None) == 20.0
    assert truth.unchanged([(at, None) for at, _ in said], [(10.0, 40.0)], lambda what: what is not None) == 0.0


def test_when_something_was_said_first() -> None:
    said = [(1.0, "a"), (2.0, "b"), (3.0, "b")]
    assert truth.first(said, 0.5, 9, lambda what: what == "b") == 1.5
    assert truth.first(said, 0.5, 9, lambda what: what == "c") is None


@pytest.fixture
def echo() -> Iterator[int]:
    """A server that sends back what it gets."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve(peer: socket.socket) -> None:
        with peer:
            while piece := peer.recv(65_536):
                peer.sendall(piece)

    def accept() -> None:
        while True:
            try:
                peer, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=serve, args=(peer,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    yield int(listener.getsockname()[1])
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()


@pytest.fixture
def proxy(echo: int) -> Iterator[Proxy]:
    proxies = Proxies()
    yield proxies.open(echo)
    proxies.close()


def ask(peer: socket.socket, text: bytes) -> bytes:
    peer.sendall(text)
    got = b""
    while len(got) < len(text):
        got += peer.recv(65_536)
    return got


def connected(proxy: Proxy) -> socket.socket:
    return socket.create_connection(("127.0.0.1", proxy.port), timeout=2)


def test_a_proxy_passes_on_in_order(proxy: Proxy) -> None:
    with connected(proxy) as peer:
        text = bytes(range(256)) * 4_000
        threading.Thread(target=peer.sendall, args=(text,), daemon=True).start()
        got = b""
        while len(got) < len(text):
            got += peer.recv(65_536)
        assert got == text


def test_what_a_black_hole_took_is_lost_and_the_connection_silent(proxy: Proxy) -> None:
    """Nobody is refused; connections that come later are served."""
    with connected(proxy) as before, connected(proxy) as other:
        assert ask(before, b"a") == b"a"
        proxy.swallows = True
        before.sendall(b"b")
        during = connected(proxy)
        during.sendall(b"c")
        for silent in (before, during):
            with pytest.raises(TimeoutError):
                silent.recv(1)
        proxy.swallows = False
        with connected(proxy) as after:
            assert ask(after, b"d") == b"d"
        assert ask(other, b"e") == b"e"
        for silent in (before, during):
            silent.sendall(b"f")
            with pytest.raises(TimeoutError):
                silent.recv(1)
        during.close()


def test_a_slow_proxy_holds_up_each_piece(proxy: Proxy) -> None:
    proxy.delay_seconds = 0.2
    with connected(proxy) as peer:
        began = time.monotonic()
        assert ask(peer, b"a") == b"a"
        assert 0.4 <= time.monotonic() - began < 2


def test_a_proxy_of_nobody_closes(echo: int) -> None:
    """As a server that was killed."""
    with socket.create_server(("127.0.0.1", 0)) as nobody:
        port = int(nobody.getsockname()[1])
    proxies = Proxies()
    try:
        with connected(proxies.open(port)) as peer:
            assert peer.recv(1) == b""
    finally:
        proxies.close()
