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
from tidemill_processor.blame import reason
from tidemill_processor.database import AggregationStore, Database

FETCH_ROWS = 5_000

Query = tuple[str, tuple[Any, ...]]


@dataclass(frozen=True)
class Span:
    """The closed windows that end in [`first_ms`, `last_ms`]."""

    first_ms: int
    last_ms: int


@dataclass(frozen=True)
class Cut:
    """Selects some or all windows of a query.

    Attributes:
        first_ms: the earliest start (epoch ms), or None for no limit.
        last_ms: the latest start (epoch ms), or None for no limit.
        depth: the number of compared bits of a group's hash, or 0 to select all groups.
        bits: the required value of the hash's last `depth` bits.
        without: the metrics whose values are replaced with null.
    """

    first_ms: int | None = None
    last_ms: int | None = None
    depth: int = 0
    bits: int = 0
    without: frozenset[str] = frozenset()


WHOLE = Cut()


class WindowReader:
    """Reads the windows of one aggregation, with their panes combined and their metrics computed."""

    def __init__(self, database: Database, store: AggregationStore) -> None:
        self._store = store
        self._table = database.qualified(store.table)
        plan = store.layout
        self.groups = [name for name, _ in plan.group_by]
        self.metrics = [name for name, _, _ in answer_columns(plan)]
        self._answers = {name: f"{expression} AS {quote(name)}" for name, _, expression in answer_columns(plan)}
        self.revised = plan.reopen_ms is not None
        times = ["window_start", "window_end"] if plan.sessions else ["window_start"]
        self._keys = [*(quote(name) for name in self.groups), *times]
        self.columns = [*self.groups, "window_start", "window_end", *self.metrics]
        decode = decoders(plan)
        # Only columns that need a conversion for JSON are converted row by row.
        plain = [*(_converter(kind) for _, kind in plan.group_by), *(_one_after_another(rfc3339) for _ in times)]
        plain += [_converter(kind, decode.get(name)) for name, kind, _ in answer_columns(plan)]
        self._plain = [(index, convert) for index, convert in enumerate(plain) if convert is not None]
        self._end = _one_after_another(lambda start: rfc3339_ms(plan.end_of(epoch_ms(start))))

    def span(self, connection: psycopg.Connection[Any], after_ms: int | None, until_ms: int, panes: int) -> Span | None:
        """Return a span with the next windows that end in (`after_ms`, `until_ms`], or None without such windows."""
        plan = self._store.layout
        if plan.gap_ms is not None:
            low = "true" if after_ms is None else f"window_end > {from_ms(str(after_ms))}"
            there = f"{low} AND window_end <= {from_ms(str(until_ms))} AND window_end > window_start"
            first = self._least(connection, "window_end", f"{there}{self._may_start(after_ms)}")
            return None if first is None else Span(first, min(first + panes * plan.gap_ms, until_ms))
        grid = plan.grid
        low = "true" if after_ms is None else f"window_start > {from_ms(str(plan.last_start(after_ms)))}"
        last = grid.shift(grid.start_of(until_ms), -1)
        pane = self._least(connection, "window_start", f"{low} AND window_start <= {from_ms(str(last))}")
        if pane is None:
            return None
        # The end of a pane is also the end of the earliest window that contains the pane.
        first = grid.shift(pane, 1)
        if after_ms is not None:
            first = max(first, grid.shift(after_ms, 1))
        return Span(first, min(grid.shift(first, panes), until_ms))

    def _least(self, connection: psycopg.Connection[Any], column: str, where: str) -> int | None:
        row = connection.execute(f"SELECT {to_ms(f'min({column})')} FROM {self._table} WHERE {where}").fetchone()
        return row[0] if row else None

    def _may_start(self, first_end_ms: int | None) -> str:
        if first_end_ms is None:
            return ""
        return f" AND window_start >= {from_ms(str(first_end_ms - self._store.layout.size_ms))}"

    def closed(self, connection: psycopg.Connection[Any], span: Span) -> Iterator[list[Any]]:
        """Yield the windows of a span, ordered by end."""
        return self.rows(connection, self.of_closed(span))

    def of_closed(self, span: Span, cut: Cut = WHOLE) -> Query:
        """Return the query of `closed`, limited to the windows that `cut` selects."""
        plan = self._store.layout
        if not plan.sessions:
            first, last = (plan.grid.shift(end, -plan.panes) for end in (span.first_ms, span.last_ms))
            return self._started(first, last, revised=self.revised, cut=cut)
        where = (
            f"window_end >= {from_ms(str(span.first_ms))} AND window_end <= {from_ms(str(span.last_ms))}"
            f"{self._may_start(span.first_ms)}{self._grouped(cut)}"
        )
        if cut.first_ms is not None:
            where += f" AND window_start >= {from_ms(str(cut.first_ms))}"
        if cut.last_ms is not None:
            where += f" AND window_start <= {from_ms(str(cut.last_ms))}"
        source = window_source(self._table, plan, where)
        return self._select(f"{source} ORDER BY window_end, window_start", revised=self.revised, cut=cut), ()

    def corrected(
        self, connection: psycopg.Connection[Any], first_ms: int, last_ms: int, revs: list[int], closed_until: int
    ) -> Iterator[list[Any]]:
        """Yield closed windows with a start in [`first_ms`, `last_ms`] and a revision in `revs`.

        A session that was merged into another session is an empty window.
        """
        return self.rows(connection, self.of_corrected(first_ms, last_ms, revs, closed_until))

    def of_corrected(self, first_ms: int, last_ms: int, revs: list[int], closed_until: int, cut: Cut = WHOLE) -> Query:
        """Return the query of `corrected`, limited to the windows that `cut` selects."""
        closed = f"{self._store.layout.end_sql} <= {from_ms(str(closed_until))}"
        return self._started(first_ms, last_ms, revs=revs, further=closed, revised=self.revised, cut=cut)

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
        for row in self.rows(connection, self._started(first_ms, last_ms, revs=revs, limit=limit)):
            yield dict(zip(self.columns, row, strict=True))

    def _started(
        self,
        first_ms: int,
        last_ms: int,
        *,
        revs: list[int] | None = None,
        limit: int | None = None,
        further: str = "true",
        revised: bool = False,
        cut: Cut = WHOLE,
    ) -> Query:
        plan = self._store.layout
        first_ms = first_ms if cut.first_ms is None else max(first_ms, cut.first_ms)
        last_ms = last_ms if cut.last_ms is None else min(last_ms, cut.last_ms)
        reach = last_ms + plan.spread_ms
        first, last = from_ms(str(first_ms)), from_ms(str(last_ms))
        where = f"window_start >= {first} AND window_start <= {from_ms(str(reach))}{self._grouped(cut)}"
        wanted = f"window_start >= {first} AND window_start <= {last}"
        parameters: tuple[Any, ...] = ()
        if revs is not None:
            wanted += " AND _rev = ANY(%s)"
            parameters = (revs,)
        tail = f" LIMIT {int(limit)}" if limit is not None else ""
        source = window_source(self._table, plan, where, first=first, last=last, vanished=revs is not None)
        text = f"{source} WHERE {wanted} AND {further} ORDER BY window_start{tail}"
        return self._select(text, revised=revised, cut=cut), parameters

    def _grouped(self, cut: Cut) -> str:
        if not cut.depth:
            return ""
        groups = ", ".join(quote(name) for name in self.groups)
        return f" AND hashtextextended(ROW({groups})::text, 0) & {2**cut.depth - 1} = {cut.bits}"

    def _select(self, source: str, *, revised: bool, cut: Cut) -> str:
        answers = [f"NULL AS {quote(n)}" if n in cut.without else text for n, text in self._answers.items()]
        revision = [f"coalesce({quote(REVISION)}, 0)"] if revised else []
        return f"SELECT {', '.join([*self._keys, *answers, *revision])} FROM {source}"

    def rows(self, connection: psycopg.Connection[Any], query: Query) -> Iterator[list[Any]]:
        """Yield windows as lists of values for JSON: the groups, window start, window end, and the metrics.

        Call this method in a transaction, because it uses a server-side cursor.
        """
        return map(self.window, self.fetch(connection, query))

    def fetch(self, connection: psycopg.Connection[Any], query: Query) -> Iterator[tuple[Any, ...]]:
        """Yield the rows of a query as Postgres returns them."""
        with connection.cursor(name="windows", binary=True) as cursor:
            cursor.itersize = FETCH_ROWS
            cursor.execute(*query)
            yield from cursor

    def window(self, row: tuple[Any, ...], unread: dict[str, str] | None = None) -> list[Any]:
        """Convert a row to a list of values for JSON.

        Args:
            row: a row from `fetch`.
            unread: a dict that gets the name and the error of each metric that cannot be converted, or None to raise
                the error.
        """
        values, keys = list(row), len(self._keys)
        for index, plain in self._plain:
            if values[index] is not None:
                try:
                    values[index] = plain(values[index])
                except Exception as error:
                    if unread is None or index < keys:
                        raise
                    values[index], unread[self.metrics[index - keys]] = None, reason(error)
        at = len(self.groups)
        if not self._store.layout.sessions:
            values.insert(at + 1, self._end(row[at]))
        return values


def _one_after_another(convert: Callable[[dt.datetime], str]) -> Callable[[dt.datetime], str]:
    last, text = None, ""

    def converted(moment: dt.datetime) -> str:
        nonlocal last, text
        if moment != last:
            last, text = moment, convert(moment)
        return text

    return converted


# Postgres returns an exact integer sum as a Decimal.
_PLAIN: dict[str, Callable[[Any], Any]] = {"integer": int, "timestamp": lru_cache(maxsize=4096)(rfc3339)}


def _converter(kind: str, decode: Callable[[Any], Any] | None = None) -> Callable[[Any], Any] | None:
    scale = scale_of(kind)
    if scale is None:
        return decode or _PLAIN.get(kind)
    return lambda value: text_of(value if decode is None else decode(value), scale)
