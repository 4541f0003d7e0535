"""Checks that the Kubernetes watches report all changes.

If the watch event of a changed object is missing for two minutes, the liveness probe fails.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping

log = logging.getLogger(__name__)
LIMIT_SECONDS = 120.0


class Watchdog:
    """Compares the versions of listed objects with the versions that watch events have reported."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic, limit_seconds: float = LIMIT_SECONDS) -> None:
        self._clock, self._limit = clock, limit_seconds
        self._reported: dict[str, int] = {}
        self._missing: dict[str, tuple[str, int, float]] = {}
        self._lock = threading.Lock()

    def record_event(self, uid: str, version: str, *, gone: bool = False) -> None:
        """Record the version of a watch event. `gone` means that the object was deleted."""
        number = _number(version)
        with self._lock:
            if gone:
                self._reported.pop(uid, None)
                self._missing.pop(uid, None)
                return
            self._reported[uid] = max(number, self._reported.get(uid, 0))
            missing = self._missing.get(uid)
            if missing is not None and missing[1] <= self._reported[uid]:
                del self._missing[uid]

    def expect_versions(self, source: str, versions: Mapping[str, str]) -> None:
        """Record the current versions of objects, and expect an event for each version."""
        with self._lock:
            now = self._clock()
            gone = [uid for uid, missing in self._missing.items() if missing[0] == source and uid not in versions]
            for uid in gone:
                del self._missing[uid]
            for uid, version in versions.items():
                number = _number(version)
                if self._reported.get(uid, 0) < number and uid not in self._missing:
                    self._missing[uid] = (source, number, now)

    @property
    def alive(self) -> bool:
        """Whether all expected events have arrived in time."""
        with self._lock:
            oldest = min((since for _, _, since in self._missing.values()), default=None)
            silent_seconds = 0.0 if oldest is None else self._clock() - oldest
        if silent_seconds > self._limit:
            log.error("changes were not seen for %.0f s: the watch no longer works", silent_seconds)
        return silent_seconds <= self._limit


def _number(version: str) -> int:
    """Return a resource version as a number, or 0 if it is not a number."""
    return int(version) if version.isascii() and version.isdigit() else 0
