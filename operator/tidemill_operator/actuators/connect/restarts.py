"""Schedule the restarts of failed connectors, with delays that double up to a limit."""

from __future__ import annotations

import datetime as dt
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

FIRST_SECONDS = 10.0
MOST_SECONDS = 300.0
# If a connector needs no restart for _WELL_SECONDS, its next delay is FIRST_SECONDS again.
_WELL_SECONDS = 600.0


@dataclass
class _Tried:
    times: int
    last: float
    next: float


class Restarts:
    """A thread-safe schedule of restarts. `clock` returns epoch seconds."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._tried: dict[str, _Tried] = {}
        self._lock = threading.Lock()

    def due(self, name: str) -> bool:
        """Return whether to restart a failed connector now, and record the restart."""
        now = self._clock()
        with self._lock:
            tried = self._tried.get(name)
            if tried is not None and now < tried.next:
                return False
            times = tried.times + 1 if tried else 1
            delay = min(FIRST_SECONDS * 2 ** (times - 1), MOST_SECONDS) if times < 64 else MOST_SECONDS
            self._tried[name] = _Tried(times, now, now + delay)
            return True

    def well(self, name: str) -> None:
        """Record that a connector has no failures."""
        with self._lock:
            tried = self._tried.get(name)
            if tried is not None and self._clock() > tried.last + _WELL_SECONDS:
                del self._tried[name]

    def forget(self, name: str) -> None:
        """Forget a connector that is deleted or has a new config."""
        with self._lock:
            self._tried.pop(name, None)

    def told(self, name: str) -> str:
        """Return how often a connector was restarted, and when the next restart is due."""
        with self._lock:
            tried = self._tried.get(name)
            if tried is None:
                return "it was not restarted yet"
            moment = dt.datetime.fromtimestamp(tried.next, dt.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
            times = "once" if tried.times == 1 else f"{tried.times} times"
            return f"restarted {times}, again at {moment} if it still fails"
