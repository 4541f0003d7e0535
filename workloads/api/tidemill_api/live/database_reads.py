"""Reads the rows of snapshots and missed changes from the database, for live connections."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from tidemill_api.catalog import AggregationModel, PipelineModel
from tidemill_api.database import Connection
from tidemill_api.formats.offload import encoded
from tidemill_api.formats.rows import RowEncoder
from tidemill_api.live.change import Row
from tidemill_api.live.progress import Mark
from tidemill_api.query.aggregate import AggregateQuery, take_query
from tidemill_api.query.answers import READ_LIMIT, read_windows
from tidemill_api.query.pages import State
from tidemill_api.query.parameters import Parameters
from tidemill_api.query.selection import Binder, Filter, condition
from tidemill_api.query.values import EPOCH
from tidemill_contract.functions.feeds import Feeds
from tidemill_contract.functions.partials import quote
from tidemill_contract.tables import aggregations
from tidemill_contract.windows import answer_columns, window_source

SNAPSHOT_ROWS = 1_000
_MS = dt.timedelta(milliseconds=1)


@dataclass(frozen=True)
class Standing:
    """The state of an aggregation, and the OID of its table."""

    state: State
    table: int


async def read_standings(connection: Connection, model: PipelineModel) -> dict[str, Standing]:
    """Read the states of all aggregations that are set up."""
    cursor = await connection.execute(aggregations.standings(model.schema), (model.config.schema_name,))
    standings = {
        (name, version): Standing(State(str(id_), rev, closed_until, watermark, Feeds.read(*fed)), table or 0)
        for name, version, table, id_, rev, closed_until, watermark, *fed in await cursor.fetchall()
    }
    named = {name: standings.get((name, aggregation.version)) for name, aggregation in model.aggregations.items()}
    return {name: standing for name, standing in named.items() if standing is not None}


def _latest(model: AggregationModel, filters: tuple[Filter, ...], limit: int) -> AggregateQuery:
    query = take_query(model, Parameters({"order": ["-window_start"], "limit": [str(limit)]}, split=True))
    return replace(query, filters=filters)


async def read_latest(
    connection: Connection, aggregation: AggregationModel, filters: tuple[Filter, ...], state: State
) -> tuple[list[Row], bool]:
    """Return the latest windows, oldest first, and whether there are older windows."""
    query = _latest(aggregation, filters, SNAPSHOT_ROWS)
    rows, _ = await read_windows(connection, query, state)
    return await _records(query, rows[:SNAPSHOT_ROWS][::-1]), len(rows) > SNAPSHOT_ROWS


async def read_changed(
    connection: Connection,
    aggregation: AggregationModel,
    state: State,
    mark: Mark,
    *,
    but: Sequence[int] = (),
    filters: tuple[Filter, ...] = (),
) -> list[Row] | None:
    """Return the windows changed since the position `mark`. For more than READ_LIMIT windows, return None."""
    aggregation = aggregation.fed(state.feeds)
    plan, table = aggregation.layout, aggregation.table
    binder = Binder()
    changed = f"_rev > {binder.bind(mark.rev, 'integer')}"
    if but:
        listed = ", ".join(binder.bind(rev, "integer") for rev in but)
        changed += f" AND _rev NOT IN ({listed})"
    stored = changed
    if mark.closed_until is not None and aggregation.spec.late_policy != "reopen":
        # Without the late policy `reopen`, closed windows never change. Skip rows whose windows were all closed at
        # `mark`.
        reach = EPOCH + (mark.closed_until - plan.size_ms) * _MS
        stored += f" AND window_start > {binder.bind(reach, 'timestamp')}"
    edges = f"SELECT min(window_start), max(window_start) FROM {table} WHERE {stored}"
    cursor = await connection.execute(edges, binder.values)
    first, last = await cursor.fetchone() or (None, None)
    if first is None:
        return []
    query = _latest(aggregation, filters, READ_LIMIT)
    text = _changed_sql(query, state, binder, changed, first, last)
    cursor = await connection.execute(text, binder.values)
    rows = await cursor.fetchall()
    return None if len(rows) > READ_LIMIT else await _records(query, rows)


async def _records(query: AggregateQuery, rows: Sequence[tuple[Any, ...]]) -> list[Row]:
    encoder = RowEncoder(query.columns)
    return await encoded(query.columns, rows, lambda: [encoder.record(row) for row in rows])


def _changed_sql(
    query: AggregateQuery, state: State, binder: Binder, changed: str, first: dt.datetime, last: dt.datetime
) -> str:
    aggregation, plan = query.model, query.model.layout
    spread = plan.spread_ms * _MS
    wanted = [condition(column_filter, binder) for column_filter in query.filters]
    low, high = binder.bind(first - spread, "timestamp"), binder.bind(last + spread, "timestamp")
    newest = binder.bind(last, "timestamp")
    stored = " AND ".join([f"window_start >= {low}", f"window_start <= {high}", *wanted])
    closed = "false"
    if state.closed_until is not None:
        closed = f"{plan.end_sql} <= {binder.bind(state.closed_until, 'timestamp')}"
    columns = [
        *(quote(name) for name in aggregation.groups),
        "window_start",
        f"{plan.end_sql} AS window_end",
        f"{closed} AS closed",
        *(f"{expression} AS {quote(name)}" for name, _, expression in answer_columns(plan)),
    ]
    source = window_source(aggregation.table, plan, stored, first=low, last=newest, vanished=True)
    return (
        f"SELECT {', '.join(columns)} FROM {source} WHERE {changed}"
        f" AND window_start <= {newest} ORDER BY window_start LIMIT {READ_LIMIT + 1}"
    )
