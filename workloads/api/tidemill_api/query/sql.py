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
from tidemill_contract.decimals import DECIMAL, family
from tidemill_contract.functions.partials import SQL_TYPES, own_partial, quote, rollup_select
from tidemill_contract.functions.registry import ZERO_FILLED
from tidemill_contract.grids import FIRST_YEAR, YEARS_AHEAD, grid_sql
from tidemill_contract.times import epoch_ms
from tidemill_contract.windows import window_source

_MILLISECOND, _YEAR_MS = dt.timedelta(milliseconds=1), 365 * 86_400_000
_LATEST = dt.datetime.max.replace(tzinfo=dt.UTC) - _MILLISECOND
_LAST_END = "timestamptz '9999-12-31T23:59:59.999999Z'"
"""The latest time that RFC 3339 can express."""
_STAND_INS = {"string": "''", "integer": "0", "number": "0", "boolean": "false", "timestamp": "'epoch'", DECIMAL: "0"}


def narrowed(query: AggregateQuery) -> AggregateQuery:
    """Return the query with its time range limited to the rows after the cursor."""
    page = query.page
    if page.after is None or page.order[0].column.name != "window_start" or query.fill != "none":
        return query
    if query.bucket is not None and query.bucket.grid is None:
        return query
    at = page.after[0]
    if page.order[0].descending:
        until = min(at, _LATEST) + _MILLISECOND
        return replace(query, until=until if query.until is None else min(query.until, until))
    return replace(query, since=at if query.since is None else max(query.since, at))


def horizon_sql(query: AggregateQuery, binder: Binder) -> str | None:
    """Return SQL for the limit of a page of hopping windows. Without a limit, return None.

    On an ascending page, the limit is the latest possible `window_start`. On a descending page, the limit is the
    earliest possible `window_start`.
    """
    page, plan = query.page, query.model.layout
    first = page.order[0]
    if not (plan.hopping and query.natural) or first.column.name != "window_start":
        return None
    if query.having or query.closed is not None or query.fill != "none":
        return None
    stored = [*_bounds(query, binder, reach_ms=0), *_dimension_filters(query, binder), "_after = '-infinity'"]
    # Do not count windows whose `window_start` equals the cursor's. The previous page may contain them.
    if page.after is not None:
        stored.append(f"window_start {'<' if first.descending else '>'} {binder.bind(page.after[0], 'timestamp')}")
    direction = " DESC" if first.descending else ""
    return (
        f"SELECT window_start FROM {query.model.table} WHERE {' AND '.join(stored)}"
        f" ORDER BY window_start{direction} OFFSET {page.limit + 1} LIMIT 1"
    )


def within(query: AggregateQuery, horizon: dt.datetime | None) -> AggregateQuery:
    """Return the query without times that come after `horizon` in the page's order.

    If `horizon` is None, return the same query.
    """
    if horizon is None:
        return query
    if query.page.order[0].descending:
        return replace(query, since=horizon)
    return replace(query, until=horizon + _MILLISECOND)


def _bounds(query: AggregateQuery, binder: Binder, *, reach_ms: int) -> list[str]:
    bounds = []
    if query.since is not None:
        bounds.append(f"window_start >= {binder.bind(query.since, 'timestamp')}")
    if query.until is not None:
        until = binder.bind(query.until, "timestamp")
        bounds.append(f"window_start < {until} + interval '{reach_ms} milliseconds'")
    return bounds


def _dimension_filters(query: AggregateQuery, binder: Binder) -> list[str]:
    return [condition(wanted, binder) for wanted in query.filters]


def _all(conditions: Sequence[str]) -> str:
    return " AND ".join(conditions) or "true"


def statement(query: AggregateQuery, binder: Binder, closed_until: dt.datetime | None) -> str:
    """Return the SELECT of a query, with the columns of `query.columns`."""
    merged = _merged(query, binder)
    metrics = [f"{query.model.metrics[name][1]} AS {quote(name)}" for name in query.metrics]
    compared = dict.fromkeys(wanted.column for wanted in query.having)
    hidden = [f"{query.model.metrics[name][1]} AS {quote('_having_' + name)}" for name in compared]
    groups = [quote(name) for name in query.group_by]
    answers = ", ".join([*groups, "window_start", "window_end", *metrics, *hidden])
    relation = f"SELECT {answers} FROM ({merged}) AS m"
    if query.fill != "none":
        relation = _filled(query, binder, relation)
    closed = _closed_sql(query, binder, closed_until)
    shown = ", ".join([
        *groups, "window_start", "window_end", f"{closed} AS closed", *(quote(name) for name in query.metrics),
    ])  # fmt: skip
    wanted = [condition(having, binder, quote("_having_" + having.column)) for having in query.having]
    if query.closed is not None:
        wanted.append(closed if query.closed else f"NOT {closed}")
    wanted.append(query.page.keyset(binder))
    return f"SELECT {shown} FROM ({relation}) AS q WHERE {_all(wanted)} {query.page.sql()}"


def _closed_sql(query: AggregateQuery, binder: Binder, closed_until: dt.datetime | None) -> str:
    if closed_until is None:
        return "false"
    plan = query.model.layout
    if query.bucket is not None and plan.hopping:
        # The last hopping window that overlaps a bucket closes the bucket.
        until_ms = plan.grid.shift(epoch_ms(closed_until), 1 - plan.panes)
        closed_until = EPOCH + until_ms * _MILLISECOND
    return f"(window_end <= {binder.bind(closed_until, 'timestamp')})"


def _years(query: AggregateQuery) -> tuple[int, int]:
    first = FIRST_YEAR if query.since is None else query.since.year
    last = dt.datetime.now(dt.UTC).year + YEARS_AHEAD
    if query.fill == "none":
        first, last = max(first, FIRST_YEAR), last if query.until is None else min(last, query.until.year)
    elif query.until is not None:
        last = query.until.year
    return first, max(first, last)


def _merged(query: AggregateQuery, binder: Binder) -> str:
    model, plan = query.model, query.model.layout
    columns = ", ".join([*(quote(name) for name in query.group_by), "window_start"])
    partials = ", ".join(quote(partial.column) for partial in plan.merged)
    if query.bucket is not None:
        return _bucketed(query, binder, query.bucket, partials)
    stored = _all([*_bounds(query, binder, reach_ms=plan.spread_ms), *_dimension_filters(query, binder)])
    whole = _all(_bounds(query, binder, reach_ms=0))
    first, last = (None if time is None else binder.bind(time, "timestamp") for time in (query.since, query.until))
    source = f"(SELECT * FROM {window_source(model.table, plan, stored, first=first, last=last)} WHERE {whole}) AS s"
    end = plan.end_sql if plan.sessions else f"{plan.end_sql} AS window_end"
    if query.natural:
        return f"SELECT {columns}, {end}, {partials} FROM {source}"
    keys = [(quote(name), name) for name in query.group_by] + [("window_start", "window_start")]
    rolled = rollup_select(plan.merged, source, keys)
    return f"SELECT {columns}, {end}, {partials} FROM ({rolled}) AS g"


def _bucketed(query: AggregateQuery, binder: Binder, bucket: Bucket, partials: str) -> str:
    """Return a SELECT that combines stored rows into buckets."""
    model, plan = query.model, query.model.layout
    groups = [quote(name) for name in query.group_by]
    stored = _all([*_bounds(query, binder, reach_ms=bucket.reach_ms), *_dimension_filters(query, binder)])
    edges = own_partial("min", "start", "timestamptz"), own_partial("max", "start", "timestamptz")
    both = [f"window_start AS {quote(edge.column)}" for edge in edges]
    listed = ", ".join([*groups, "window_start", *both, *plan.stored])
    source = f"(SELECT {listed} FROM {model.table} WHERE {stored}) AS s"
    keys = [(quote(name), name) for name in query.group_by]
    if bucket.grid is not None:
        cut = grid_sql(bucket.grid, _years(query))
        keys.append((cut.start("window_start"), "window_start"))
        rolled = rollup_select(plan.merged, source, keys)
        listed = ", ".join([*groups, "window_start", f"{cut.end('window_start')} AS window_end", partials])
        return f"SELECT {listed} FROM ({rolled}) AS g WHERE {_all(_bounds(query, binder, reach_ms=0))}"
    rolled = rollup_select([*plan.merged, *edges], source, keys)
    start = binder.bind(query.since, "timestamp") if query.since else quote(edges[0].column)
    last = grid_sql(plan.grid).shift(quote(edges[1].column), 1)
    end = binder.bind(query.until, "timestamp") if query.until else last
    listed = ", ".join([*groups, f"{start} AS window_start", f"{end} AS window_end", partials])
    # Without GROUP BY, Postgres returns one row of nulls even if there are no windows.
    return f'SELECT {listed} FROM ({rolled}) AS g WHERE "_count" IS NOT NULL'


def _filled(query: AggregateQuery, binder: Binder, relation: str) -> str:
    since, until = binder.bind(query.since, "timestamp"), binder.bind(query.until, "timestamp")
    times = _times(query, since, until)
    groups = [(quote(name), query.model.groups[name].kind) for name in query.group_by]
    distinct = _distinct(query)
    same = [f" AND {_same(f'g.{column}', f'd.{column}', kind)}" for column, kind in groups]
    listed = [*(f"g.{column}" for column, _ in groups), "t.start AS window_start", "t.finish AS window_end"]
    listed += [_filling(query, name) for name in query.metrics]
    return (
        f"WITH d AS MATERIALIZED ({relation}), t AS ({times}), g AS ({distinct})"
        f" SELECT {', '.join(listed)} FROM g CROSS JOIN t LEFT JOIN d ON d.window_start = t.start{''.join(same)}"
        # return no rows if there are too many groups
        f" WHERE (SELECT count(*) FROM g) <= {MAX_FILL_ROWS // max(1, query.fill_points)}"
    )


def _times(query: AggregateQuery, since: str, until: str) -> str:
    if query.bucket is not None and query.bucket.grid is not None:
        cut = grid_sql(query.bucket.grid, _years(query))
        end = cut.end("start")
    else:
        plan, (first, last) = query.model.layout, _years(query)
        cut = grid_sql(plan.grid, (first, last + plan.size_ms // _YEAR_MS + 1))
        end = cut.shift("start", plan.panes)
    return f"SELECT start, {end} AS finish FROM ({cut.series(since, until)}) AS s WHERE {end} <= {_LAST_END}"


def filled_groups_sql(query: AggregateQuery, binder: Binder) -> str:
    """Return a SELECT that counts groups. `fill` adds the missing windows of each group."""
    merged = _merged(query, binder)
    return f"WITH d AS ({merged}), g AS ({_distinct(query)}) SELECT count(*) FROM g"


def _distinct(query: AggregateQuery) -> str:
    return f"SELECT DISTINCT {', '.join(map(quote, query.group_by))} FROM d" if query.group_by else "SELECT"


def _same(one: str, other: str, kind: str) -> str:
    """Return SQL that compares two columns of the type `kind`, and treats two nulls as equal."""
    # Postgres cannot use a hash join for IS NOT DISTINCT FROM.
    stand_in = f"{_STAND_INS[family(kind)]}::{SQL_TYPES[kind]}"
    return f"({one} IS NULL) = ({other} IS NULL) AND coalesce({one}, {stand_in}) = coalesce({other}, {stand_in})"


def _filling(query: AggregateQuery, name: str) -> str:
    column, (metric, _) = quote(name), query.model.metrics[name]
    if query.fill != "zero" or query.model.functions[name] not in ZERO_FILLED:
        return f"d.{column}"
    zero = "0" if metric.decode is None else "''::bytea"
    return f"CASE WHEN d.window_start IS NULL THEN {zero} ELSE d.{column} END AS {column}"


def row_of(query: AggregateQuery, values: Sequence[Any]) -> dict[str, Any]:
    """Return the database values of a row by column name."""
    return dict(zip((column.name for column in query.columns), values, strict=True))
