"""How far the partitions are behind: where they were committed to last, against where Kafka's log ends now.

It is told by whoever looks at Kafka, also while the loop waits for Postgres. What is not known has no figure.
"""

from __future__ import annotations

import time
from collections.abc import Mapping

from tidemill_processor import metrics
from tidemill_processor.source.consumer import Source
from tidemill_processor.transaction import Position

FRESH_SECONDS = 20.0
"""After so long without the ends nobody knows how far they are away."""


class Backlog:
    """The lag of one process's partitions. `measure` and `expire` are called by one thread, the rest by others.

    Args:
        source: the topic.
        positions: of the partitions, as they were committed last; kept by the loop.
    """

    def __init__(self, source: Source, positions: Mapping[int, Position]) -> None:
        self._source, self._positions = source, positions
        self._read_to: dict[int, tuple[Position, int]] = {}
        self._lag: dict[int, int] | None = None
        self._asked_at = float("-inf")
        self._news: tuple[dict[int, int], float] | None = None

    def reached(self, partition: int, position: Position) -> int:
        """Where the next record is expected: behind transaction markers, too, if the consumer met the end there."""
        read = self._source.end_read(partition)
        if read > position.next_offset:
            self._read_to[partition] = position, read
        known, at = self._read_to.get(partition, (None, 0))
        return at if known == position else position.next_offset

    def measure(self, ends: dict[int, int], asked_at: float) -> None:
        """Kafka's log ended there, when it was asked (`time.monotonic()`)."""
        positions, lag = dict(self._positions), {}
        for partition in self._source.assigned:
            position = positions.get(partition)
            if position is not None and partition in ends:
                lag[partition] = max(0, ends[partition] - self.reached(partition, position))
        self._show(lag)
        self._asked_at, self._news = asked_at, (ends, asked_at)

    def expire(self) -> None:
        """Kafka did not say where its log ends: figures that are too old are no longer shown."""
        if time.monotonic() - self._asked_at > FRESH_SECONDS:
            self._show(None)

    def _show(self, lag: dict[int, int] | None) -> None:
        for partition in set(self._lag or ()) - set(lag or ()):
            metrics.LAG.remove(str(partition))
        for partition, behind in (lag or {}).items():
            metrics.LAG.labels(partition=str(partition)).set(behind)
        self._lag = lag

    def news(self) -> tuple[dict[int, int], float] | None:
        """The ends and when they were asked for; None: they were taken before."""
        news, self._news = self._news, None
        return news

    @property
    def events(self) -> int | None:
        """Of all partitions; None: of some it is not known, or not which ones there are."""
        lag = self._lag
        return sum(lag.values()) if lag is not None and self._source.assigned <= lag.keys() else None
