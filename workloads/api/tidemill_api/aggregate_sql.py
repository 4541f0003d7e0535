"""The SQL of a query over an aggregation.

Stored rows → windows (or buckets of panes) → fewer groups → answers → filters, order, page.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from tidemill_api.aggregate_query import AggregateQuery
from tidemill_api.buckets import DAY_MS, Bucket
from tidemill_api.selection import Binder, condition
from tidemill_contract.partials import own_partial, quote, rollup_select
from tidemill_contract.windows import window_source

_MILLISECOND = dt.timedelta(milliseconds=1)
_LATEST = dt.datetime.max.replace(tzinfo=dt.UTC) - _MILLISECOND


def narrowed(query: AggregateQuery) -> AggregateQuery:
    """The query with the range that its cursor leaves, so that a later page reads less."""
    page = query.page
    if page.after is None or page.order[0].column.name != "window_start" or query.fill != "none":
        return query
    if query.bucket is not None and query.bucket.length_ms is None:
        return query
    at = page.after[0]
    if page.order[0].descending:
        until = min(at, _LATEST) + _MILLISECOND
        return replace(query, until=until if query.until is None else min(query.until, until))
    return replace(query, since=at if query.since is None else max(query.since, at))


def horizon_sql(query: AggregateQuery, binder: Binder) -> str | None:
    """SQL that gives the start of the pane up to which a page of hopping windows is surely full; None: not needed.

    Each (group, pane) stored is also a window that starts there, so the page needs no window beyond the pane of its
    last row, and nothing beyond that is composed.
    """
    page, plan = query.page, query.model.layout
    first = page.order[0]
    if not (plan.hopping and query.natural) or first.column.name != "window_start":
        return None
    if query.having or query.closed is not None or query.fill != "none":
        return None
    stored = [*_bounds(query, binder, reach_ms=0), *_dimension_filters(query, binder), "_after = '-infinity'"]
    # Rows at the cursor's own window_start may all lie before the cursor: skip them.
    if page.after is not None:
        stored.append(f"window_start {'<' if first.descending else '>'} {binder.bind(page.after[0], 'timestamp')}")
    direction = " DESC" if first.descending else ""
    return (
        f"SELECT window_start FROM {query.model.table} WHERE {' AND '.join(stored)}"
        f" ORDER BY window_start{direction} OFFSET {page.limit + 1} LIMIT 1"
    )


def within(query: AggregateQuery, horizon: dt.datetime | None) -> AggregateQuery:
    """The query that stops at its horizon."""
    if horizon is None:
        return query
    if query.page.order[0].descending:
        return replace(query, since=horizon)
    return replace(query, until=horizon + _MILLISECOND)


def _bounds(query: AggregateQuery, binder: Binder, *, reach_ms: int) -> list[str]:
    """Conditions on window_start; the upper one `reach_ms` later."""
    found = []
    if query.since is not None:
        found.append(f"window_start >= {binder.bind(query.since, 'timestamp')}")
    if query.until is not None:
        until = binder.bind(query.until, "timestamp")
        found.append(f"window_start < {until} + interval '{reach_ms} milliseconds'")
    return found


def _dimension_filters(query: AggregateQuery, binder: Binder) -> list[str]:
    return [condition(wanted, binder) for wanted in query.filters]


def _all(conditions: Sequence[str]) -> str:
    return " AND ".join(conditions) or "true"


def statement(query: AggregateQuery, binder: Binder, closed_until: dt.datetime | None) -> str:
    """The SELECT of a query; its columns are `query.columns`, in their order."""
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
    # A pane takes events until the last window that holds it is closed.
    slack = 0 if query.bucket is None else plan.spread_ms
    until = binder.bind(closed_until, "timestamp")
    return f"(window_end + interval '{slack} milliseconds' <= {until})"


def _merged(query: AggregateQuery, binder: Binder) -> str:
    """A SELECT of groups, window_start, window_end and merged partials."""
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
    """Stored rows rolled up over time; for hopping windows these are panes, which overlap nowhere."""
    model, plan = query.model, query.model.layout
    groups = [quote(name) for name in query.group_by]
    stored = _all([*_bounds(query, binder, reach_ms=bucket.reach_ms), *_dimension_filters(query, binder)])
    edges = own_partial("min", "start", "timestamptz"), own_partial("max", "start", "timestamptz")
    both = [f"window_start AS {quote(edge.column)}" for edge in edges]
    listed = ", ".join([*groups, "window_start", *both, *plan.stored])
    source = f"(SELECT {listed} FROM {model.table} WHERE {stored}) AS s"
    keys = [(quote(name), name) for name in query.group_by]
    if bucket.length_ms is not None:
        keys.append((bucket.start_sql("window_start"), "window_start"))
        rolled = rollup_select(plan.merged, source, keys)
        listed = ", ".join([*groups, "window_start", f"{bucket.end_sql('window_start')} AS window_end", partials])
        return f"SELECT {listed} FROM ({rolled}) AS g WHERE {_all(_bounds(query, binder, reach_ms=0))}"
    rolled = rollup_select([*plan.merged, *edges], source, keys)
    pane = f"interval '{plan.pane_ms} milliseconds'"
    start = binder.bind(query.since, "timestamp") if query.since else quote(edges[0].column)
    end = binder.bind(query.until, "timestamp") if query.until else f"{quote(edges[1].column)} + {pane}"
    listed = ", ".join([*groups, f"{start} AS window_start", f"{end} AS window_end", partials])
    # Without keys an aggregate over nothing is one row of nulls: no window at all.
    return f'SELECT {listed} FROM ({rolled}) AS g WHERE "_count" IS NOT NULL'


def _filled(query: AggregateQuery, binder: Binder, relation: str) -> str:
    """The relation with a row for every group that it has and every window between `from` and `to`."""
    bucket = query.bucket or Bucket(query.model.layout.pane_ms)
    since, until = binder.bind(query.since, "timestamp"), binder.bind(query.until, "timestamp")
    size = query.model.layout.size_ms
    end = bucket.end_sql("start") if query.bucket else f"start + interval '{size} milliseconds'"
    series = _series(bucket, since, until)
    times = f"SELECT start, {end} AS finish FROM ({series}) AS s WHERE start >= {since} AND start < {until}"
    groups = [quote(name) for name in query.group_by]
    distinct = f"SELECT DISTINCT {', '.join(groups)} FROM d" if groups else "SELECT"
    # Null-safe equality that can be hashed, which IS NOT DISTINCT FROM cannot.
    same = [
        f"(g.{c} IS NULL) = (d.{c} IS NULL) AND coalesce(g.{c}::text, '') = coalesce(d.{c}::text, '')" for c in groups
    ]
    listed = [*(f"g.{c}" for c in groups), "t.start AS window_start", "t.finish AS window_end"]
    for name in query.metrics:
        column, metric = quote(name), query.model.metrics[name][0]
        zero = "0" if metric.decode is None else "''::bytea"
        listed.append(
            f"CASE WHEN d.window_start IS NULL THEN {zero} ELSE d.{column} END AS {column}"
            if query.fill == "zero" and metric.kind in ("integer", "number")
            else f"d.{column}"
        )
    return (
        f"WITH d AS MATERIALIZED ({relation}), t AS ({times}), g AS ({distinct})"
        f" SELECT {', '.join(listed)} FROM g CROSS JOIN t"
        f" LEFT JOIN d ON d.window_start = t.start{''.join(' AND ' + s for s in same)}"
    )


def _series(bucket: Bucket, since: str, until: str) -> str:
    if bucket.zone:
        days = f"interval '{(bucket.length_ms or DAY_MS) // DAY_MS} days'"
        first = f"date_bin({days}, {since} AT TIME ZONE '{bucket.zone}', timestamp 'epoch')"
        last = f"{until} AT TIME ZONE '{bucket.zone}'"
        return f"SELECT n AT TIME ZONE '{bucket.zone}' AS start FROM generate_series({first}, {last}, {days}) AS n"
    return (
        f"SELECT n AS start FROM generate_series({bucket.start_sql(since)}, {until},"
        f" interval '{bucket.length_ms} milliseconds') AS n"
    )


def row_of(query: AggregateQuery, values: Sequence[Any]) -> dict[str, Any]:
    """A row's values by column name."""
    return dict(zip((column.name for column in query.columns), values, strict=True))
