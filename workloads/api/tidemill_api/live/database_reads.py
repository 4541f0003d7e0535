"""Reads the rows of snapshots and missed changes from the database, for live connections."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from tidemill_api.catalog import AggregationModel, PipelineModel
from tidemill_api.database import Connection
from tidemill_api.formats.offload import run_encoder
from tidemill_api.formats.rows import RowEncoder
from tidemill_api.live.change import Row
from tidemill_api.live.progress import Position
from tidemill_api.query.aggregate import AggregateQuery, parse_query
from tidemill_api.query.answers import read_windows
from tidemill_api.query.pages import AggregationState
from tidemill_api.query.parameters import Parameters
from tidemill_api.query.selection import Binder, Filter, condition
from tidemill_api.query.values import EPOCH
from tidemill_contract.functions.fill_history import FillHistory
from tidemill_contract.functions.partials import quote
from tidemill_contract.tables import aggregations
from tidemill_contract.windows import answer_columns, window_source

SNAPSHOT_ROWS = 1_000
MAX_CHANGED_WINDOWS = 5_000
_MS = dt.timedelta(milliseconds=1)


@dataclass(frozen=True)
class TableState:
    """The state of an aggregation, and the OID of its table."""

    state: AggregationState
    table_oid: int


async def read_table_states(connection: Connection, model: PipelineModel) -> dict[str, TableState]:
    """Read the states of all aggregations that are set up."""
    cursor = await connection.execute(aggregations.states(model.schema), (model.config.schema_name,))
    table_states = {
        (name, version): TableState(
            AggregationState(str(id_), rev, closed_until, watermark, FillHistory.read(*history)), table or 0
        )
        for name, version, table, id_, rev, closed_until, watermark, *history in await cursor.fetchall()
    }
    states_by_name = {
        name: table_states.get((name, aggregation.version)) for name, aggregation in model.aggregations.items()
    }
    return {name: table_state for name, table_state in states_by_name.items() if table_state is not None}


def _latest_query(model: AggregationModel, filters: tuple[Filter, ...], limit: int) -> AggregateQuery:
    query = parse_query(model, Parameters({"order": ["-window_start"], "limit": [str(limit)]}, split=True))
    return replace(query, filters=filters)


async def read_latest(
    connection: Connection, aggregation: AggregationModel, filters: tuple[Filter, ...], state: AggregationState
) -> tuple[list[Row], bool]:
    """Return the latest windows, oldest first, and whether there are older windows."""
    query = _latest_query(aggregation, filters, SNAPSHOT_ROWS)
    rows, _ = await read_windows(connection, query, state)
    return await _records(query, rows[:SNAPSHOT_ROWS][::-1]), len(rows) > SNAPSHOT_ROWS


async def read_changed(
    connection: Connection,
    aggregation: AggregationModel,
    state: AggregationState,
    position: Position,
    *,
    excluded_revs: Sequence[int] = (),
    filters: tuple[Filter, ...] = (),
) -> list[Row] | None:
    """Return the windows changed since `position`, or None for more than MAX_CHANGED_WINDOWS windows."""
    aggregation = aggregation.mask_incomplete(state.fill_history)
    layout, table = aggregation.layout, aggregation.table
    binder = Binder()
    changed = f"_rev > {binder.bind(position.rev, 'integer')}"
    if excluded_revs:
        excluded = ", ".join(binder.bind(rev, "integer") for rev in excluded_revs)
        changed += f" AND _rev NOT IN ({excluded})"
    stored = changed
    if position.closed_until is not None and aggregation.spec.late_policy != "reopen":
        # Without the late policy `reopen`, closed windows never change. Skip rows whose windows were all closed at
        # `position`.
        last_closed_start = EPOCH + (position.closed_until - layout.size_ms) * _MS
        stored += f" AND window_start > {binder.bind(last_closed_start, 'timestamp')}"
    range_sql = f"SELECT min(window_start), max(window_start) FROM {table} WHERE {stored}"
    cursor = await connection.execute(range_sql, binder.values)
    first, last = await cursor.fetchone() or (None, None)
    if first is None:
        return []
    query = _latest_query(aggregation, filters, MAX_CHANGED_WINDOWS)
    text = _changed_sql(query, state, binder, changed, first, last)
    cursor = await connection.execute(text, binder.values)
    rows = await cursor.fetchall()
    return None if len(rows) > MAX_CHANGED_WINDOWS else await _records(query, rows)


async def _records(query: AggregateQuery, rows: Sequence[tuple[Any, ...]]) -> list[Row]:
    encoder = RowEncoder(query.columns)
    return await run_encoder(query.columns, rows, lambda: [encoder.record(row) for row in rows])


def _changed_sql(
    query: AggregateQuery, state: AggregationState, binder: Binder, changed: str, first: dt.datetime, last: dt.datetime
) -> str:
    aggregation, layout = query.model, query.model.layout
    pane_offset = layout.last_pane_offset_ms * _MS
    conditions = [condition(column_filter, binder) for column_filter in query.filters]
    low, high = binder.bind(first - pane_offset, "timestamp"), binder.bind(last + pane_offset, "timestamp")
    newest = binder.bind(last, "timestamp")
    stored = " AND ".join([f"window_start >= {low}", f"window_start <= {high}", *conditions])
    closed = "false"
    if state.closed_until is not None:
        closed = f"{layout.end_sql} <= {binder.bind(state.closed_until, 'timestamp')}"
    columns = [
        *(quote(name) for name in aggregation.groups),
        "window_start",
        f"{layout.end_sql} AS window_end",
        f"{closed} AS closed",
        *(f"{expression} AS {quote(name)}" for name, _, expression in answer_columns(layout)),
    ]
    source = window_source(aggregation.table, layout, stored, first=low, last=newest, include_joined=True)
    return (
        f"SELECT {', '.join(columns)} FROM {source} WHERE {changed}"
        f" AND window_start <= {newest} ORDER BY window_start LIMIT {MAX_CHANGED_WINDOWS + 1}"
    )
