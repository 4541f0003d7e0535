"""Reads windows from the tables, for detectors, the results topic and live changes."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import psycopg

from tidemill_contract.decimals import scale_of, text_of
from tidemill_contract.functions.partials import REVISION, quote
from tidemill_contract.tables.definition import from_ms, to_ms
from tidemill_contract.times import epoch_ms, rfc3339, rfc3339_ms
from tidemill_contract.windows import answer_columns, decoders, window_source
from tidemill_processor.database import AggregationStore, Database
from tidemill_processor.errors import error_text

FETCH_ROWS = 5_000

Query = tuple[str, tuple[Any, ...]]


@dataclass(frozen=True)
class Span:
    """The closed windows that end in [`first_ms`, `last_ms`]."""

    first_ms: int
    last_ms: int


@dataclass(frozen=True)
class WindowFilter:
    """Selects some or all windows of a query.

    Attributes:
        first_ms: the earliest start (epoch ms), or None for no limit.
        last_ms: the latest start (epoch ms), or None for no limit.
        depth: the number of compared bits of a group's hash, or 0 to select all groups.
        bits: the required value of the hash's last `depth` bits.
        null_metrics: the metrics whose values are replaced with null.
    """

    first_ms: int | None = None
    last_ms: int | None = None
    depth: int = 0
    bits: int = 0
    null_metrics: frozenset[str] = frozenset()


ALL_WINDOWS = WindowFilter()


class WindowReader:
    """Reads the windows of one aggregation, with their panes combined and their metrics computed."""

    def __init__(self, database: Database, store: AggregationStore) -> None:
        self._store = store
        self._table = database.qualified(store.table)
        layout = store.layout
        self.groups = [name for name, _ in layout.group_by]
        self.metrics = [name for name, _, _ in answer_columns(layout)]
        self._answers = {name: f"{expression} AS {quote(name)}" for name, _, expression in answer_columns(layout)}
        self.has_revision = layout.reopen_ms is not None
        times = ["window_start", "window_end"] if layout.has_sessions else ["window_start"]
        self._keys = [*(quote(name) for name in self.groups), *times]
        self.columns = [*self.groups, "window_start", "window_end", *self.metrics]
        decode = decoders(layout)
        # Only columns that need a conversion for JSON are converted row by row.
        converters = [*(_converter(kind) for _, kind in layout.group_by), *(_cache_last(rfc3339) for _ in times)]
        converters += [_converter(kind, decode.get(name)) for name, kind, _ in answer_columns(layout)]
        self._converters = [(index, convert) for index, convert in enumerate(converters) if convert is not None]
        self._end_text = _cache_last(lambda start: rfc3339_ms(layout.end_of(epoch_ms(start))))

    def next_span(
        self, connection: psycopg.Connection[Any], after_ms: int | None, until_ms: int, panes: int
    ) -> Span | None:
        """Return a span with the next windows that end in (`after_ms`, `until_ms`], or None without such windows."""
        layout = self._store.layout
        if layout.gap_ms is not None:
            after = "true" if after_ms is None else f"window_end > {from_ms(str(after_ms))}"
            closed_sessions = f"{after} AND window_end <= {from_ms(str(until_ms))} AND window_end > window_start"
            first = self._minimum(connection, "window_end", f"{closed_sessions}{self._start_condition(after_ms)}")
            return None if first is None else Span(first, min(first + panes * layout.gap_ms, until_ms))
        grid = layout.grid
        after = "true" if after_ms is None else f"window_start > {from_ms(str(layout.last_start(after_ms)))}"
        last = grid.shift(grid.start_of(until_ms), -1)
        pane = self._minimum(connection, "window_start", f"{after} AND window_start <= {from_ms(str(last))}")
        if pane is None:
            return None
        # The end of a pane is also the end of the earliest window that contains the pane.
        first = grid.shift(pane, 1)
        if after_ms is not None:
            first = max(first, grid.shift(after_ms, 1))
        return Span(first, min(grid.shift(first, panes), until_ms))

    def _minimum(self, connection: psycopg.Connection[Any], column: str, where: str) -> int | None:
        row = connection.execute(f"SELECT {to_ms(f'min({column})')} FROM {self._table} WHERE {where}").fetchone()
        return row[0] if row else None

    def _start_condition(self, first_end_ms: int | None) -> str:
        if first_end_ms is None:
            return ""
        return f" AND window_start >= {from_ms(str(first_end_ms - self._store.layout.size_ms))}"

    def read_closed(self, connection: psycopg.Connection[Any], span: Span) -> Iterator[list[Any]]:
        """Yield the windows of a span, ordered by end."""
        return self.rows(connection, self.closed_query(span))

    def closed_query(self, span: Span, part: WindowFilter = ALL_WINDOWS) -> Query:
        """Return the query of `read_closed`, limited to the windows in `part`."""
        layout = self._store.layout
        if not layout.has_sessions:
            first, last = (layout.grid.shift(end, -layout.panes) for end in (span.first_ms, span.last_ms))
            return self._query_by_start(first, last, with_revision=self.has_revision, part=part)
        where = (
            f"window_end >= {from_ms(str(span.first_ms))} AND window_end <= {from_ms(str(span.last_ms))}"
            f"{self._start_condition(span.first_ms)}{self._group_condition(part)}"
        )
        if part.first_ms is not None:
            where += f" AND window_start >= {from_ms(str(part.first_ms))}"
        if part.last_ms is not None:
            where += f" AND window_start <= {from_ms(str(part.last_ms))}"
        source = window_source(self._table, layout, where)
        return self._select(
            f"{source} ORDER BY window_end, window_start", with_revision=self.has_revision, part=part
        ), ()

    def read_corrected(
        self, connection: psycopg.Connection[Any], first_ms: int, last_ms: int, revs: list[int], closed_until: int
    ) -> Iterator[list[Any]]:
        """Yield closed windows with a start in [`first_ms`, `last_ms`] and a revision in `revs`.

        A session that was merged into another session is an empty window.
        """
        return self.rows(connection, self.corrected_query(first_ms, last_ms, revs, closed_until))

    def corrected_query(
        self, first_ms: int, last_ms: int, revs: list[int], closed_until: int, part: WindowFilter = ALL_WINDOWS
    ) -> Query:
        """Return the query of `read_corrected`, limited to the windows in `part`."""
        closed = f"{self._store.layout.end_sql} <= {from_ms(str(closed_until))}"
        return self._query_by_start(
            first_ms, last_ms, revs=revs, condition=closed, with_revision=self.has_revision, part=part
        )

    def read(
        self,
        connection: psycopg.Connection[Any],
        first_ms: int,
        last_ms: int,
        *,
        revs: list[int] | None = None,
        limit: int | None = None,
    ) -> Iterator[dict[str, Any]]:
        """Yield windows that start in [first, last] as dicts by column name."""
        for row in self.rows(connection, self._query_by_start(first_ms, last_ms, revs=revs, limit=limit)):
            yield dict(zip(self.columns, row, strict=True))

    def _query_by_start(
        self,
        first_ms: int,
        last_ms: int,
        *,
        revs: list[int] | None = None,
        limit: int | None = None,
        condition: str = "true",
        with_revision: bool = False,
        part: WindowFilter = ALL_WINDOWS,
    ) -> Query:
        layout = self._store.layout
        first_ms = first_ms if part.first_ms is None else max(first_ms, part.first_ms)
        last_ms = last_ms if part.last_ms is None else min(last_ms, part.last_ms)
        last_pane_ms = last_ms + layout.last_pane_offset_ms
        first, last = from_ms(str(first_ms)), from_ms(str(last_ms))
        where = f"window_start >= {first} AND window_start <= {from_ms(str(last_pane_ms))}{self._group_condition(part)}"
        wanted = f"window_start >= {first} AND window_start <= {last}"
        parameters: tuple[Any, ...] = ()
        if revs is not None:
            wanted += " AND _rev = ANY(%s)"
            parameters = (revs,)
        tail = f" LIMIT {int(limit)}" if limit is not None else ""
        source = window_source(self._table, layout, where, first=first, last=last, include_joined=revs is not None)
        text = f"{source} WHERE {wanted} AND {condition} ORDER BY window_start{tail}"
        return self._select(text, with_revision=with_revision, part=part), parameters

    def _group_condition(self, part: WindowFilter) -> str:
        if not part.depth:
            return ""
        groups = ", ".join(quote(name) for name in self.groups)
        return f" AND hashtextextended(ROW({groups})::text, 0) & {2**part.depth - 1} = {part.bits}"

    def _select(self, source: str, *, with_revision: bool, part: WindowFilter) -> str:
        answers = [f"NULL AS {quote(n)}" if n in part.null_metrics else text for n, text in self._answers.items()]
        revision = [f"coalesce({quote(REVISION)}, 0)"] if with_revision else []
        return f"SELECT {', '.join([*self._keys, *answers, *revision])} FROM {source}"

    def rows(self, connection: psycopg.Connection[Any], query: Query) -> Iterator[list[Any]]:
        """Yield windows as lists of values for JSON: the groups, window start, window end, and the metrics.

        Call this method in a transaction, because it uses a server-side cursor.
        """
        return map(self.convert_row, self.fetch(connection, query))

    def fetch(self, connection: psycopg.Connection[Any], query: Query) -> Iterator[tuple[Any, ...]]:
        """Yield the rows of a query as Postgres returns them."""
        with connection.cursor(name="windows", binary=True) as cursor:
            cursor.itersize = FETCH_ROWS
            cursor.execute(*query)
            yield from cursor

    def convert_row(self, row: tuple[Any, ...], errors: dict[str, str] | None = None) -> list[Any]:
        """Convert a row to a list of values for JSON.

        Args:
            row: a row from `fetch`.
            errors: a dict that gets the name and the error of each metric that cannot be converted, or None to raise
                the error.
        """
        values, keys = list(row), len(self._keys)
        for index, convert in self._converters:
            if values[index] is not None:
                try:
                    values[index] = convert(values[index])
                except Exception as error:
                    if errors is None or index < keys:
                        raise
                    values[index], errors[self.metrics[index - keys]] = None, error_text(error)
        start_index = len(self.groups)
        if not self._store.layout.has_sessions:
            values.insert(start_index + 1, self._end_text(row[start_index]))
        return values


def _cache_last(convert: Callable[[dt.datetime], str]) -> Callable[[dt.datetime], str]:
    last, text = None, ""

    def converted(moment: dt.datetime) -> str:
        nonlocal last, text
        if moment != last:
            last, text = moment, convert(moment)
        return text

    return converted


# Postgres returns an exact integer sum as a Decimal.
_CONVERTERS: dict[str, Callable[[Any], Any]] = {"integer": int, "timestamp": lru_cache(maxsize=4096)(rfc3339)}


def _converter(kind: str, decode: Callable[[Any], Any] | None = None) -> Callable[[Any], Any] | None:
    scale = scale_of(kind)
    if scale is None:
        return decode or _CONVERTERS.get(kind)
    return lambda value: text_of(value if decode is None else decode(value), scale)
