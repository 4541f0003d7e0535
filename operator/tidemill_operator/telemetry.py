"""Lag and freshness for a resource's status: now and then only and in coarse steps, as each change is a write.

Exact values are the workloads' own metrics.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from tidemill_operator.actuators.backlog import Backlog
from tidemill_operator.errors import TidemillError
from tidemill_operator.queue import Key

log = logging.getLogger(__name__)
INTERVAL_SECONDS = 60.0
_NAMES = ("lag", "freshnessSeconds")
_STEPS = (1.0, 2.0, 5.0, 10.0)


class Telemetry:
    """The last figures of each pipeline; safe to share between threads.

    Args:
        read: schema and source topic → backlog.
        clock: seconds that only grow.
    """

    def __init__(
        self,
        read: Callable[[str, str], Backlog],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._read, self._clock = read, clock
        self._read_at: dict[Key, float] = {}
        self._lock = threading.Lock()

    def figures(self, key: Key, status: Mapping[str, Any], previous: Mapping[str, Any]) -> dict[str, Any]:
        """What the status is to say now: the figures before, or newer ones if it is time for them.

        Args:
            key: the pipeline.
            status: of this pass; names schema and topics, once there are some.
            previous: the status that stands in the cluster.
        """
        before = {name: previous[name] for name in _NAMES if name in previous}
        topics, schema = status.get("topics"), status.get("schema")
        if not topics or not schema or not self._is_time(key):
            return before
        try:
            found = self._read(schema, topics[0]["name"])
        except TidemillError as error:
            log.info("%s: no figures: %s", key, error)
            return before
        figures: dict[str, Any] = {"lag": coarse_count(found.lag)}
        if found.freshness_seconds is not None:
            figures["freshnessSeconds"] = coarse_seconds(found.freshness_seconds)
        return before | figures

    def forget(self, key: Key) -> None:
        """A pipeline is gone."""
        with self._lock:
            self._read_at.pop(key, None)

    def _is_time(self, key: Key) -> bool:
        with self._lock:
            now = self._clock()
            if now - self._read_at.get(key, -math.inf) < INTERVAL_SECONDS:
                return False
            self._read_at[key] = now
            return True


def coarse_count(count: int) -> int:
    """A count to two digits, e.g. 12,345 → 12,000."""
    return int(float(f"{count:.1e}")) if count > 99 else count


def coarse_seconds(seconds: float) -> float:
    """A duration rounded up to 1, 2 or 5 times a power of ten, at least a second."""
    if seconds <= 1.0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(seconds))
    return float(next(step * power for step in _STEPS if seconds <= step * power * (1 + 1e-9)))
