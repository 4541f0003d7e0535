"""Session windows. A session consists of events of one group.

Successive events of a session follow each other within the gap. An event within a closed session is
late. An event that joins no open session is late if its own session would already be closed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import polars as pl
import psycopg

from tidemill_contract.functions.partials import (
    REVISION,
    AggregationLayout,
    own_partial,
    quote,
    rollup_select,
)
from tidemill_contract.tables.definition import from_ms, to_ms
from tidemill_processor.batches.batch import INDEX, TIME
from tidemill_processor.database import AggregationStore, Database
from tidemill_processor.merge import transit
from tidemill_processor.merge.aggregate import END, PANE, Aggregated, partials, reopening, revised

_START, _LAST = own_partial("min", "start", "bigint"), own_partial("max", "end", "bigint")
_SINCE = own_partial("min", "since", "bigint")
SINCE, OLD = _SINCE.column, "_old"

_JOINS, _COVERED, _SESSION = "_joins", "_covered", "_session"

Standing = Callable[[pl.DataFrame], pl.DataFrame]
"""A function that returns whether each event joins an open session, and whether the event is within a closed
session.
"""


def aggregate_sessions(
    frame: pl.DataFrame,
    plan: AggregationLayout,
    *,
    closed_until: int | None,
    epochs: dict[int, int],
    standing: Standing,
) -> Aggregated:
    """Return the partial sessions of a frame, with `_pane` and `_end_ms` as start and end (epoch ms).

    Args:
        frame: valid events.
        plan: the aggregation's layout.
        closed_until: the time (epoch ms) up to which windows are closed, or None if no window is closed.
        epochs: the epoch of each partition, which decides the order for `first` and `last` if the topic was deleted and
            created again.
        standing: a function that compares possibly late events with the stored sessions.
    """
    assert plan.gap_ms is not None  # noqa: S101 - for the type checker
    cut = (pl.col(TIME) // plan.size_ms + 1) * plan.size_ms
    frame = frame.with_columns(pl.min_horizontal(pl.col(TIME) + plan.gap_ms, cut).alias(END))
    nothing_late = frame.select(INDEX, TIME, pl.col(TIME).alias(PANE)).clear()
    shut = plan.shut(closed_until)
    ended = pl.lit(False) if shut is None else pl.col(END) <= shut
    doubt = frame.filter(ended)
    if not doubt.height:
        return _aggregated(_numbered(frame, plan), plan, closed_until, epochs, late=nothing_late)
    verdicts = standing(doubt)
    frame = frame.join(verdicts, on=INDEX, how="left", maintain_order="left")
    covered = pl.col(_COVERED).fill_null(False)
    rest = _numbered(frame.filter(~covered), plan)
    alive = (~ended | pl.col(_JOINS).fill_null(False)).any().over([*_groups(plan), _SESSION])
    late = pl.concat([frame.filter(covered), rest.filter(~alive).select(frame.columns)])
    late = late.sort(INDEX).select(INDEX, TIME, pl.col(TIME).alias(PANE))
    return _aggregated(rest.filter(alive), plan, closed_until, epochs, late=late, doubtful=True)


def _groups(plan: AggregationLayout) -> list[str]:
    return [name for name, _ in plan.group_by]


def _numbered(frame: pl.DataFrame, plan: AggregationLayout) -> pl.DataFrame:
    groups = _groups(plan)
    frame = frame.sort([*groups, TIME], maintain_order=True)
    # Without a further event, a session ends at `_end_ms`. If the next event is earlier, the session continues.
    fresh = pl.col(TIME) >= pl.col(END).shift(1)
    for name in groups:
        fresh = fresh | pl.col(name).ne_missing(pl.col(name).shift(1))
    return frame.with_columns(fresh.fill_null(True).cum_sum().alias(_SESSION))


def _aggregated(
    frame: pl.DataFrame, plan: AggregationLayout, closed_until: int | None, epochs: dict[int, int], **further: Any
) -> Aggregated:
    keys = [*_groups(plan), _SESSION]
    edges = (pl.col(TIME).min().alias(PANE), pl.col(END).max().alias(END))
    rows = partials(frame, plan, keys, epochs, *edges).drop(_SESSION)
    rows = revised(rows, plan, None if closed_until is None else pl.col(END) <= closed_until)
    return Aggregated(rows, reopening=reopening(rows), **further)


class SessionMerger:
    """Merges a batch's sessions into the stored sessions. The caller must hold the aggregation's lock."""

    def __init__(self, database: Database, store: AggregationStore, temp: str) -> None:
        self._store, self._plan = store, store.layout
        self._table, self._temp = database.qualified(store.table), f"pg_temp.{temp}"

    def reopened(self, connection: psycopg.Connection[Any], closed_until: int) -> bool:
        """Return whether the batch changes closed sessions. Call this method after `take_in`."""
        query = f"SELECT 1 FROM {self._temp} WHERE {OLD} AND {END} <= %s LIMIT 1"
        return connection.execute(query, (closed_until,)).fetchone() is not None

    def standing(self, connection: psycopg.Connection[Any], events: pl.DataFrame, shut: int) -> pl.DataFrame:
        """For each event, return two booleans: it joins an open session, and it is within a closed session."""
        closed, rows = from_ms(str(shut)), []
        for nulls, part in _by_nulls(events, self._plan):
            columns = {INDEX: "bigint", TIME: "bigint", END: "bigint"}
            columns |= {name: transit.sent_as(kind).split(" COLLATE")[0] for name, kind in self._plan.group_by}
            arrays = [part[name].to_physical().to_list() for name in columns]
            listed = ", ".join(f"%s::{kind}[]" for kind in columns.values())
            named = ", ".join(quote(name) for name in columns)
            query = (
                f"SELECT b.{INDEX}, bool_or(t.window_end > {closed}),"
                f" bool_or(t.window_end <= {closed} AND t.window_start <= {from_ms(f'b.{TIME}')})"
                f" FROM unnest({listed}) AS b ({named}) JOIN {self._table} AS t ON {self._overlap(nulls, TIME)}"
                f" AND {self._reach(part, TIME)} GROUP BY 1"
            )
            rows += connection.execute(query, arrays).fetchall()
        return pl.DataFrame(
            rows, schema={INDEX: events.schema[INDEX], _JOINS: pl.Boolean, _COVERED: pl.Boolean}, orient="row"
        )

    def take_in(self, connection: psycopg.Connection[Any], rows: pl.DataFrame, closed_until: int | None) -> None:
        """Move stored sessions into the temporary table, if they overlap with the batch and may still change."""
        columns = [*(quote(name) for name, _ in self._plan.group_by), *(quote(p.column) for p in self._plan.partials)]
        taken = [f"t.{column}" for column in ("window_start", "window_end", "_since", *columns)]
        kinds = dict(self._plan.group_by)
        values = [
            *(transit.sent_again(kind, quote(name)) for name, kind in kinds.items()),
            *(to_ms(quote(p.column)) if p.sql_type == "timestamptz" else quote(p.column) for p in self._plan.partials),
        ]
        shut = self._plan.shut(closed_until)
        takes = "true" if shut is None else f"t.window_end > {from_ms(str(shut))}"
        if self._plan.reopen_ms is not None and closed_until is not None:
            closed = f"(window_end <= {from_ms(str(closed_until))})::integer"
            values[-1] = f"coalesce({quote(REVISION)}, 0) + {closed}"  # the last of `values` is the revision
        for nulls, part in _by_nulls(rows, self._plan):
            connection.execute(
                f"WITH gone AS (DELETE FROM {self._table} AS t USING {self._temp} AS b"
                f" WHERE NOT b.{OLD} AND {self._overlap(nulls, PANE)} AND {self._reach(part, PANE)} AND {takes}"
                f" RETURNING {', '.join(taken)})"
                f" INSERT INTO {self._temp} ({PANE}, {END}, {SINCE}, {OLD}, {', '.join(columns)})"
                f" SELECT {to_ms('window_start')}, {to_ms('window_end')}, _since, true, {', '.join(values)} FROM gone"
            )

    def put_sql(self) -> tuple[str, str]:
        """Return the CTEs and the INSERT that merge overlapping sessions and store the merged sessions.

        If a session was merged into an earlier session, the row of the merged session becomes empty. In an empty row,
        the start equals the end.
        """
        plan = self._plan
        groups = [quote(name) for name, _ in plan.group_by]
        by = f"PARTITION BY {', '.join(groups)} " if groups else ""
        order = f"ORDER BY {PANE}, {END}, _place"
        fresh = (
            f"SELECT *, ctid AS _place, CASE WHEN {PANE} < max({END}) OVER ({by}ORDER BY {PANE}, {END}, ctid"
            f" ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING) THEN 0 ELSE 1 END AS _fresh FROM {self._temp}"
        )
        numbered = (
            f"SELECT *, sum(_fresh) OVER ({by}{order} ROWS UNBOUNDED PRECEDING) AS {_SESSION} FROM ({fresh}) AS f"
        )
        within = f"PARTITION BY {', '.join([*groups, _SESSION])}"
        pieces = f"SELECT *, min({PANE}) OVER ({within}) AS _first FROM ({numbered}) AS n"
        edges = [(_START, PANE), (_LAST, END), (_SINCE, SINCE)]
        columns = [quote(p.column) for p in plan.partials]
        renamed = [f"{source} AS {quote(edge.column)}" for edge, source in edges]
        source = f"(SELECT {', '.join([*groups, _SESSION, *renamed, *columns])} FROM pieces) AS p"
        keys = [(group, name) for group, (name, _) in zip(groups, plan.group_by, strict=True)]
        merged = rollup_select([*(edge for edge, _ in edges), *plan.partials], source, [*keys, (_SESSION, _SESSION)])
        shown = [transit.stored(kind, quote(name)) for name, kind in plan.group_by]
        values = [from_ms(quote(p.column)) if p.sql_type == "timestamptz" else quote(p.column) for p in plan.partials]
        first, last, since = (quote(edge.column) for edge, _ in edges)
        into = f"INSERT INTO {self._table} AS t"
        revision = [] if plan.reopen_ms is None else [quote(REVISION)]
        return (
            f"pieces AS MATERIALIZED ({pieces}), vanished AS ("
            f"{into} ({', '.join([*groups, 'window_start', 'window_end', '_rev', '_since', '_count', *revision])})"
            f" SELECT {', '.join([*shown, from_ms(PANE), from_ms(PANE), '%(rev)s', SINCE, '0', *revision])}"
            f" FROM pieces WHERE {OLD} AND {PANE} > _first)",
            f"{into} ({', '.join([*groups, 'window_start', 'window_end', '_rev', '_since', *columns])})"
            f" SELECT {', '.join([*shown, from_ms(first), from_ms(last), '%(rev)s', since, *values])}"
            f" FROM ({merged}) AS m ORDER BY {', '.join([*groups, first])}",
        )

    def _overlap(self, nulls: frozenset[str], start: str) -> str:
        """Return the SQL condition that sessions t and b overlap and have the same group."""
        conditions = [
            f"t.{quote(name)} IS NULL"
            if name in nulls
            else f"t.{quote(name)} = {transit.stored(kind, f'b.{quote(name)}')}"
            for name, kind in self._plan.group_by
        ]
        conditions += [f"b.{quote(name)} IS NULL" for name in nulls]
        conditions += [
            f"t.window_start < {from_ms(f'b.{END}')}", f"t.window_end > {from_ms(f'b.{start}')}",
            "t.window_end > t.window_start",
        ]  # fmt: skip
        return " AND ".join(conditions)

    def _reach(self, rows: pl.DataFrame, start: str) -> str:
        first, last = int(rows[start].min()) - self._plan.size_ms, int(rows[END].max())  # type: ignore[arg-type]
        return f"t.window_start > {from_ms(str(first))} AND t.window_start < {from_ms(str(last))}"


def _by_nulls(rows: pl.DataFrame, plan: AggregationLayout) -> Iterator[tuple[frozenset[str], pl.DataFrame]]:
    groups = _groups(plan)
    if not groups or not any(rows[name].null_count() for name in groups):
        yield frozenset(), rows
        return
    flags = [pl.col(name).is_null().alias(f"_null_{name}") for name in groups]
    marked = rows.with_columns(flags)
    names = [f"_null_{name}" for name in groups]
    for key, part in marked.partition_by(names, as_dict=True).items():
        yield frozenset(name for name, null in zip(groups, key, strict=True) if null), part.drop(names)
