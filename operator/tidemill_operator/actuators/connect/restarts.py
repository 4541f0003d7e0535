"""Schedule the restarts of failed connectors, with delays that double up to a limit."""

from __future__ import annotations

import datetime as dt
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

FIRST_SECONDS = 10.0
MAX_SECONDS = 300.0
# If a connector needs no restart for _HEALTHY_SECONDS, its next delay is FIRST_SECONDS again.
_HEALTHY_SECONDS = 600.0


@dataclass
class _Attempts:
    count: int
    last_at: float
    next_at: float


class Restarts:
    """A thread-safe schedule of restarts. `clock` returns epoch seconds."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._attempts: dict[str, _Attempts] = {}
        self._lock = threading.Lock()

    def record_if_due(self, name: str) -> bool:
        """Return whether to restart a failed connector now, and record the restart."""
        now = self._clock()
        with self._lock:
            attempts = self._attempts.get(name)
            if attempts is not None and now < attempts.next_at:
                return False
            count = attempts.count + 1 if attempts else 1
            delay = min(FIRST_SECONDS * 2 ** (count - 1), MAX_SECONDS) if count < 64 else MAX_SECONDS
            self._attempts[name] = _Attempts(count, now, now + delay)
            return True

    def mark_healthy(self, name: str) -> None:
        """Record that a connector has no failures."""
        with self._lock:
            attempts = self._attempts.get(name)
            if attempts is not None and self._clock() > attempts.last_at + _HEALTHY_SECONDS:
                del self._attempts[name]

    def forget(self, name: str) -> None:
        """Forget a connector that is deleted or has a new config."""
        with self._lock:
            self._attempts.pop(name, None)

    def describe(self, name: str) -> str:
        """Return how often a connector was restarted, and when the next restart is due."""
        with self._lock:
            attempts = self._attempts.get(name)
            if attempts is None:
                return "it was not restarted yet"
            moment = dt.datetime.fromtimestamp(attempts.next_at, dt.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
            times = "once" if attempts.count == 1 else f"{attempts.count} times"
            return f"restarted {times}, again at {moment} if it still fails"
