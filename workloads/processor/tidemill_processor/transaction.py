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
from tidemill_processor.detect.anomalies import count_by_rule
from tidemill_processor.detect.event_anomalies import EventJudge, JudgedBatch
from tidemill_processor.merge import corrections, dead_letter_store, merging
from tidemill_processor.merge.aggregate import END, PANE, Aggregated, aggregate
from tidemill_processor.merge.dedupe import DedupedBatch, IdConflict, IdStore
from tidemill_processor.merge.merging import MergeTask
from tidemill_processor.merge.partitions import Partitions, RawEventStore
from tidemill_processor.merge.sessions import SessionMerger, aggregate_sessions
from tidemill_processor.replay import Handover
from tidemill_processor.time.observing import observe_batch
from tidemill_processor.time.watermark import PartitionTime


class Fenced(Exception):
    """Raised if another process has advanced the positions of some partitions. Nothing was written."""

    def __init__(self, partitions: set[int]) -> None:
        super().__init__(f"another process has advanced the positions of partitions {sorted(partitions)}")
        self.partitions = partitions


class Superseded(Exception):
    """Raised if Postgres has a newer spec than this process, or if a replay was cancelled. The process must stop."""


class _UnknownVersions(Exception):
    """Raised if events also count for an aggregation version that this process does not know yet."""


@dataclass(frozen=True)
class Position:
    """The offset of the next record to read in a partition, and the epoch of the partition."""

    next_offset: int
    epoch: int


@dataclass(frozen=True)
class Change:
    """Which rows of an aggregation a commit changed. Times are epoch milliseconds.

    Attributes:
        last_pane: the start of the last changed pane, or the end of the last changed session.
    """

    aggregation: str
    rev: int
    first_pane: int
    last_pane: int


@dataclass(frozen=True)
class CommitResult:
    """The result of a commit.

    Attributes:
        positions: the new position of each partition.
        late: the number of late events by (aggregation, policy).
        anomalies: the number of anomalies in single events, by rule.
        handed_over: the partitions that a replay has handed over to live processors.
        duplicates: the number of events that were left out as duplicates.
    """

    positions: dict[int, Position]
    changes: tuple[Change, ...]
    late: dict[tuple[str, str], int]
    rows: int
    anomalies: Mapping[str, int] = field(default_factory=dict)
    handed_over: frozenset[int] = frozenset()
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
    max_event_time_ms: int | None
    suspects: list[int]
    last_event_at: int | None
    clock_ms: int
    marked_versions: list[int]

    @property
    def position(self) -> Position:
        return Position(self.next_offset, self.epoch)

    @property
    def time(self) -> PartitionTime:
        return PartitionTime(self.partition, self.max_event_time_ms, tuple(self.suspects), self.last_event_at)


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
        self._judged_aggregations = {rule.aggregation for rule in config.spec.anomalies}
        self._table_partitions = Partitions(database)
        self._raw_events = RawEventStore(database, config, self._table_partitions)
        self._event_judge = EventJudge(database, config)
        self._id_store = IdStore(database, config)
        self._sessions: dict[int, SessionMerger] = {}
        self._merge_statements: dict[int, str] = {}
        for store in stores:
            self._prepare_store(store)
        self._reader_name = database.reader
        self.handover = Handover(database, [s.id for s in stores]) if self._reader_name != LIVE else None
        # By partition: the ids of a replay's versions for which live processors also count the partition's events.
        self._marked_versions: dict[int, frozenset[int]] = {}
        self._marked_stores: dict[int, AggregationStore] = {}

    def commit(self, batch: Batch, positions: dict[int, Position]) -> CommitResult:
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
            except _UnknownVersions:
                self._load_marked_stores()
            except IdConflict:
                continue  # another processor has stored events with the same ids, so look for duplicates again

    def _commit(self, batch: Batch, positions: dict[int, Position]) -> CommitResult:
        epochs = {p: position.epoch for p, position in positions.items()}
        deduped, tasks, raw_events, judged = self._prepare_batch(batch, positions, epochs)
        handed_over: frozenset[int] = frozenset()
        with self._connection.transaction():
            rows = self._lock_offsets(batch)  # 1
            self._check_rows(batch, positions, rows)  # 2
            if self.handover is not None:
                whole = batch
                starts = {p: position.next_offset for p, position in positions.items()}
                batch, handed_over = self.handover.trim_batch(self._connection, batch, starts)
                if batch is not whole:
                    deduped = deduped.for_part(batch)
                    tasks = self._aggregate(deduped, epochs)
            self._raw_events.store(self._connection, raw_events, epochs)
            self._event_judge.store(self._connection, judged)
            self._copy_to_temp(tasks)  # 3
            times = self._partition_times(batch, rows)
            self._id_store.store(self._connection, deduped, times)
            self._lock_aggregations(tasks)
            self._aggregate_again(tasks, epochs)  # 4
            changes = self._merge(tasks)  # 5
            letters, late = dead_letter_store.record_late(self._connection, self._database, batch, tasks)
            dead_letter_store.store_dead_letters(
                self._connection, self._database, [*batch.dead_letters, *letters], epochs
            )
            self._advance_offsets(batch, times, deduped.duplicates)
        new_positions = {p: replace(positions[p], next_offset=offset) for p, offset in batch.next_offsets.items()}
        self._event_judge.cache_states(judged, new_positions)
        rows_written = sum(task.result.rows.height for task in tasks)
        anomalies = count_by_rule(judged.anomalies)
        return CommitResult(
            new_positions, tuple(changes), late, rows_written, anomalies, handed_over, deduped.duplicate_count
        )

    def dry_run(self, batch: Batch, positions: dict[int, Position]) -> None:
        """Try to store a batch, and roll back, to find out whether Postgres accepts the events."""
        epochs = {p: position.epoch for p, position in positions.items()}
        _, tasks, raw_events, judged = self._prepare_batch(batch, positions, epochs)
        with self._connection.transaction() as transaction:
            self._raw_events.store(self._connection, raw_events, epochs)
            self._event_judge.store(self._connection, judged)
            self._copy_to_temp(tasks)
            self._lock_aggregations(tasks)
            self._aggregate_again(tasks, epochs)
            self._merge(tasks)
            raise psycopg.Rollback(transaction)

    def _prepare_batch(
        self, batch: Batch, positions: dict[int, Position], epochs: dict[int, int]
    ) -> tuple[DedupedBatch, list[MergeTask], pl.DataFrame | None, JudgedBatch]:
        """Leave out duplicates, and prepare what the transaction writes: partial results, raw events and anomalies."""
        partitions_by_reader = {
            store.dedupe_reader: self._marked_partitions(id_) for id_, store in self._marked_stores.items()
        }
        deduped = self._id_store.drop_duplicates(self._connection, batch, self._stores, partitions_by_reader)
        tasks = self._aggregate(deduped, epochs)
        raw_events = self._raw_events.prepare(self._connection, deduped.batch)
        return deduped, tasks, raw_events, self._event_judge.judge(self._connection, deduped.batch, positions, epochs)

    def _marked_partitions(self, id_: int) -> list[int]:
        return [p for p, ids in self._marked_versions.items() if id_ in ids]

    def _aggregate(self, deduped: DedupedBatch, epochs: dict[int, int]) -> list[MergeTask]:
        closed = self._closed_until()
        tasks = []
        for store, frame in self._events_by_store(deduped):
            result = self._aggregate_one(frame, store, closed.get(store.id), epochs)
            tasks.append(MergeTask(store, closed.get(store.id), result, frame))
            self._table_partitions.ensure(self._connection, store.table, store.partition_days, result.rows[PANE])
        return tasks

    def _events_by_store(self, deduped: DedupedBatch) -> list[tuple[AggregationStore, pl.DataFrame]]:
        pairs = [(store, deduped.frame(store.dedupe_reader)) for store in self._stores]
        for id_, store in self._marked_stores.items():
            is_marked = pl.col(PARTITION).is_in(self._marked_partitions(id_))
            pairs.append((store, deduped.frame(store.dedupe_reader).filter(is_marked)))
        return sorted(pairs, key=lambda pair: pair[0].id)

    def _load_marked_stores(self) -> None:
        own = {store.id for store in self._stores}
        wanted = set().union(*self._marked_versions.values()) - own
        self._marked_stores = self._database.aggregations_by_id(self._connection, wanted)
        for store in self._marked_stores.values():
            self._prepare_store(store)

    def _prepare_store(self, store: AggregationStore) -> None:
        self._connection.execute(merging.temp_table_sql(store))
        self._merge_statements[store.id] = merging.merge_sql(self._database, store)
        if store.layout.has_sessions:
            self._sessions[store.id] = SessionMerger(self._database, store, merging.temp_table(store))

    def _aggregate_one(
        self, frame: pl.DataFrame, store: AggregationStore, closed_until: int | None, epochs: dict[int, int]
    ) -> Aggregated:
        sessions = self._sessions.get(store.id)
        if sessions is None:
            return aggregate(frame, store.layout, closed_until=closed_until, epochs=epochs)

        def check_sessions(events: pl.DataFrame) -> pl.DataFrame:
            return sessions.check_events(self._connection, events, store.layout.final_until(closed_until) or 0)

        return aggregate_sessions(
            frame, store.layout, closed_until=closed_until, epochs=epochs, check_sessions=check_sessions
        )

    def _closed_until(self) -> dict[int, int | None]:
        query = aggregations.closed_until(self._database.schema)
        return dict(self._connection.execute(query).fetchall())

    def _lock_offsets(self, batch: Batch) -> dict[int, _Offset]:
        query = offsets.lock(self._database.schema, self._reader_name)
        rows = self._connection.execute(query, (list(batch.next_offsets),)).fetchall()
        return {row[0]: _Offset(*row) for row in rows}

    def _check_rows(self, batch: Batch, positions: dict[int, Position], rows: dict[int, _Offset]) -> None:
        fenced = {p for p in batch.next_offsets if p not in rows or rows[p].position != positions.get(p)}
        if fenced:
            raise Fenced(fenced)
        newer = self._database.newer_generation(self._connection)
        if newer is not None:
            raise Superseded(f"the schema is at generation {newer}, this processor at {self._config.generation}")
        known = self._marked_versions
        marked_versions = {
            p: frozenset(row.marked_versions) for p, row in rows.items() if row.marked_versions or p in known
        }
        if any(known.get(p, frozenset()) != ids for p, ids in marked_versions.items()):
            self._marked_versions |= marked_versions
            raise _UnknownVersions

    def _copy_to_temp(self, tasks: list[MergeTask]) -> None:
        for task in tasks:
            merging.copy_rows(self._connection, task.store, task.result.rows)

    def _lock_aggregations(self, tasks: list[MergeTask]) -> None:
        for task in tasks:
            self._connection.execute(self._database.lock_sql(task.store.id))

    def _aggregate_again(self, tasks: list[MergeTask], epochs: dict[int, int]) -> None:
        closed = self._closed_until()
        if cancelled := [task.store.table for task in tasks if task.store.id not in closed]:
            raise Superseded(
                f"the versions in {', '.join(cancelled)} are no longer counted, because their replay was cancelled"
            )
        for task in tasks:
            if closed.get(task.store.id) != task.closed_until or task.result.doubtful:
                task.closed_until = closed.get(task.store.id)
                task.result = self._aggregate_one(task.frame, task.store, task.closed_until, epochs)
                self._connection.execute(f"TRUNCATE pg_temp.{merging.temp_table(task.store)}")
                merging.copy_rows(self._connection, task.store, task.result.rows)

    def _merge(self, tasks: list[MergeTask]) -> list[Change]:
        changes = []
        for task in tasks:
            if task.result.rows.height:
                change = self._merge_one(task)
                if task.store.id not in self._marked_stores:  # clients do not read the versions of an unfinished replay
                    changes.append(change)
        return changes

    def _merge_one(self, task: MergeTask) -> Change:
        update = aggregations.count_batch(self._database.schema)
        row = self._connection.execute(update, (task.store.id,)).fetchone()
        assert row is not None  # noqa: S101 - the row was read a moment ago
        rows = task.result.rows
        sessions = self._sessions.get(task.store.id)
        reopened = task.result.reopening_count > 0
        if sessions is not None:
            sessions.move_to_temp(self._connection, rows, task.closed_until)
            if task.store.layout.reopen_ms is not None and task.closed_until is not None:
                reopened = reopened or sessions.has_reopened(self._connection, task.closed_until)
        merged = self._connection.execute(self._merge_statements[task.store.id], {"rev": row[0]})
        if merging.sketch_partials(task.store):
            merging.compact_sketches(self._connection, self._database, task.store, merged.fetchall())
        first, last = rows[PANE].min(), rows[PANE if sessions is None else END].max()
        change = Change(task.store.name, row[0], int(first), int(last))  # type: ignore[arg-type]
        if reopened:
            since = change.first_pane - task.store.layout.max_lookback_ms
            corrections.record_correction(
                self._connection,
                self._database,
                task.store,
                corrections.CorrectedWindows([change.rev], since, change.last_pane),
                publish=self._config.spec.results.publish,
                judge=task.store.name in self._judged_aggregations,
            )
        return change

    def _partition_times(self, batch: Batch, rows: dict[int, _Offset]) -> dict[int, PartitionTime]:
        now_ms = max((row.clock_ms for row in rows.values()), default=0)
        return observe_batch(batch, [row.time for row in rows.values()], self._max_advance_ms, now_ms)

    def _advance_offsets(self, batch: Batch, times: Mapping[int, PartitionTime], duplicates: Mapping[int, int]) -> None:
        invalid = batch.invalid_counts
        values = []
        for partition, next_offset in sorted(batch.next_offsets.items()):
            time = times[partition]
            values.append((
                next_offset, time.maximum, list(time.suspects[-100:]), batch.arrived[partition],
                batch.consumed.get(partition, 0), batch.filtered.get(partition, 0), invalid.get(partition, 0),
                duplicates.get(partition, 0), partition,
            ))  # fmt: skip
        self._connection.cursor().executemany(offsets.advance(self._database.schema, self._reader_name), values)


def is_refusal(error: Exception) -> bool:
    """Return whether Postgres refuses a value of an event (SQLSTATE class 22, 23 or 54)."""
    return isinstance(error, psycopg.Error) and (error.sqlstate or "")[:2] in ("22", "23", "54")
