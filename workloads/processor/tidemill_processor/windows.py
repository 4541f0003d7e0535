"""Reading whole windows out of the tables: for detectors, the results topic and live changes."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any

import psycopg

from tidemill_contract.partials import answer_columns, decoders, quote, window_source
from tidemill_contract.times import rfc3339
from tidemill_processor.database import AggregationStore, Database, from_ms

FETCH_ROWS = 5_000


class WindowReader:
    """Reads the windows of one aggregation, composed and answered, as JSON-ready dicts."""

    def __init__(self, database: Database, store: AggregationStore) -> None:
        self._store = store
        self._table = database.qualified(store.table)
        plan = store.layout
        self.groups = [name for name, _ in plan.group_by]
        self.metrics = [name for name, _, _ in answer_columns(plan)]
        answers = [f"{expression} AS {quote(name)}" for name, _, expression in answer_columns(plan)]
        self._selected = ", ".join([*(quote(name) for name in self.groups), "window_start", *answers])
        self._columns = [*self.groups, "window_start", "window_end", *self.metrics]
        decode = decoders(plan)
        # Most values are as JSON has them: only the others are touched, row by row.
        plain = [*(_PLAIN.get(kind) for _, kind in plan.group_by), _PLAIN["timestamp"]]
        plain += [decode.get(name) or _PLAIN.get(kind) for name, kind, _ in answer_columns(plan)]
        self._plain = [(index, convert) for index, convert in enumerate(plain) if convert is not None]
        size = dt.timedelta(milliseconds=plan.size_ms)
        self._end = lru_cache(maxsize=4096)(lambda start: rfc3339(start + size))

    def next_start(self, connection: psycopg.Connection[Any], after_ms: int | None, until_ms: int) -> int | None:
        """Start (epoch ms) of the first pane whose windows end in (after, until]; None: there is none."""
        plan = self._store.layout
        low = "true" if after_ms is None else f"window_start > {from_ms(str(after_ms - plan.size_ms))}"
        query = (
            f"SELECT (extract(epoch FROM min(window_start)) * 1000)::bigint FROM {self._table}"
            f" WHERE {low} AND window_start <= {from_ms(str(until_ms - plan.pane_ms))}"
        )
        row = connection.execute(query).fetchone()
        return row[0] if row else None

    def read(
        self,
        connection: psycopg.Connection[Any],
        first_ms: int,
        last_ms: int,
        *,
        revs: list[int] | None = None,
        limit: int | None = None,
    ) -> Iterator[dict[str, Any]]:
        """Windows as dicts by column; see `rows`."""
        for row in self.rows(connection, first_ms, last_ms, revs=revs, limit=limit):
            yield dict(zip(self._columns, row, strict=True))

    def rows(
        self,
        connection: psycopg.Connection[Any],
        first_ms: int,
        last_ms: int,
        *,
        revs: list[int] | None = None,
        limit: int | None = None,
    ) -> Iterator[list[Any]]:
        """Windows that start in [first, last], in order of their start; with `revs` only those changed by these.

        Each is a list of JSON-ready values: the groups, window start, window end, the metrics. Must run inside a
        transaction: rows come through a server-side cursor, so memory is bounded.
        """
        plan = self._store.layout
        reach = last_ms + plan.size_ms - plan.pane_ms
        where = f"window_start >= {from_ms(str(first_ms))} AND window_start <= {from_ms(str(reach))}"
        wanted = f"window_start >= {from_ms(str(first_ms))} AND window_start <= {from_ms(str(last_ms))}"
        parameters: tuple[Any, ...] = ()
        if revs is not None:
            wanted += " AND _rev = ANY(%s)"
            parameters = (revs,)
        tail = f" LIMIT {int(limit)}" if limit is not None else ""
        query = (
            f"SELECT {self._selected} FROM {window_source(self._table, plan, where)}"
            f" WHERE {wanted} ORDER BY window_start{tail}"
        )
        with connection.cursor(name="windows") as cursor:
            cursor.itersize = FETCH_ROWS
            cursor.execute(query, parameters)
            for row in cursor:
                yield self._window(row)

    def _window(self, row: tuple[Any, ...]) -> list[Any]:
        values = list(row)
        for index, plain in self._plain:
            if values[index] is not None:
                values[index] = plain(values[index])
        at = len(self.groups)
        values.insert(at + 1, self._end(row[at]))
        return values


# An exact integer sum comes as a Decimal. The windows of a page start at few different times.
_PLAIN: dict[str, Callable[[Any], Any]] = {"integer": int, "timestamp": lru_cache(maxsize=4096)(rfc3339)}
