"""A processor without its loop: each call of `step` commits one batch to a real Postgres."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import psycopg

from tidemill_contract.functions.partials import quote
from tidemill_contract.runtime import PipelineConfig, WorkloadSettings
from tidemill_operator.plan.model import AggregationRow, Replay
from tidemill_operator.plan.postgres.schema import desired_schema
from tidemill_processor.batches.exploding import batch_reader
from tidemill_processor.database import Database
from tidemill_processor.dead_letters import Message
from tidemill_processor.transaction import CommitResult, Committer, Fenced, Position


class PlayedProcessor:
    """A processor of one reader. `start` discards its state in memory.

    Attributes:
        positions: the positions that the processor has read or committed, by partition.
    """

    def __init__(self, connection: psycopg.Connection[Any], config: PipelineConfig, reader: str = "live") -> None:
        self.connection, self._config = connection, config
        self.database = Database(WorkloadSettings(reader=reader), config, 10)
        self._reader = batch_reader(config.spec, offsets=reader != "live")
        self.start()

    def start(self) -> None:
        """Read the versions and positions, as a new process does."""
        stores = self.database.aggregations(self.connection)
        self.committer = Committer(self.connection, self.database, stores, self._config)
        rows = self.connection.execute(
            f"SELECT partition, next_offset, epoch FROM {self.database.schema}._offsets WHERE reader = %s",
            (self.database.reader,),
        )
        self.positions = {p: Position(offset, epoch) for p, offset, epoch in rows}
        if self.committer.handover is not None:
            self._stop_handed_over(self.committer.handover.handed_over(self.connection))

    def step(self, records: Sequence[Message], now_ms: int, *, dies: bool = False) -> CommitResult | None:
        """Commit records, and return the result of the commit.

        Return None if there are no records, if the process dies before the commit (`dies`), or if another process has
        moved the positions. After the last two, the processor has started again.
        """
        if not records:
            return None
        batch = self._reader.read(records, now_ms)
        if dies:
            with self.connection.transaction() as transaction:
                with suppress(Fenced):
                    self.committer.commit(batch, self.positions)
                raise psycopg.Rollback(transaction)
            self.start()
            return None
        try:
            committed = self.committer.commit(batch, self.positions)
        except Fenced:
            self.start()
            return None
        self.positions |= committed.positions
        self._stop_handed_over(committed.handed_over)
        return committed

    def hand_over(self) -> None:
        """Hand over the partitions in which a replay has reached the live positions."""
        assert self.committer.handover is not None
        at = {p: position.next_offset for p, position in self.positions.items()}
        self._stop_handed_over(self.committer.handover.hand_over_finished(self.connection, at, {}))

    def _stop_handed_over(self, partitions: frozenset[int]) -> None:
        self.positions = {p: position for p, position in self.positions.items() if p not in partitions}


def make_replay_tables(
    connection: psycopg.Connection[Any], schema: str, config: PipelineConfig, reader: str
) -> list[AggregationRow]:
    """Create the tables of version 2 of all aggregations, and return the rows of `_aggregations` for them.

    Args:
        connection: the administrator's connection.
        schema: the quoted name of the pipeline's schema, which has the tables of version 1.
        config: the pipeline.
        reader: the reader of the replay that fills version 2.
    """
    plan = desired_schema(config, Replay(reader, {aggregation.name: 2 for aggregation in config.spec.aggregations}))
    existing = {table.name for table in desired_schema(config).tables}
    for table in plan.tables:
        if table.name not in existing:
            columns = ", ".join([*(f"{quote(c.name)} {c.definition}" for c in table.columns), *table.constraints])
            connection.execute(
                f"CREATE TABLE {schema}.{quote(table.name)} ({columns}) PARTITION BY {table.partition_by}"
            )
    return [row for row in plan.aggregations if row.reader == reader]


def begin_replay(connection: psycopg.Connection[Any], schema: str, rows: Sequence[AggregationRow], reader: str) -> None:
    """Begin a replay at the start of the topic. `rows` are those of `make_replay_tables`."""
    connection.execute(f"INSERT INTO {schema}._readers (reader) VALUES (%s) ON CONFLICT DO NOTHING", (reader,))
    connection.execute(
        f"INSERT INTO {schema}._offsets (reader, partition, topic_id, next_offset)"
        f" SELECT %s, partition, topic_id, 0 FROM {schema}._offsets",
        (reader,),
    )
    ids = f"{reader}@{uuid.uuid4()}"
    for row in rows:
        connection.execute(
            f"INSERT INTO {schema}._aggregations"
            " (name, version, table_name, reader, ids, shape, partition_days, retention_ms)"
            " VALUES (%s, %s, %s, %s, %s, %s, %s, %s)",
            (row.name, row.version, row.table_name, reader, ids, row.shape, row.partition_days, row.retention_ms),
        )
