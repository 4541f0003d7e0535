"""Servers that hang: their processes are stopped, or all that is sent to them is lost. Nobody is refused or told."""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_PIECE = 65_536


@contextlib.contextmanager
def frozen(server: Any) -> Iterator[None]:
    """A server and all its children, stopped by SIGSTOP."""
    pids = [server.pid]
    for pid in pids:
        with contextlib.suppress(OSError):
            pids += map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())
    _signal(pids, signal.SIGSTOP)
    try:
        yield
    finally:
        _signal(pids, signal.SIGCONT)


def _signal(pids: list[int], number: signal.Signals) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


class BlackHole:
    """Passes on what is sent to a port, until `open`: then connections stand, and every byte is swallowed.

    What was swallowed is lost: connections from before stay silent, new ones are served once it is shut again.
    """

    def __init__(self, port: int) -> None:
        self._target = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self._swallowing = threading.Event()
        self._peers: dict[socket.socket, socket.socket | None] = {}
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._ending = False
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> BlackHole:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ending = True
        self._thread.join()
        for ours in [self._listener, *self._peers]:
            ours.close()
        self._selector.close()

    @contextlib.contextmanager
    def open(self) -> Iterator[None]:
        """Swallow all meanwhile."""
        self._swallowing.set()
        try:
            yield
        finally:
            self._swallowing.clear()

    def _run(self) -> None:
        while not self._ending:
            for key, _ in self._selector.select(0.05):
                if key.fileobj is self._listener:
                    self._accept()
                else:
                    self._pass_on(key.fileobj)

    def _accept(self) -> None:
        client, _ = self._listener.accept()
        server: socket.socket | None = None
        if not self._swallowing.is_set():
            server = socket.create_connection(("127.0.0.1", self._target))
            self._add(server, client)
        self._add(client, server)

    def _add(self, one: socket.socket, other: socket.socket | None) -> None:
        self._peers[one] = other
        self._selector.register(one, selectors.EVENT_READ)

    def _pass_on(self, source: Any) -> None:
        try:
            piece = source.recv(_PIECE)
        except OSError:
            piece = b""
        target = self._peers[source]
        if piece and self._swallowing.is_set():
            self._peers[source] = None
            if target is not None:
                self._peers[target] = None
        elif piece and target is not None:
            with contextlib.suppress(OSError):
                target.sendall(piece)
        elif not piece:
            self._drop(source)
            if target is not None and target in self._peers:
                self._drop(target)

    def _drop(self, one: socket.socket) -> None:
        del self._peers[one]
        self._selector.unregister(one)
        one.close()
