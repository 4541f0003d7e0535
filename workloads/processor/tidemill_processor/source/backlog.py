"""The lag of each partition: the number of records from its committed position to its end in Kafka."""

from __future__ import annotations

import time
from collections.abc import Mapping

from tidemill_processor import metrics
from tidemill_processor.source.consumer import Source
from tidemill_processor.transaction import Position

FRESH_SECONDS = 20.0
"""The lag is unknown if Kafka has returned no end offsets for this many seconds."""


class Backlog:
    """The lag of one process's partitions."""

    def __init__(self, source: Source, positions: Mapping[int, Position]) -> None:
        self._source, self._positions = source, positions
        self._read_to: dict[int, tuple[Position, int]] = {}
        self._lag: dict[int, int] | None = None
        self._asked_at = float("-inf")
        self._new_ends: tuple[dict[int, int], float] | None = None

    def reached_offset(self, partition: int, position: Position) -> int:
        """Return the offset up to which a partition was read. Transaction markers at the end count as read."""
        read = self._source.last_end_reached(partition)
        if read > position.next_offset:
            self._read_to[partition] = position, read
        recorded, at = self._read_to.get(partition, (None, 0))
        return at if recorded == position else position.next_offset

    def measure(self, ends: dict[int, int], asked_at: float) -> None:
        """Update the lag with the end offsets that Kafka returned for a request at `asked_at` (monotonic seconds)."""
        positions, lag = dict(self._positions), {}
        for partition in self._source.assigned:
            position = positions.get(partition)
            if position is not None and partition in ends:
                lag[partition] = max(0, ends[partition] - self.reached_offset(partition, position))
        self._show(lag)
        self._asked_at, self._new_ends = asked_at, (ends, asked_at)

    def expire(self) -> None:
        """Set the lag to unknown if the last end offsets are older than `FRESH_SECONDS`."""
        if time.monotonic() - self._asked_at > FRESH_SECONDS:
            self._show(None)

    def _show(self, lag: dict[int, int] | None) -> None:
        for partition in set(self._lag or ()) - set(lag or ()):
            metrics.LAG.remove(str(partition))
        for partition, behind in (lag or {}).items():
            metrics.LAG.labels(partition=str(partition)).set(behind)
        self._lag = lag

    def take_new_ends(self) -> tuple[dict[int, int], float] | None:
        """Return end offsets from Kafka and the time of the request, or None if Kafka has sent no new answer."""
        ends, self._new_ends = self._new_ends, None
        return ends

    @property
    def events(self) -> int | None:
        """The total lag of the assigned partitions, or None if the lag of a partition is unknown."""
        lag = self._lag
        return sum(lag.values()) if lag is not None and self._source.assigned <= lag.keys() else None
