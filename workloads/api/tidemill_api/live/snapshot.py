"""Reads snapshots of the latest windows for clients that connect."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass

import msgspec

from tidemill_api.catalog import AggregationModel, PipelineModel
from tidemill_api.database import Connection, Database
from tidemill_api.describe import time_ms
from tidemill_api.live.change import RowFilter, pieces, with_rows
from tidemill_api.live.database_reads import read_latest, read_standings
from tidemill_chassis.web.problems import unavailable

KEEP_SECONDS = 1.0
Wanted = tuple[PipelineModel, str, RowFilter]


@dataclass(frozen=True)
class Snapshot:
    """The messages of a snapshot, and its revision."""

    rev: int
    messages: list[tuple[str, bytes]]


@dataclass(frozen=True)
class _Flight:
    started_at: float
    task: asyncio.Task[Snapshot]


class Snapshots:
    """Reads snapshots of one pipeline."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._flights: dict[Wanted, _Flight] = {}

    async def get(self, model: PipelineModel, aggregation: str, wanted: RowFilter, *, rev: int) -> Snapshot:
        """Return a snapshot of the latest windows, at revision `rev` or later.

        Raises:
            Exception: the error of the database.
            Problem: the aggregation's tables do not exist yet.
        """
        now = time.monotonic()
        self._flights = {key: f for key, f in self._flights.items() if now - f.started_at < KEEP_SECONDS}
        key = (model, aggregation, wanted)
        flight = self._flights.get(key)
        if flight is not None:
            snapshot = await asyncio.shield(flight.task)
            # Changes up to `rev` are not sent again. If `snapshot` is older than `rev`, read a new snapshot.
            if snapshot.rev >= rev:
                return snapshot
        task = asyncio.create_task(self._read(model, model.aggregations[aggregation], wanted))
        task.add_done_callback(_heard)
        self._flights[key] = _Flight(now, task)
        return await asyncio.shield(task)

    async def _read(self, model: PipelineModel, aggregation: AggregationModel, wanted: RowFilter) -> Snapshot:
        async def work(connection: Connection) -> Snapshot:
            standing = (await read_standings(connection, model)).get(aggregation.name)
            if standing is None:
                raise unavailable("pipeline_not_ready", f"{aggregation.name} is not set up yet", 5)
            state = standing.state
            rows, truncated = await read_latest(connection, aggregation, wanted.filters, state)
            head = {
                "type": "snapshot", "aggregation": aggregation.name, "rev": state.rev, "truncated": truncated,
                "watermark": time_ms(state.watermark_ms), "closed_until": time_ms(state.closed_until_ms),
            }  # fmt: skip
            first, *more = pieces([msgspec.json.encode(row) for row in rows]) or [[]]
            upsert = {"type": "upsert", "aggregation": aggregation.name, "rev": state.rev}
            messages = [("snapshot", with_rows(head, first)), *(("upsert", with_rows(upsert, piece)) for piece in more)]
            return Snapshot(state.rev, messages)

        return await self._database.run(model.name, work)


def _heard(task: asyncio.Task[Snapshot]) -> None:
    # Retrieve the exception, because asyncio logs unretrieved exceptions.
    if not task.cancelled():
        task.exception()
