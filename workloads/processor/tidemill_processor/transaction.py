"""The transaction that makes each event count once: rows and offsets move together, or not at all.

1. Lock the `_offsets` rows of the batch's partitions, in partition order.
2. Each must still be where this process left it: else a newer owner has it (`Fenced`).
3. COPY the partials into temporary tables, then take the aggregations' locks in id order.
4. Read `closed_until` again under the locks; where it moved on, aggregate again with what is late now. So are sessions
   of which something may be late: only now is it known which of them are open.
5. Merge, write dead letters, kept events and what detectors of single events know and found, advance the offsets.
   Commit.

Partitions that a replay has handed over count for its versions too, from the position at which it marked them (see
`replay`); the mark is read with the position.

Whoever dies before 5 has changed nothing; whoever dies after it finds the new offsets when it comes back.
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
from tidemill_processor.batch import PARTITION, Batch
from tidemill_processor.database import LIVE, AggregationStore, Database
from tidemill_processor.detect.anomalies import by_rule
from tidemill_processor.detect.event_anomalies import Watcher
from tidemill_processor.merge import corrections, merging, refused
from tidemill_processor.merge.aggregate import END, PANE, Aggregated, aggregate
from tidemill_processor.merge.merging import Work
from tidemill_processor.merge.partitions import KeptEvents, Partitions
from tidemill_processor.merge.sessions import SessionMerger, aggregate_sessions
from tidemill_processor.replay import Handover
from tidemill_processor.time.watermark import PartitionTime


class Fenced(Exception):
    """Some partitions were moved on by another owner; nothing was written."""

    def __init__(self, partitions: set[int]) -> None:
        super().__init__(f"partitions {sorted(partitions)} have a newer owner")
        self.partitions = partitions


class Superseded(Exception):
    """The schema is for a newer spec than this process has; it must stop."""


class _Marked(Exception):
    """Partitions count for other versions than this process knew; nothing was written."""


@dataclass(frozen=True)
class Position:
    """Where a partition's next record is expected, as this process last read or committed it."""

    next_offset: int
    epoch: int


@dataclass(frozen=True)
class Change:
    """What a commit changed in one aggregation: rows that carry `rev`, within panes [first, last] (epoch ms)."""

    aggregation: str
    rev: int
    first_pane: int
    last_pane: int


@dataclass(frozen=True)
class Committed:
    """The outcome of a commit.

    Attributes:
        late: late events by (aggregation, policy).
        anomalies: found in single events, how many by rule.
        handed: partitions that a replay leaves to live processors from now on.
    """

    positions: dict[int, Position]
    changes: tuple[Change, ...]
    late: dict[tuple[str, str], int]
    rows: int
    anomalies: Mapping[str, int] = field(default_factory=dict)
    handed: frozenset[int] = frozenset()


@dataclass(frozen=True)
class _Offset:
    """A row of `_offsets`, in the order in which it is read.

    Attributes:
        maximum, suspects, last_event_at: see `PartitionTime`.
        clock_ms: the server's clock, epoch milliseconds.
        feeds: versions that the partition counts for besides the spec's.
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
        """As a process knows it."""
        return Position(self.next_offset, self.epoch)

    @property
    def time(self) -> PartitionTime:
        """How far event time has come in the partition."""
        return PartitionTime(self.partition, self.maximum, tuple(self.suspects), self.last_event_at)


class Committer:
    """Writes batches of one pipeline over one connection.

    Attributes:
        handover: of a replay; None: these are live events.
    """

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
        self._sessions: dict[int, SessionMerger] = {}
        self._merges: dict[int, str] = {}
        for store in stores:
            self._prepare(store)
        self._reader = database.reader
        self.handover = Handover(database, [s.id for s in stores]) if self._reader != LIVE else None
        # Versions by partition, as the marks were last read, and what is known of these versions.
        self._marks: dict[int, frozenset[int]] = {}
        self._others: dict[int, AggregationStore] = {}

    def commit(self, batch: Batch, positions: dict[int, Position]) -> Committed:
        """Store a batch whose partitions stand at `positions`.

        Raises:
            Fenced: some partitions have a newer owner.
            Superseded: the spec has a newer generation.
            psycopg.DataError, psycopg.IntegrityError: values are refused; find the event by halves.
            psycopg.Error: anything else; whether it is committed is not known, so read the positions again.
        """
        while True:
            try:
                return self._commit(batch, positions)
            except _Marked:
                self._learn()

    def _commit(self, batch: Batch, positions: dict[int, Position]) -> Committed:
        epochs = {p: position.epoch for p, position in positions.items()}
        works = self._aggregate(batch, epochs)
        kept = self._kept_events.prepare(self._connection, batch)
        judged = self._watcher.judge(self._connection, batch, positions, epochs)
        handed: frozenset[int] = frozenset()
        with self._connection.transaction():
            rows = self._lock_offsets(batch)  # 1
            self._check_owner(batch, positions, rows)  # 2
            if self.handover is not None:
                whole = batch
                starts = {p: position.next_offset for p, position in positions.items()}
                batch, handed = self.handover.cut(self._connection, batch, starts)
                works = works if batch is whole else self._aggregate(batch, epochs)
            self._kept_events.store(self._connection, kept, epochs)
            self._watcher.store(self._connection, judged)
            self._copy_and_lock(works)  # 3
            self._aggregate_late(works, epochs)  # 4
            changes = self._merge(works)  # 5
            letters, late = refused.late(self._connection, self._database, batch, works)
            refused.write(self._connection, self._database, [*batch.dead, *letters], epochs)
            self._advance(batch, rows)
        moved = {p: replace(positions[p], next_offset=offset) for p, offset in batch.next_offsets.items()}
        self._watcher.keep(judged, moved)
        rows_written = sum(work.result.rows.height for work in works)
        return Committed(moved, tuple(changes), late, rows_written, by_rule(judged.found), handed)

    def attempt(self, batch: Batch, positions: dict[int, Position]) -> None:
        """Try whether a batch's rows can be stored, and undo it. Raises what `commit` raises."""
        epochs = {p: position.epoch for p, position in positions.items()}
        works = self._aggregate(batch, epochs)
        kept = self._kept_events.prepare(self._connection, batch)
        judged = self._watcher.judge(self._connection, batch, positions, epochs)
        with self._connection.transaction() as transaction:
            self._kept_events.store(self._connection, kept, epochs)
            self._watcher.store(self._connection, judged)
            self._copy_and_lock(works)
            self._aggregate_late(works, epochs)
            self._merge(works)
            raise psycopg.Rollback(transaction)

    def _aggregate(self, batch: Batch, epochs: dict[int, int]) -> list[Work]:
        closed = self._closed()
        works = []
        for store, frame in self._fed(batch.frame):
            result = self._aggregate_one(frame, store, closed.get(store.id), epochs)
            works.append(Work(store, closed.get(store.id), result, frame))
            self._partitions.ensure(self._connection, store.table, store.partition_days, result.rows[PANE])
        return works

    def _fed(self, frame: pl.DataFrame) -> list[tuple[AggregationStore, pl.DataFrame]]:
        """What each version gets of a frame, in id order: those of the spec all, others what is marked for them."""
        fed = [(store, frame) for store in self._stores]
        for id_, store in self._others.items():
            marked = [p for p, ids in self._marks.items() if id_ in ids]
            fed.append((store, frame.filter(pl.col(PARTITION).is_in(marked))))
        return sorted(fed, key=lambda pair: pair[0].id)

    def _learn(self) -> None:
        """Prepare for the versions that partitions are marked for, as far as they are not the spec's."""
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
        """Step 1: lock the rows of the batch's partitions, in partition order; what they hold."""
        query = offsets.lock(self._database.schema, self._reader)
        rows = self._connection.execute(query, (list(batch.next_offsets),)).fetchall()
        return {row[0]: _Offset(*row) for row in rows}

    def _check_owner(self, batch: Batch, positions: dict[int, Position], rows: dict[int, _Offset]) -> None:
        """Step 2: partitions are where this process left them, for the spec and the versions that it knows."""
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

    def _copy_and_lock(self, works: list[Work]) -> None:
        """Step 3: COPY the partials into temporary tables, then take the aggregations' locks in id order."""
        for work in works:
            merging.copy(self._connection, work.store, work.result.rows)
        for work in works:
            self._connection.execute(self._database.lock(work.store.id))

    def _aggregate_late(self, works: list[Work], epochs: dict[int, int]) -> None:
        """Step 4: where windows were closed meanwhile, aggregate again with what is late now."""
        closed = self._closed()
        for work in works:
            if closed.get(work.store.id) != work.closed_until or work.result.doubtful:
                work.closed_until = closed.get(work.store.id)
                work.result = self._aggregate_one(work.frame, work.store, work.closed_until, epochs)
                self._connection.execute(f"TRUNCATE pg_temp.{merging.temp_table(work.store)}")
                merging.copy(self._connection, work.store, work.result.rows)

    def _merge(self, works: list[Work]) -> list[Change]:
        """Step 5, its first half: merge the partials into the windows' rows."""
        changes = []
        for work in works:
            if work.result.rows.height:
                change = self._merge_one(work)
                if work.store.id not in self._others:  # nobody listens to those yet
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

    def _advance(self, batch: Batch, rows: dict[int, _Offset]) -> None:
        """Step 5, its second half: move the positions on."""
        now_ms = max((row.clock_ms for row in rows.values()), default=0)
        latest, invalid = batch.latest_times(), batch.invalid
        values = []
        for partition, next_offset in sorted(batch.next_offsets.items()):
            time = rows[partition].time
            if partition in latest:
                ordinary = (
                    time.maximum is not None
                    and not time.suspects
                    and latest[partition] <= time.maximum + self._max_advance_ms
                )
                times = [latest[partition]] if ordinary else batch.times_of(partition)
                time = time.observe(times, max_advance_ms=self._max_advance_ms, now_ms=now_ms)
            else:
                time = replace(time, last_event_at=now_ms)  # invalid events are no silence
            values.append((
                next_offset, time.maximum, list(time.suspects[-100:]), batch.arrived[partition],
                batch.consumed.get(partition, 0), batch.filtered.get(partition, 0), invalid.get(partition, 0),
                partition,
            ))  # fmt: skip
        self._connection.cursor().executemany(offsets.advance(self._database.schema, self._reader), values)


def is_refusal(error: Exception) -> bool:
    """Whether an error says that some event's values cannot be stored (SQLSTATE class 22, 23 or 54)."""
    return isinstance(error, psycopg.Error) and (error.sqlstate or "")[:2] in ("22", "23", "54")
