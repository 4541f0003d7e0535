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
    internal_partial,
    quote,
    rollup_select,
)
from tidemill_contract.tables.definition import from_ms, to_ms
from tidemill_processor.batches.batch import INDEX, TIME
from tidemill_processor.database import AggregationStore, Database
from tidemill_processor.merge import group_columns
from tidemill_processor.merge.aggregate import END, PANE, Aggregated, compute_partials, count_reopening, with_revision

_START, _LAST = internal_partial("min", "start", "bigint"), internal_partial("max", "end", "bigint")
_SINCE = internal_partial("min", "since", "bigint")
SINCE, OLD = _SINCE.column, "_old"

_JOINS, _COVERED, _SESSION = "_joins", "_covered", "_session"

SessionCheck = Callable[[pl.DataFrame], pl.DataFrame]
"""A function that returns whether each event joins an open session, and whether the event is within a closed
session.
"""


def aggregate_sessions(
    frame: pl.DataFrame,
    layout: AggregationLayout,
    *,
    closed_until: int | None,
    epochs: dict[int, int],
    check_sessions: SessionCheck,
) -> Aggregated:
    """Return the partial sessions of a frame, with `_pane` and `_end_ms` as start and end (epoch ms).

    Args:
        frame: valid events.
        layout: the aggregation's layout.
        closed_until: the time (epoch ms) up to which windows are closed, or None if no window is closed.
        epochs: the epoch of each partition, which decides the order for `first` and `last` if the topic was deleted and
            created again.
        check_sessions: a function that compares possibly late events with the stored sessions.
    """
    assert layout.gap_ms is not None  # noqa: S101 - for the type checker
    boundary = (pl.col(TIME) // layout.size_ms + 1) * layout.size_ms
    frame = frame.with_columns(pl.min_horizontal(pl.col(TIME) + layout.gap_ms, boundary).alias(END))
    nothing_late = frame.select(INDEX, TIME, pl.col(TIME).alias(PANE)).clear()
    final_until = layout.final_until(closed_until)
    ended = pl.lit(False) if final_until is None else pl.col(END) <= final_until
    possibly_late = frame.filter(ended)
    if not possibly_late.height:
        return _aggregate(_number_sessions(frame, layout), layout, closed_until, epochs, late=nothing_late)
    verdicts = check_sessions(possibly_late)
    frame = frame.join(verdicts, on=INDEX, how="left", maintain_order="left")
    is_covered = pl.col(_COVERED).fill_null(False)
    uncovered = _number_sessions(frame.filter(~is_covered), layout)
    is_counted = (~ended | pl.col(_JOINS).fill_null(False)).any().over([*_groups(layout), _SESSION])
    late = pl.concat([frame.filter(is_covered), uncovered.filter(~is_counted).select(frame.columns)])
    late = late.sort(INDEX).select(INDEX, TIME, pl.col(TIME).alias(PANE))
    return _aggregate(uncovered.filter(is_counted), layout, closed_until, epochs, late=late, doubtful=True)


def _groups(layout: AggregationLayout) -> list[str]:
    return [name for name, _ in layout.group_by]


def _number_sessions(frame: pl.DataFrame, layout: AggregationLayout) -> pl.DataFrame:
    groups = _groups(layout)
    frame = frame.sort([*groups, TIME], maintain_order=True)
    # Without a further event, a session ends at `_end_ms`. If the next event is earlier, the session continues.
    starts_session = pl.col(TIME) >= pl.col(END).shift(1)
    for name in groups:
        starts_session = starts_session | pl.col(name).ne_missing(pl.col(name).shift(1))
    return frame.with_columns(starts_session.fill_null(True).cum_sum().alias(_SESSION))


def _aggregate(
    frame: pl.DataFrame, layout: AggregationLayout, closed_until: int | None, epochs: dict[int, int], **extra: Any
) -> Aggregated:
    keys = [*_groups(layout), _SESSION]
    edges = (pl.col(TIME).min().alias(PANE), pl.col(END).max().alias(END))
    rows = compute_partials(frame, layout, keys, epochs, *edges).drop(_SESSION)
    rows = with_revision(rows, layout, None if closed_until is None else pl.col(END) <= closed_until)
    return Aggregated(rows, reopening_count=count_reopening(rows), **extra)


class SessionMerger:
    """Merges a batch's sessions into the stored sessions. The caller must hold the aggregation's lock."""

    def __init__(self, database: Database, store: AggregationStore, temp: str) -> None:
        self._store, self._layout = store, store.layout
        self._table, self._temp = database.qualified(store.table), f"pg_temp.{temp}"

    def has_reopened(self, connection: psycopg.Connection[Any], closed_until: int) -> bool:
        """Return whether the batch changes closed sessions. Call this method after `move_to_temp`."""
        query = f"SELECT 1 FROM {self._temp} WHERE {OLD} AND {END} <= %s LIMIT 1"
        return connection.execute(query, (closed_until,)).fetchone() is not None

    def check_events(self, connection: psycopg.Connection[Any], events: pl.DataFrame, final_until: int) -> pl.DataFrame:
        """For each event, return two booleans: it joins an open session, and it is within a closed session."""
        closed, rows = from_ms(str(final_until)), []
        for nulls, part in _split_by_nulls(events, self._layout):
            columns = {INDEX: "bigint", TIME: "bigint", END: "bigint"}
            columns |= {
                name: group_columns.transfer_type(kind).split(" COLLATE")[0] for name, kind in self._layout.group_by
            }
            arrays = [part[name].to_physical().to_list() for name in columns]
            parameters = ", ".join(f"%s::{kind}[]" for kind in columns.values())
            names = ", ".join(quote(name) for name in columns)
            query = (
                f"SELECT b.{INDEX}, bool_or(t.window_end > {closed}),"
                f" bool_or(t.window_end <= {closed} AND t.window_start <= {from_ms(f'b.{TIME}')})"
                f" FROM unnest({parameters}) AS b ({names}) JOIN {self._table} AS t ON {self._overlap(nulls, TIME)}"
                f" AND {self._start_range(part, TIME)} GROUP BY 1"
            )
            rows += connection.execute(query, arrays).fetchall()
        return pl.DataFrame(
            rows, schema={INDEX: events.schema[INDEX], _JOINS: pl.Boolean, _COVERED: pl.Boolean}, orient="row"
        )

    def move_to_temp(self, connection: psycopg.Connection[Any], rows: pl.DataFrame, closed_until: int | None) -> None:
        """Move stored sessions into the temporary table, if they overlap with the batch and may still change."""
        columns = [
            *(quote(name) for name, _ in self._layout.group_by),
            *(quote(p.column) for p in self._layout.partials),
        ]
        returned = [f"t.{column}" for column in ("window_start", "window_end", "_since", *columns)]
        kinds = dict(self._layout.group_by)
        values = [
            *(group_columns.to_transfer(kind, quote(name)) for name, kind in kinds.items()),
            *(
                to_ms(quote(p.column)) if p.sql_type == "timestamptz" else quote(p.column)
                for p in self._layout.partials
            ),
        ]
        final_until = self._layout.final_until(closed_until)
        may_change = "true" if final_until is None else f"t.window_end > {from_ms(str(final_until))}"
        if self._layout.reopen_ms is not None and closed_until is not None:
            closed = f"(window_end <= {from_ms(str(closed_until))})::integer"
            values[-1] = f"coalesce({quote(REVISION)}, 0) + {closed}"  # the last of `values` is the revision
        for nulls, part in _split_by_nulls(rows, self._layout):
            connection.execute(
                f"WITH gone AS (DELETE FROM {self._table} AS t USING {self._temp} AS b"
                f" WHERE NOT b.{OLD} AND {self._overlap(nulls, PANE)} AND {self._start_range(part, PANE)}"
                f" AND {may_change} RETURNING {', '.join(returned)})"
                f" INSERT INTO {self._temp} ({PANE}, {END}, {SINCE}, {OLD}, {', '.join(columns)})"
                f" SELECT {to_ms('window_start')}, {to_ms('window_end')}, _since, true, {', '.join(values)} FROM gone"
            )

    def merge_sql(self) -> tuple[str, str]:
        """Return the CTEs and the INSERT that merge overlapping sessions and store the merged sessions.

        If a session was merged into an earlier session, the row of the merged session becomes empty. In an empty row,
        the start equals the end.
        """
        layout = self._layout
        groups = [quote(name) for name, _ in layout.group_by]
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
        columns = [quote(p.column) for p in layout.partials]
        renamed = [f"{source} AS {quote(edge.column)}" for edge, source in edges]
        source = f"(SELECT {', '.join([*groups, _SESSION, *renamed, *columns])} FROM pieces) AS p"
        keys = [(group, name) for group, (name, _) in zip(groups, layout.group_by, strict=True)]
        merged = rollup_select([*(edge for edge, _ in edges), *layout.partials], source, [*keys, (_SESSION, _SESSION)])
        group_values = [group_columns.to_stored(kind, quote(name)) for name, kind in layout.group_by]
        values = [from_ms(quote(p.column)) if p.sql_type == "timestamptz" else quote(p.column) for p in layout.partials]
        first, last, since = (quote(edge.column) for edge, _ in edges)
        into = f"INSERT INTO {self._table} AS t"
        revision = [] if layout.reopen_ms is None else [quote(REVISION)]
        return (
            f"pieces AS MATERIALIZED ({pieces}), vanished AS ("
            f"{into} ({', '.join([*groups, 'window_start', 'window_end', '_rev', '_since', '_count', *revision])})"
            f" SELECT {', '.join([*group_values, from_ms(PANE), from_ms(PANE), '%(rev)s', SINCE, '0', *revision])}"
            f" FROM pieces WHERE {OLD} AND {PANE} > _first)",
            f"{into} ({', '.join([*groups, 'window_start', 'window_end', '_rev', '_since', *columns])})"
            f" SELECT {', '.join([*group_values, from_ms(first), from_ms(last), '%(rev)s', since, *values])}"
            f" FROM ({merged}) AS m ORDER BY {', '.join([*groups, first])}",
        )

    def _overlap(self, nulls: frozenset[str], start: str) -> str:
        """Return the SQL condition that sessions t and b overlap and have the same group."""
        conditions = [
            f"t.{quote(name)} IS NULL"
            if name in nulls
            else f"t.{quote(name)} = {group_columns.to_stored(kind, f'b.{quote(name)}')}"
            for name, kind in self._layout.group_by
        ]
        conditions += [f"b.{quote(name)} IS NULL" for name in nulls]
        conditions += [
            f"t.window_start < {from_ms(f'b.{END}')}", f"t.window_end > {from_ms(f'b.{start}')}",
            "t.window_end > t.window_start",
        ]  # fmt: skip
        return " AND ".join(conditions)

    def _start_range(self, rows: pl.DataFrame, start: str) -> str:
        first, last = int(rows[start].min()) - self._layout.size_ms, int(rows[END].max())  # type: ignore[arg-type]
        return f"t.window_start > {from_ms(str(first))} AND t.window_start < {from_ms(str(last))}"


def _split_by_nulls(rows: pl.DataFrame, layout: AggregationLayout) -> Iterator[tuple[frozenset[str], pl.DataFrame]]:
    groups = _groups(layout)
    if not groups or not any(rows[name].null_count() for name in groups):
        yield frozenset(), rows
        return
    flags = [pl.col(name).is_null().alias(f"_null_{name}") for name in groups]
    marked = rows.with_columns(flags)
    names = [f"_null_{name}" for name in groups]
    for key, part in marked.partition_by(names, as_dict=True).items():
        yield frozenset(name for name, null in zip(groups, key, strict=True) if null), part.drop(names)
