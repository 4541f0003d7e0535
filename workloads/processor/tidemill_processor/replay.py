"""Hands a replay's partitions over to the live processors when the replay has caught up.

In each partition, a replay stores only events before the live processors' position. When a batch of the replay reaches
this position, the transaction marks the partition as handed over. Live processors then also count the partition's
events for the replay's aggregation versions.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import psycopg

from tidemill_contract.tables import offsets
from tidemill_processor.batches.batch import Batch
from tidemill_processor.database import Database

CHECK_SECONDS = 0.5


@dataclass(frozen=True)
class ReplayOptions:
    """How a replay reads the topic.

    Attributes:
        start_from: where the replay starts, or an empty string to start at the spec's `startFrom`.
        rate: the maximum number of events per second, or 0 for no limit.
    """

    start_from: str = ""
    rate: int = 0


class Handover:
    """Lets live processors take over the partitions in which a replay has reached the live position."""

    def __init__(self, database: Database, versions: Iterable[int]) -> None:
        self._schema = database.schema
        self._reader = database.reader
        self._versions = sorted(versions)
        self._checked_at = 0.0

    def trim_batch(
        self, connection: psycopg.Connection[Any], batch: Batch, starts: Mapping[int, int]
    ) -> tuple[Batch, frozenset[int]]:
        """Remove the records at or after the live processors' positions. Mark the partitions that are handed over.

        Call this method in the batch's transaction, after locking the replay's positions and before locking the
        aggregations.
        """
        # Another process of the replay may already have handed some partitions over to live processors.
        already_handed_over = self.handed_over(connection) & set(batch.next_offsets)
        live_positions = self._live_positions(connection, set(batch.next_offsets) - already_handed_over)
        reached = {p for p, at in live_positions.items() if batch.next_offsets[p] >= at}
        if reached:
            live_positions |= self._live_positions(connection, reached, lock=True)
        ends = {p: max(starts[p], min(offset, live_positions.get(p, 0))) for p, offset in batch.next_offsets.items()}
        handed_over = frozenset(p for p in reached if ends[p] == live_positions[p])
        self._mark_handed_over(connection, handed_over)
        return batch.before_offsets(ends), handed_over | already_handed_over

    def hand_over_finished(
        self, connection: psycopg.Connection[Any], positions: Mapping[int, int], ends: Mapping[int, int]
    ) -> frozenset[int]:
        """Hand over the partitions that the replay has read completely, and return these partitions."""

        def is_finished(partition: int, live: int | None) -> bool:
            own = positions[partition]
            return live is not None and own <= live <= max(own, ends.get(partition, own))

        if not positions or time.monotonic() - self._checked_at < CHECK_SECONDS:
            return frozenset()
        self._checked_at = time.monotonic()
        live = self._live_positions(connection, positions)
        if not any(is_finished(p, live.get(p)) for p in positions):
            return frozenset()
        with connection.transaction():
            rows = connection.execute(offsets.lock_next(self._schema), (self._reader, list(positions)))
            own = dict(rows.fetchall())
            live = self._live_positions(connection, positions, lock=True)
            unmoved = [p for p, offset in positions.items() if own.get(p) == offset]
            handed_over = frozenset(p for p in unmoved if is_finished(p, live.get(p)))
            self._mark_handed_over(connection, handed_over)
        return handed_over

    def handed_over(self, connection: psycopg.Connection[Any]) -> frozenset[int]:
        """Return the partitions that live processors have taken over."""
        return frozenset(
            p for (p,) in connection.execute(offsets.handed_over_partitions(self._schema), (self._versions,))
        )

    def _live_positions(
        self, connection: psycopg.Connection[Any], partitions: Iterable[int], *, lock: bool = False
    ) -> dict[int, int]:
        query = offsets.live_positions(self._schema, lock=lock)
        return dict(connection.execute(query, (self._reader, list(partitions))).fetchall())

    def _mark_handed_over(self, connection: psycopg.Connection[Any], partitions: frozenset[int]) -> None:
        if partitions:
            values = (self._versions, sorted(partitions), self._versions)
            connection.execute(offsets.mark_handed_over(self._schema), values)


class ReadSchedule:
    """Decides which partitions a replay reads now."""

    def __init__(self) -> None:
        self._resume_at: dict[int, float] = {}

    def readable(
        self, handover: Handover, connection: psycopg.Connection[Any], partitions: frozenset[int]
    ) -> frozenset[int]:
        """Return the partitions that may be read now."""
        now = time.monotonic()
        self._resume_at = {p: at for p, at in self._resume_at.items() if at > now}
        return partitions - handover.handed_over(connection) - self._resume_at.keys()

    def postpone(self, partitions: Iterable[int]) -> None:
        """Stop reading `partitions` until `CHECK_SECONDS` have passed."""
        self._resume_at |= dict.fromkeys(partitions, time.monotonic() + CHECK_SECONDS)


class Throttle:
    """Limits the number of events that a replay reads per second (0 for no limit)."""

    def __init__(self, rate: int) -> None:
        self._rate = rate
        self._next_read_at = time.monotonic()

    def limit(self, maximum: int) -> int:
        """Return how many events to read now (at most `most`)."""
        return min(maximum, max(1, self._rate // 2)) if self._rate else maximum

    def sleep_after(self, events: int) -> None:
        """Sleep after reading `events` events, so that the rate does not exceed the maximum."""
        if self._rate:
            self._next_read_at = max(self._next_read_at, time.monotonic() - 1.0) + events / self._rate
            time.sleep(max(0.0, self._next_read_at - time.monotonic()))
