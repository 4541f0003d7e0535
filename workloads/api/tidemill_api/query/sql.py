"""Writes the SQL of a query over windows of an aggregation."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from tidemill_api.query.aggregate import MAX_FILL_ROWS, AggregateQuery
from tidemill_api.query.buckets import Bucket
from tidemill_api.query.selection import Binder, condition
from tidemill_api.query.values import EPOCH
from tidemill_contract.decimals import DECIMAL, base_type
from tidemill_contract.functions.partials import SQL_TYPES, internal_partial, quote, rollup_select
from tidemill_contract.functions.registry import ZERO_FILLED
from tidemill_contract.grids import FIRST_YEAR, YEARS_AHEAD, grid_sql
from tidemill_contract.times import epoch_ms
from tidemill_contract.windows import window_source

_MILLISECOND, _YEAR_MS = dt.timedelta(milliseconds=1), 365 * 86_400_000
_LATEST = dt.datetime.max.replace(tzinfo=dt.UTC) - _MILLISECOND
_LAST_END = "timestamptz '9999-12-31T23:59:59.999999Z'"
"""The latest time that RFC 3339 can express."""
_STAND_INS = {"string": "''", "integer": "0", "number": "0", "boolean": "false", "timestamp": "'epoch'", DECIMAL: "0"}


def narrow_to_cursor(query: AggregateQuery) -> AggregateQuery:
    """Return the query with its time range limited to the rows after the cursor."""
    page = query.page
    if page.after is None or page.order[0].column.name != "window_start" or query.fill != "none":
        return query
    if query.bucket is not None and query.bucket.grid is None:
        return query
    cursor_time = page.after[0]
    if page.order[0].descending:
        until = min(cursor_time, _LATEST) + _MILLISECOND
        return replace(query, until=until if query.until is None else min(query.until, until))
    return replace(query, since=cursor_time if query.since is None else max(query.since, cursor_time))


def horizon_sql(query: AggregateQuery, binder: Binder) -> str | None:
    """Return SQL for the limit of a page of hopping windows. Without a limit, return None.

    On an ascending page, the limit is the latest possible `window_start`. On a descending page, the limit is the
    earliest possible `window_start`.
    """
    page, layout = query.page, query.model.layout
    first = page.order[0]
    if not (layout.is_hopping and query.without_roll_up) or first.column.name != "window_start":
        return None
    if query.having or query.closed is not None or query.fill != "none":
        return None
    stored = [*_stored_conditions(query, binder, reach_ms=0), "_after = '-infinity'"]
    # Do not count windows whose `window_start` equals the cursor's. The previous page may contain them.
    if page.after is not None:
        stored.append(f"window_start {'<' if first.descending else '>'} {binder.bind(page.after[0], 'timestamp')}")
    direction = " DESC" if first.descending else ""
    return (
        f"SELECT window_start FROM {query.model.table} WHERE {' AND '.join(stored)}"
        f" ORDER BY window_start{direction} OFFSET {page.limit + 1} LIMIT 1"
    )


def limit_to_horizon(query: AggregateQuery, horizon: dt.datetime | None) -> AggregateQuery:
    """Return the query without times that come after `horizon` in the page's order.

    If `horizon` is None, return the same query.
    """
    if horizon is None:
        return query
    if query.page.order[0].descending:
        return replace(query, since=horizon)
    return replace(query, until=horizon + _MILLISECOND)


def _time_conditions(query: AggregateQuery, binder: Binder, *, reach_ms: int) -> list[str]:
    bounds = []
    if query.since is not None:
        bounds.append(f"window_start >= {binder.bind(query.since, 'timestamp')}")
    if query.until is not None:
        until = binder.bind(query.until, "timestamp")
        bounds.append(f"window_start < {until} + interval '{reach_ms} milliseconds'")
    return bounds


def _stored_conditions(query: AggregateQuery, binder: Binder, *, reach_ms: int) -> list[str]:
    times = _time_conditions(query, binder, reach_ms=reach_ms)
    return times + [condition(column_filter, binder) for column_filter in query.filters]


def _and_sql(conditions: Sequence[str]) -> str:
    return " AND ".join(conditions) or "true"


def statement(query: AggregateQuery, binder: Binder, closed_until: dt.datetime | None) -> str:
    """Return the SELECT of a query, with the columns of `query.columns`."""
    merged = _merged_select(query, binder)
    metrics = [f"{query.model.metrics[name][1]} AS {quote(name)}" for name in query.metrics]
    having_columns = dict.fromkeys(having.column for having in query.having)
    hidden = [f"{query.model.metrics[name][1]} AS {quote('_having_' + name)}" for name in having_columns]
    groups = [quote(name) for name in query.group_by]
    selected = ", ".join([*groups, "window_start", "window_end", *metrics, *hidden])
    relation = f"SELECT {selected} FROM ({merged}) AS m"
    if query.fill != "none":
        relation = _filled_select(query, binder, relation)
    closed = _closed_sql(query, binder, closed_until)
    columns = ", ".join([
        *groups, "window_start", "window_end", f"{closed} AS closed", *(quote(name) for name in query.metrics),
    ])  # fmt: skip
    conditions = [condition(having, binder, quote("_having_" + having.column)) for having in query.having]
    if query.closed is not None:
        conditions.append(closed if query.closed else f"NOT {closed}")
    conditions.append(query.page.keyset_condition(binder))
    return f"SELECT {columns} FROM ({relation}) AS q WHERE {_and_sql(conditions)} {query.page.order_and_limit_sql()}"


def _closed_sql(query: AggregateQuery, binder: Binder, closed_until: dt.datetime | None) -> str:
    if closed_until is None:
        return "false"
    layout = query.model.layout
    if query.bucket is not None and layout.is_hopping:
        # The last hopping window that overlaps a bucket closes the bucket.
        until_ms = layout.grid.shift(epoch_ms(closed_until), 1 - layout.panes)
        closed_until = EPOCH + until_ms * _MILLISECOND
    return f"(window_end <= {binder.bind(closed_until, 'timestamp')})"


def _year_range(query: AggregateQuery) -> tuple[int, int]:
    first = FIRST_YEAR if query.since is None else query.since.year
    last = dt.datetime.now(dt.UTC).year + YEARS_AHEAD
    if query.fill == "none":
        first, last = max(first, FIRST_YEAR), last if query.until is None else min(last, query.until.year)
    elif query.until is not None:
        last = query.until.year
    return first, max(first, last)


def _merged_select(query: AggregateQuery, binder: Binder) -> str:
    model, layout = query.model, query.model.layout
    columns = ", ".join([*(quote(name) for name in query.group_by), "window_start"])
    partials = ", ".join(quote(partial.column) for partial in layout.merge_columns)
    if query.bucket is not None:
        return _bucketed_select(query, binder, query.bucket, partials)
    stored = _and_sql(_stored_conditions(query, binder, reach_ms=layout.last_pane_offset_ms))
    in_range = _and_sql(_time_conditions(query, binder, reach_ms=0))
    first, last = (None if time is None else binder.bind(time, "timestamp") for time in (query.since, query.until))
    source = (
        f"(SELECT * FROM {window_source(model.table, layout, stored, first=first, last=last)} WHERE {in_range}) AS s"
    )
    end = layout.end_sql if layout.has_sessions else f"{layout.end_sql} AS window_end"
    if query.without_roll_up:
        return f"SELECT {columns}, {end}, {partials} FROM {source}"
    keys = [(quote(name), name) for name in query.group_by] + [("window_start", "window_start")]
    rolled_up = rollup_select(layout.merge_columns, source, keys)
    return f"SELECT {columns}, {end}, {partials} FROM ({rolled_up}) AS g"


def _bucketed_select(query: AggregateQuery, binder: Binder, bucket: Bucket, partials: str) -> str:
    """Return a SELECT that combines stored rows into buckets."""
    model, layout = query.model, query.model.layout
    groups = [quote(name) for name in query.group_by]
    stored = _and_sql(_stored_conditions(query, binder, reach_ms=bucket.reach_ms))
    edges = internal_partial("min", "start", "timestamptz"), internal_partial("max", "start", "timestamptz")
    edge_columns = [f"window_start AS {quote(edge.column)}" for edge in edges]
    selected = ", ".join([*groups, "window_start", *edge_columns, *layout.select_columns])
    source = f"(SELECT {selected} FROM {model.table} WHERE {stored}) AS s"
    keys = [(quote(name), name) for name in query.group_by]
    if bucket.grid is not None:
        grid = grid_sql(bucket.grid, _year_range(query))
        keys.append((grid.start("window_start"), "window_start"))
        rolled_up = rollup_select(layout.merge_columns, source, keys)
        selected = ", ".join([*groups, "window_start", f"{grid.end('window_start')} AS window_end", partials])
        return (
            f"SELECT {selected} FROM ({rolled_up}) AS g WHERE {_and_sql(_time_conditions(query, binder, reach_ms=0))}"
        )
    rolled_up = rollup_select([*layout.merge_columns, *edges], source, keys)
    start = binder.bind(query.since, "timestamp") if query.since else quote(edges[0].column)
    last = grid_sql(layout.grid).shift(quote(edges[1].column), 1)
    end = binder.bind(query.until, "timestamp") if query.until else last
    selected = ", ".join([*groups, f"{start} AS window_start", f"{end} AS window_end", partials])
    # Without GROUP BY, Postgres returns one row of nulls even if there are no windows.
    return f'SELECT {selected} FROM ({rolled_up}) AS g WHERE "_count" IS NOT NULL'


def _filled_select(query: AggregateQuery, binder: Binder, relation: str) -> str:
    since, until = binder.bind(query.since, "timestamp"), binder.bind(query.until, "timestamp")
    times = _times_select(query, since, until)
    groups = [(quote(name), query.model.groups[name].kind) for name in query.group_by]
    distinct = _groups_select(query)
    same_group = "".join(f" AND {_equal_sql(f'g.{column}', f'd.{column}', kind)}" for column, kind in groups)
    selected = [*(f"g.{column}" for column, _ in groups), "t.start AS window_start", "t.finish AS window_end"]
    selected += [_filled_column(query, name) for name in query.metrics]
    return (
        f"WITH d AS MATERIALIZED ({relation}), t AS ({times}), g AS ({distinct})"
        f" SELECT {', '.join(selected)} FROM g CROSS JOIN t LEFT JOIN d ON d.window_start = t.start{same_group}"
        # return no rows if there are too many groups
        f" WHERE (SELECT count(*) FROM g) <= {MAX_FILL_ROWS // max(1, query.windows_per_group)}"
    )


def _times_select(query: AggregateQuery, since: str, until: str) -> str:
    if query.bucket is not None and query.bucket.grid is not None:
        grid = grid_sql(query.bucket.grid, _year_range(query))
        end = grid.end("start")
    else:
        layout, (first, last) = query.model.layout, _year_range(query)
        grid = grid_sql(layout.grid, (first, last + layout.size_ms // _YEAR_MS + 1))
        end = grid.shift("start", layout.panes)
    return f"SELECT start, {end} AS finish FROM ({grid.series(since, until)}) AS s WHERE {end} <= {_LAST_END}"


def count_groups_sql(query: AggregateQuery, binder: Binder) -> str:
    """Return a SELECT that counts groups. `fill` adds the missing windows of each group."""
    merged = _merged_select(query, binder)
    return f"WITH d AS ({merged}), g AS ({_groups_select(query)}) SELECT count(*) FROM g"


def _groups_select(query: AggregateQuery) -> str:
    return f"SELECT DISTINCT {', '.join(map(quote, query.group_by))} FROM d" if query.group_by else "SELECT"


def _equal_sql(one: str, other: str, kind: str) -> str:
    """Return SQL that compares two columns of the type `kind`, and treats two nulls as equal."""
    # Postgres cannot use a hash join for IS NOT DISTINCT FROM.
    stand_in = f"{_STAND_INS[base_type(kind)]}::{SQL_TYPES[kind]}"
    return f"({one} IS NULL) = ({other} IS NULL) AND coalesce({one}, {stand_in}) = coalesce({other}, {stand_in})"


def _filled_column(query: AggregateQuery, name: str) -> str:
    column, (metric, _) = quote(name), query.model.metrics[name]
    if query.fill != "zero" or query.model.functions[name] not in ZERO_FILLED:
        return f"d.{column}"
    zero = "0" if metric.decode is None else "''::bytea"
    return f"CASE WHEN d.window_start IS NULL THEN {zero} ELSE d.{column} END AS {column}"


def row_dict(query: AggregateQuery, values: Sequence[Any]) -> dict[str, Any]:
    """Return the database values of a row by column name."""
    return dict(zip((column.name for column in query.columns), values, strict=True))
