"""A replay's way to the live reader: it never passes it, and where they meet, live processors take the partition over.

1. A replay stores no event that live processors have not counted: its batch is cut at their position.
2. A batch that reaches that position is stored with the live position locked, so that both stand at the same record.
3. In that transaction the live position is marked: whoever moves it on from there counts for the replay's versions too.

So every record is counted for these versions once: before the mark by the replay, after it by live processors.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from typing import Any

import psycopg

from tidemill_contract.tables import offsets
from tidemill_processor.batch import Batch
from tidemill_processor.database import Database

ASK_SECONDS = 0.5


class Handover:
    """Compares a replay's positions with the live ones.

    Args:
        database: of the replay's processor.
        versions: what it fills, by id.
    """

    def __init__(self, database: Database, versions: Iterable[int]) -> None:
        self._schema = database.schema
        self._reader = database.reader
        self._versions = sorted(versions)
        self._asked_at = 0.0

    def cut(
        self, connection: psycopg.Connection[Any], batch: Batch, starts: Mapping[int, int]
    ) -> tuple[Batch, frozenset[int]]:
        """What of a batch may be stored, and the partitions that are handed over with it. In its transaction.

        Args:
            connection: of the transaction.
            batch: what was read.
            starts: where it begins, by partition.

        The replay's own positions are locked by then, the aggregations are not: live processors lock in this order.
        """
        # Another process of this replay may have handed over what we are reading, without a step of its position.
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
        """Partitions, handed over now, where nothing is left to read, at most every half second.

        Args:
            connection: outside a transaction.
            positions: next offset by partition, as this process last stored it, with all that it has read.
            ends: where it has met a partition's end. No record lies between its position and that, but there may be
                offsets: of transactions' markers, which a reader that began at the end stands behind.
        """

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
        """Partitions that were handed over before."""
        return frozenset(p for (p,) in connection.execute(offsets.fed(self._schema), (self._versions,)))

    def _live(
        self, connection: psycopg.Connection[Any], partitions: Iterable[int], *, lock: bool = False
    ) -> dict[int, int]:
        """Live positions in the topic that we read; partitions that live processors have not begun are left out."""
        query = offsets.live_next(self._schema, lock=lock)
        return dict(connection.execute(query, (self._reader, list(partitions))).fetchall())

    def _mark(self, connection: psycopg.Connection[Any], partitions: frozenset[int]) -> None:
        if partitions:
            values = (self._versions, sorted(partitions), self._versions)
            connection.execute(offsets.feed(self._schema), values)


class Course:
    """Which partitions a replay reads now.

    Not those that live processors have taken over, nor those where it has come to them: it waits there for half a
    second, as they may be far behind where it began.
    """

    def __init__(self) -> None:
        self._resume_at: dict[int, float] = {}

    def readable(
        self, handover: Handover, connection: psycopg.Connection[Any], partitions: frozenset[int]
    ) -> frozenset[int]:
        """Those of the partitions that may be read now."""
        now = time.monotonic()
        self._resume_at = {p: at for p, at in self._resume_at.items() if at > now}
        return partitions - handover.handed(connection) - self._resume_at.keys()

    def wait(self, partitions: Iterable[int]) -> None:
        """Leave partitions alone for a while."""
        self._resume_at |= dict.fromkeys(partitions, time.monotonic() + ASK_SECONDS)


class Pace:
    """Holds a reader to so many events a second.

    Args:
        rate: events a second; 0: as many as there are.
    """

    def __init__(self, rate: int) -> None:
        self._rate = rate
        self._free_at = time.monotonic()

    def limit(self, most: int) -> int:
        """How many events to take at once: about half a second's."""
        return min(most, max(1, self._rate // 2)) if self._rate else most

    def rest(self, events: int) -> None:
        """Wait as long as these events should have taken."""
        if self._rate:
            self._free_at = max(self._free_at, time.monotonic() - 1.0) + events / self._rate
            time.sleep(max(0.0, self._free_at - time.monotonic()))
