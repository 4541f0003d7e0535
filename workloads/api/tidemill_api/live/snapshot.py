"""Reads snapshots of the latest windows for clients that connect."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass

import msgspec

from tidemill_api.catalog import AggregationModel, PipelineModel
from tidemill_api.database import Connection, Database
from tidemill_api.describe import format_epoch_ms
from tidemill_api.live.change import RowFilter, message_with_rows, split_rows
from tidemill_api.live.database_reads import read_latest, read_table_states
from tidemill_chassis.web.problems import unavailable

KEEP_SECONDS = 1.0
SnapshotKey = tuple[PipelineModel, str, RowFilter]


@dataclass(frozen=True)
class Snapshot:
    """The messages of a snapshot, and its revision."""

    rev: int
    messages: list[tuple[str, bytes]]


@dataclass(frozen=True)
class _Read:
    started_at: float
    task: asyncio.Task[Snapshot]


class Snapshots:
    """Reads snapshots of one pipeline."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._reads: dict[SnapshotKey, _Read] = {}

    async def get(self, model: PipelineModel, aggregation: str, row_filter: RowFilter, *, rev: int) -> Snapshot:
        """Return a snapshot of the latest windows, at revision `rev` or later.

        Raises:
            Exception: the error of the database.
            Problem: the aggregation's tables do not exist yet.
        """
        now = time.monotonic()
        self._reads = {key: read for key, read in self._reads.items() if now - read.started_at < KEEP_SECONDS}
        key = (model, aggregation, row_filter)
        read = self._reads.get(key)
        if read is not None:
            snapshot = await asyncio.shield(read.task)
            # Changes up to `rev` are not sent again. If `snapshot` is older than `rev`, read a new snapshot.
            if snapshot.rev >= rev:
                return snapshot
        task = asyncio.create_task(self._read(model, model.aggregations[aggregation], row_filter))
        task.add_done_callback(_retrieve_exception)
        self._reads[key] = _Read(now, task)
        return await asyncio.shield(task)

    async def _read(self, model: PipelineModel, aggregation: AggregationModel, row_filter: RowFilter) -> Snapshot:
        async def work(connection: Connection) -> Snapshot:
            table_state = (await read_table_states(connection, model)).get(aggregation.name)
            if table_state is None:
                raise unavailable("pipeline_not_ready", f"{aggregation.name} is not set up yet", 5)
            state = table_state.state
            rows, truncated = await read_latest(connection, aggregation, row_filter.filters, state)
            head = {
                "type": "snapshot", "aggregation": aggregation.name, "rev": state.rev, "truncated": truncated,
                "watermark": format_epoch_ms(state.watermark_ms),
                "closed_until": format_epoch_ms(state.closed_until_ms),
            }  # fmt: skip
            first, *more = split_rows([msgspec.json.encode(row) for row in rows]) or [[]]
            upsert = {"type": "upsert", "aggregation": aggregation.name, "rev": state.rev}
            messages = [
                ("snapshot", message_with_rows(head, first)),
                *(("upsert", message_with_rows(upsert, piece)) for piece in more),
            ]
            return Snapshot(state.rev, messages)

        return await self._database.run(model.name, work)


def _retrieve_exception(task: asyncio.Task[Snapshot]) -> None:
    # Retrieve the exception, because asyncio logs unretrieved exceptions.
    if not task.cancelled():
        task.exception()
