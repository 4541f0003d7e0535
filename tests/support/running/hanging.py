"""Servers that do not answer: their processes are stopped, or a proxy drops all bytes. Connections are not refused."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator, Sequence
from typing import Any

from faults.proxy import Proxies
from tidemill_operator.processes.child import descendants


@contextlib.contextmanager
def frozen(server: Any) -> Iterator[None]:
    """Stop a server and all its child processes by SIGSTOP during the block."""
    with stopped([server.pid, *descendants(server.pid)]):
        yield


@contextlib.contextmanager
def stopped(pids: Sequence[int]) -> Iterator[None]:
    """Stop processes by SIGSTOP during the block."""
    send_signal(pids, signal.SIGSTOP)
    try:
        yield
    finally:
        send_signal(pids, signal.SIGCONT)


def send_signal(pids: Sequence[int], number: signal.Signals) -> None:
    """Send a signal to processes; ignore processes that have ended."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


class BlackHole:
    """A proxy of a port that forwards all bytes, and drops them during `open`.

    Dropped bytes are lost. After `open`, connections from before get no answer, and new connections work.

    Attributes:
        port: the port of the proxy.
    """

    def __init__(self, target: int) -> None:
        self._proxies = Proxies()
        self._proxy = self._proxies.open(target)
        self.port = self._proxy.port

    def __enter__(self) -> BlackHole:
        return self

    def __exit__(self, *_: object) -> None:
        self._proxies.close()

    @contextlib.contextmanager
    def open(self) -> Iterator[None]:
        """Drop all bytes during the block."""
        self._proxy.swallows = True
        try:
            yield
        finally:
            self._proxy.swallows = False
