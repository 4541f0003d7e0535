"""What live listeners are told from the database: snapshots, and what changed after a revision."""

from __future__ import annotations

import datetime as dt
from dataclasses import replace
from typing import Any

from tidemill_api.aggregate_query import AggregateQuery, take_query
from tidemill_api.answers import READ_LIMIT, State, read_state, read_windows
from tidemill_api.catalog import AggregationModel, PipelineModel
from tidemill_api.database import Connection
from tidemill_api.live_change import Change
from tidemill_api.parameters import Parameters
from tidemill_api.rows import RowEncoder
from tidemill_api.selection import Filter

SNAPSHOT_ROWS = 1_000


async def revisions(connection: Connection, model: PipelineModel) -> dict[str, State]:
    """How far each aggregation is."""
    return {
        name: await read_state(connection, model, name, found.version) for name, found in model.aggregations.items()
    }


def latest(model: AggregationModel, filters: tuple[Filter, ...], limit: int) -> AggregateQuery:
    """The query of an aggregation's latest windows."""
    query = take_query(model, Parameters({"order": ["-window_start"], "limit": [str(limit)]}, split=True))
    return replace(query, filters=filters)


async def snapshot(
    connection: Connection, model: PipelineModel, aggregation: AggregationModel, filters: tuple[Filter, ...]
) -> tuple[State, list[dict[str, Any]]]:
    """The latest windows, oldest first, and the state that they are of."""
    query = latest(aggregation, filters, SNAPSHOT_ROWS)
    state = await read_state(connection, model, aggregation.name, aggregation.version)
    rows, _ = await read_windows(connection, query, state)
    encoder = RowEncoder(query.columns)
    return state, [encoder.record(row) for row in reversed(rows[:SNAPSHOT_ROWS])]


async def changed_since(
    connection: Connection, model: PipelineModel, aggregation: AggregationModel, rev: int
) -> Change | None:
    """Windows that a batch after `rev` touched; None: more than a message may hold."""
    state = await read_state(connection, model, aggregation.name, aggregation.version)
    plan = aggregation.layout
    edges = f"SELECT min(window_start), max(window_start) FROM {aggregation.table} WHERE _rev > %s"
    cursor = await connection.execute(edges, (rev,))
    first, last = await cursor.fetchone() or (None, None)
    rows: list[dict[str, Any]] = []
    if first is not None:
        query = latest(aggregation, (), READ_LIMIT)
        spread = dt.timedelta(milliseconds=plan.size_ms - plan.pane_ms)
        query = replace(query, since=first - spread, until=last + dt.timedelta(milliseconds=1))
        found, _ = await read_windows(connection, query, state)
        if len(found) > READ_LIMIT:
            return None
        encoder = RowEncoder(query.columns)
        rows = [encoder.record(row) for row in reversed(found)]
    return Change(
        aggregation.name,
        state.rev,
        tuple(rows),
        watermark_ms=state.watermark_ms,
        closed_until_ms=state.closed_until_ms,
        degraded=True,
    )


