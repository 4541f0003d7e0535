"""The transaction that stores a batch. Windows and offsets change together, so that each event counts exactly once.

1. Lock the `_offsets` rows of the batch's partitions, in the order of partitions.
2. Check that each stored position is the start of the batch.
3. Copy the partial results into temporary tables. Store the ids of events (see `merge/dedupe`). Lock the aggregations
   in the order of ids.
4. If windows were closed since the events were aggregated, aggregate the events again.
5. Merge the windows, write dead letters, raw events and anomalies, advance the offsets, and commit.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import polars as pl
import psycopg

from tidemill_contract.duration import parse_ms
from tidemill_contract.runtime import PipelineConfig
from tidemill_contract.tables import aggregations, offsets
from tidemill_contract.tables.readers import LIVE
from tidemill_processor.batches.batch import PARTITION, Batch
from tidemill_processor.database import AggregationStore, Database
from tidemill_processor.detect.anomalies import by_rule
from tidemill_processor.detect.event_anomalies import Judged, Watcher
from tidemill_processor.merge import corrections, merging, refused
from tidemill_processor.merge.aggregate import END, PANE, Aggregated, aggregate
from tidemill_processor.merge.dedupe import Firsts, Ids, Overtaken
from tidemill_processor.merge.merging import Work
from tidemill_processor.merge.partitions import KeptEvents, Partitions
from tidemill_processor.merge.sessions import SessionMerger, aggregate_sessions
from tidemill_processor.replay import Handover
from tidemill_processor.time.observing import observed
from tidemill_processor.time.watermark import PartitionTime


class Fenced(Exception):
    """Raised if another process has advanced the positions of some partitions. Nothing was written."""

    def __init__(self, partitions: set[int]) -> None:
        super().__init__(f"another process has advanced the positions of partitions {sorted(partitions)}")
        self.partitions = partitions


class Superseded(Exception):
    """Raised if Postgres has a newer spec than this process, or if a replay was cancelled. The process must stop."""


class _Marked(Exception):
    """Raised if events also count for an aggregation version that this process does not know yet."""


@dataclass(frozen=True)
class Position:
    """The offset of the next record to read in a partition, and the epoch of the partition."""

    next_offset: int
    epoch: int


@dataclass(frozen=True)
class Change:
    """Which rows of an aggregation a commit changed. Times are epoch milliseconds."""

    aggregation: str
    rev: int
    first_pane: int
    last_pane: int


@dataclass(frozen=True)
class Committed:
    """The result of a commit.

    Attributes:
        positions: the new position of each partition.
        late: the number of late events by (aggregation, policy).
        anomalies: the number of anomalies in single events, by rule.
        handed: the partitions that a replay has handed over to live processors.
        duplicates: the number of events that were left out as duplicates.
    """

    positions: dict[int, Position]
    changes: tuple[Change, ...]
    late: dict[tuple[str, str], int]
    rows: int
    anomalies: Mapping[str, int] = field(default_factory=dict)
    handed: frozenset[int] = frozenset()
    duplicates: int = 0


@dataclass(frozen=True)
class _Offset:
    """A row of `_offsets`, with the columns in the order of the query.

    Attributes:
        last_event_at: the wall time at which events last arrived (epoch ms).
        clock_ms: the time on the server's clock (epoch ms).
        feeds: the ids of a replay's aggregation versions that also count the partition's live events.
    """

    partition: int
    next_offset: int
    epoch: int
    maximum: int | None
    suspects: list[int]
    last_event_at: int | None
    clock_ms: int
    feeds: list[int]

    @property
    def position(self) -> Position:
        return Position(self.next_offset, self.epoch)

    @property
    def time(self) -> PartitionTime:
        return PartitionTime(self.partition, self.maximum, tuple(self.suspects), self.last_event_at)


class Committer:
    """Writes batches of one pipeline over one connection."""

    def __init__(
        self,
        connection: psycopg.Connection[tuple[Any, ...]],
        database: Database,
        stores: list[AggregationStore],
        config: PipelineConfig,
    ) -> None:
        self._connection = connection
        self._database = database
        self._stores = stores
        self._config = config
        self._max_advance_ms = parse_ms(config.spec.source.event_time.max_advance)
        self._watched = {rule.aggregation for rule in config.spec.anomalies}
        self._partitions = Partitions(database)
        self._kept_events = KeptEvents(database, config, self._partitions)
        self._watcher = Watcher(database, config)
        self._ids = Ids(database, config)
        self._sessions: dict[int, SessionMerger] = {}
        self._merges: dict[int, str] = {}
        for store in stores:
            self._prepare(store)
        self._reader = database.reader
        self.handover = Handover(database, [s.id for s in stores]) if self._reader != LIVE else None
        # For each partition, `_marks` contains the ids of the versions that a replay fills. Live processors also count
        # the partition's events for these versions.
        self._marks: dict[int, frozenset[int]] = {}
        self._others: dict[int, AggregationStore] = {}

    def commit(self, batch: Batch, positions: dict[int, Position]) -> Committed:
        """Store a batch that starts at `positions`.

        Raises:
            Fenced: another process has advanced the positions of some partitions.
            Superseded: Postgres has a newer spec, or the replay of a version was cancelled.
            psycopg.DataError, psycopg.IntegrityError: Postgres refuses values of an event.
            psycopg.Error: the batch may have been committed. The positions must be read again.
        """
        while True:
            try:
                return self._commit(batch, positions)
            except _Marked:
                self._learn()
            except Overtaken:
                continue  # another processor has stored events with the same ids, so look for duplicates again

    def _commit(self, batch: Batch, positions: dict[int, Position]) -> Committed:
        epochs = {p: position.epoch for p, position in positions.items()}
        firsts, works, kept, judged = self._ready(batch, positions, epochs)
        handed: frozenset[int] = frozenset()
        with self._connection.transaction():
            rows = self._lock_offsets(batch)  # 1
            self._check_owner(batch, positions, rows)  # 2
            if self.handover is not None:
                whole = batch
                starts = {p: position.next_offset for p, position in positions.items()}
                batch, handed = self.handover.cut(self._connection, batch, starts)
                if batch is not whole:
                    firsts = firsts.cut(batch)
                    works = self._aggregate(firsts, epochs)
            self._kept_events.store(self._connection, kept, epochs)
            self._watcher.store(self._connection, judged)
            self._copy(works)  # 3
            times = self._observed(batch, rows)
            self._ids.remember(self._connection, firsts, times)
            self._lock(works)
            self._aggregate_late(works, epochs)  # 4
            changes = self._merge(works)  # 5
            letters, late = refused.late(self._connection, self._database, batch, works)
            refused.write(self._connection, self._database, [*batch.dead, *letters], epochs)
            self._advance(batch, times, firsts.duplicates)
        moved = {p: replace(positions[p], next_offset=offset) for p, offset in batch.next_offsets.items()}
        self._watcher.keep(judged, moved)
        rows_written = sum(work.result.rows.height for work in works)
        return Committed(moved, tuple(changes), late, rows_written, by_rule(judged.anomalies), handed, firsts.left_out)

    def attempt(self, batch: Batch, positions: dict[int, Position]) -> None:
        """Try to store a batch, and roll back, to find out whether Postgres accepts the events."""
        epochs = {p: position.epoch for p, position in positions.items()}
        _, works, kept, judged = self._ready(batch, positions, epochs)
        with self._connection.transaction() as transaction:
            self._kept_events.store(self._connection, kept, epochs)
            self._watcher.store(self._connection, judged)
            self._copy(works)
            self._lock(works)
            self._aggregate_late(works, epochs)
            self._merge(works)
            raise psycopg.Rollback(transaction)

    def _ready(
        self, batch: Batch, positions: dict[int, Position], epochs: dict[int, int]
    ) -> tuple[Firsts, list[Work], pl.DataFrame | None, Judged]:
        """Leave out duplicates, and prepare what the transaction writes: partial results, raw events and anomalies."""
        further = {store.ids: self._marked(id_) for id_, store in self._others.items()}
        firsts = self._ids.look(self._connection, batch, self._stores, further)
        works = self._aggregate(firsts, epochs)
        kept = self._kept_events.prepare(self._connection, firsts.batch)
        return firsts, works, kept, self._watcher.judge(self._connection, firsts.batch, positions, epochs)

    def _marked(self, id_: int) -> list[int]:
        return [p for p, ids in self._marks.items() if id_ in ids]

    def _aggregate(self, firsts: Firsts, epochs: dict[int, int]) -> list[Work]:
        closed = self._closed()
        works = []
        for store, frame in self._fed(firsts):
            result = self._aggregate_one(frame, store, closed.get(store.id), epochs)
            works.append(Work(store, closed.get(store.id), result, frame))
            self._partitions.ensure(self._connection, store.table, store.partition_days, result.rows[PANE])
        return works

    def _fed(self, firsts: Firsts) -> list[tuple[AggregationStore, pl.DataFrame]]:
        fed = [(store, firsts.frame(store.ids)) for store in self._stores]
        for id_, store in self._others.items():
            marked = pl.col(PARTITION).is_in(self._marked(id_))
            fed.append((store, firsts.frame(store.ids).filter(marked)))
        return sorted(fed, key=lambda pair: pair[0].id)

    def _learn(self) -> None:
        own = {store.id for store in self._stores}
        wanted = set().union(*self._marks.values()) - own
        self._others = self._database.others(self._connection, wanted)
        for store in self._others.values():
            self._prepare(store)

    def _prepare(self, store: AggregationStore) -> None:
        self._connection.execute(merging.temp_table_sql(store))
        self._merges[store.id] = merging.merge_sql(self._database, store)
        if store.layout.sessions:
            self._sessions[store.id] = SessionMerger(self._database, store, merging.temp_table(store))

    def _aggregate_one(
        self, frame: pl.DataFrame, store: AggregationStore, closed_until: int | None, epochs: dict[int, int]
    ) -> Aggregated:
        sessions = self._sessions.get(store.id)
        if sessions is None:
            return aggregate(frame, store.layout, closed_until=closed_until, epochs=epochs)

        def standing(events: pl.DataFrame) -> pl.DataFrame:
            return sessions.standing(self._connection, events, store.layout.shut(closed_until) or 0)

        return aggregate_sessions(frame, store.layout, closed_until=closed_until, epochs=epochs, standing=standing)

    def _closed(self) -> dict[int, int | None]:
        query = aggregations.closed(self._database.schema)
        return dict(self._connection.execute(query).fetchall())

    def _lock_offsets(self, batch: Batch) -> dict[int, _Offset]:
        query = offsets.lock(self._database.schema, self._reader)
        rows = self._connection.execute(query, (list(batch.next_offsets),)).fetchall()
        return {row[0]: _Offset(*row) for row in rows}

    def _check_owner(self, batch: Batch, positions: dict[int, Position], rows: dict[int, _Offset]) -> None:
        fenced = {p for p in batch.next_offsets if p not in rows or rows[p].position != positions.get(p)}
        if fenced:
            raise Fenced(fenced)
        newer = self._database.newer_generation(self._connection)
        if newer is not None:
            raise Superseded(f"the schema is at generation {newer}, this processor at {self._config.generation}")
        marks = {p: frozenset(row.feeds) for p, row in rows.items() if row.feeds or p in self._marks}
        if any(self._marks.get(p, frozenset()) != ids for p, ids in marks.items()):
            self._marks |= marks
            raise _Marked

    def _copy(self, works: list[Work]) -> None:
        for work in works:
            merging.copy(self._connection, work.store, work.result.rows)

    def _lock(self, works: list[Work]) -> None:
        for work in works:
            self._connection.execute(self._database.lock(work.store.id))

    def _aggregate_late(self, works: list[Work], epochs: dict[int, int]) -> None:
        closed = self._closed()
        if gone := [work.store.table for work in works if work.store.id not in closed]:
            raise Superseded(
                f"the versions in {', '.join(gone)} are no longer counted, because their replay was cancelled"
            )
        for work in works:
            if closed.get(work.store.id) != work.closed_until or work.result.doubtful:
                work.closed_until = closed.get(work.store.id)
                work.result = self._aggregate_one(work.frame, work.store, work.closed_until, epochs)
                self._connection.execute(f"TRUNCATE pg_temp.{merging.temp_table(work.store)}")
                merging.copy(self._connection, work.store, work.result.rows)

    def _merge(self, works: list[Work]) -> list[Change]:
        changes = []
        for work in works:
            if work.result.rows.height:
                change = self._merge_one(work)
                if work.store.id not in self._others:  # clients do not read the versions of an unfinished replay
                    changes.append(change)
        return changes

    def _merge_one(self, work: Work) -> Change:
        update = aggregations.count_batch(self._database.schema)
        row = self._connection.execute(update, (work.store.id,)).fetchone()
        assert row is not None  # noqa: S101 - the row was read a moment ago
        rows = work.result.rows
        sessions = self._sessions.get(work.store.id)
        reopened = work.result.reopening > 0
        if sessions is not None:
            sessions.take_in(self._connection, rows, work.closed_until)
            if work.store.layout.reopen_ms is not None and work.closed_until is not None:
                reopened = reopened or sessions.reopened(self._connection, work.closed_until)
        merged = self._connection.execute(self._merges[work.store.id], {"rev": row[0]})
        if merging.sketched(work.store):
            merging.compact(self._connection, self._database, work.store, merged.fetchall())
        first, last = rows[PANE].min(), rows[PANE if sessions is None else END].max()
        change = Change(work.store.name, row[0], int(first), int(last))  # type: ignore[arg-type]
        if reopened:
            since = change.first_pane - work.store.layout.reach_ms
            corrections.note(
                self._connection,
                self._database,
                work.store,
                corrections.Corrected([change.rev], since, change.last_pane),
                publish=self._config.spec.results.publish,
                judge=work.store.name in self._watched,
            )
        return change

    def _observed(self, batch: Batch, rows: dict[int, _Offset]) -> dict[int, PartitionTime]:
        now_ms = max((row.clock_ms for row in rows.values()), default=0)
        return observed(batch, [row.time for row in rows.values()], self._max_advance_ms, now_ms)

    def _advance(self, batch: Batch, times: Mapping[int, PartitionTime], duplicates: Mapping[int, int]) -> None:
        invalid = batch.invalid
        values = []
        for partition, next_offset in sorted(batch.next_offsets.items()):
            time = times[partition]
            values.append((
                next_offset, time.maximum, list(time.suspects[-100:]), batch.arrived[partition],
                batch.consumed.get(partition, 0), batch.filtered.get(partition, 0), invalid.get(partition, 0),
                duplicates.get(partition, 0), partition,
            ))  # fmt: skip
        self._connection.cursor().executemany(offsets.advance(self._database.schema, self._reader), values)


def is_refusal(error: Exception) -> bool:
    """Return whether Postgres refuses a value of an event (SQLSTATE class 22, 23 or 54)."""
    return isinstance(error, psycopg.Error) and (error.sqlstate or "")[:2] in ("22", "23", "54")
