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

ASK_SECONDS = 0.5


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
        self._asked_at = 0.0

    def cut(
        self, connection: psycopg.Connection[Any], batch: Batch, starts: Mapping[int, int]
    ) -> tuple[Batch, frozenset[int]]:
        """Remove the records at or after the live processors' positions. Mark the partitions that are handed over.

        Call this method in the batch's transaction, after locking the replay's positions and before locking the
        aggregations.
        """
        # Another process of the replay may already have handed some partitions over to live processors.
        left = self.handed(connection) & set(batch.next_offsets)
        live = self._live(connection, set(batch.next_offsets) - left)
        reached = {p for p, at in live.items() if batch.next_offsets[p] >= at}
        if reached:
            live |= self._live(connection, reached, lock=True)
        ends = {p: max(starts[p], min(offset, live.get(p, 0))) for p, offset in batch.next_offsets.items()}
        met = frozenset(p for p in reached if ends[p] == live[p])
        self._mark(connection, met)
        return batch.until(ends), met | left

    def meet(
        self, connection: psycopg.Connection[Any], positions: Mapping[int, int], ends: Mapping[int, int]
    ) -> frozenset[int]:
        """Hand over the partitions that the replay has read completely, and return these partitions."""

        def meets(partition: int, live: int | None) -> bool:
            own = positions[partition]
            return live is not None and own <= live <= max(own, ends.get(partition, own))

        if not positions or time.monotonic() - self._asked_at < ASK_SECONDS:
            return frozenset()
        self._asked_at = time.monotonic()
        live = self._live(connection, positions)
        if not any(meets(p, live.get(p)) for p in positions):
            return frozenset()
        with connection.transaction():
            rows = connection.execute(offsets.lock_next(self._schema), (self._reader, list(positions)))
            own = dict(rows.fetchall())
            live = self._live(connection, positions, lock=True)
            met = frozenset(p for p, offset in positions.items() if own.get(p) == offset and meets(p, live.get(p)))
            self._mark(connection, met)
        return met

    def handed(self, connection: psycopg.Connection[Any]) -> frozenset[int]:
        """Return the partitions that live processors have taken over."""
        return frozenset(p for (p,) in connection.execute(offsets.fed(self._schema), (self._versions,)))

    def _live(
        self, connection: psycopg.Connection[Any], partitions: Iterable[int], *, lock: bool = False
    ) -> dict[int, int]:
        query = offsets.live_next(self._schema, lock=lock)
        return dict(connection.execute(query, (self._reader, list(partitions))).fetchall())

    def _mark(self, connection: psycopg.Connection[Any], partitions: frozenset[int]) -> None:
        if partitions:
            values = (self._versions, sorted(partitions), self._versions)
            connection.execute(offsets.feed(self._schema), values)


class Course:
    """Decides which partitions a replay reads now."""

    def __init__(self) -> None:
        self._resume_at: dict[int, float] = {}

    def readable(
        self, handover: Handover, connection: psycopg.Connection[Any], partitions: frozenset[int]
    ) -> frozenset[int]:
        """Return the partitions that may be read now."""
        now = time.monotonic()
        self._resume_at = {p: at for p, at in self._resume_at.items() if at > now}
        return partitions - handover.handed(connection) - self._resume_at.keys()

    def wait(self, partitions: Iterable[int]) -> None:
        """Stop reading `partitions` until `ASK_SECONDS` have passed."""
        self._resume_at |= dict.fromkeys(partitions, time.monotonic() + ASK_SECONDS)


class Pace:
    """Limits the number of events that a replay reads per second (0 for no limit)."""

    def __init__(self, rate: int) -> None:
        self._rate = rate
        self._free_at = time.monotonic()

    def limit(self, most: int) -> int:
        """Return how many events to read now (at most `most`)."""
        return min(most, max(1, self._rate // 2)) if self._rate else most

    def rest(self, events: int) -> None:
        """Sleep after reading `events` events, so that the rate does not exceed the maximum."""
        if self._rate:
            self._free_at = max(self._free_at, time.monotonic() - 1.0) + events / self._rate
            time.sleep(max(0.0, self._free_at - time.monotonic()))
