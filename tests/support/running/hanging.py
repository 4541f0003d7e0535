"""Servers that hang: their processes are stopped, or all that is sent to them is lost. Nobody is refused or told."""

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
    """A server and all its children, stopped by SIGSTOP."""
    with stopped([server.pid, *descendants(server.pid)]):
        yield


@contextlib.contextmanager
def stopped(pids: Sequence[int]) -> Iterator[None]:
    """Processes, stopped by SIGSTOP."""
    send_signal(pids, signal.SIGSTOP)
    try:
        yield
    finally:
        send_signal(pids, signal.SIGCONT)


def send_signal(pids: Sequence[int], number: signal.Signals) -> None:
    """Send a signal to processes; those that have ended are left out."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


class BlackHole:
    """A proxy of a port that passes all on, until `open`: then every byte is swallowed.

    What was swallowed is lost: connections from before stay silent, new ones are served once it is shut again.

    Attributes:
        port: where it listens.
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
        """Swallow all meanwhile."""
        self._proxy.swallows = True
        try:
            yield
        finally:
            self._proxy.swallows = False
