"""Find out which stored rows count all events of a metric.

When the metrics of a pipeline change, processors begin or stop filling columns. Each change increases the layout
number of the window table. The column `_since` contains the lowest layout number of the processors that have written a
row.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from tidemill_contract.functions.composed import function_operands
from tidemill_contract.functions.partials import AggregationLayout, needed_columns
from tidemill_contract.times import rfc3339_ms

SINCE = "_since"
"""A column of window tables. Several processors can write a row. The column has their lowest layout number."""


@dataclass(frozen=True)
class Feed:
    """The periods in which processors fill one column of a window table.

    Each period begins with a layout number. By default, processors always fill the column.

    Attributes:
        since: the layout number at the start of the current period, or None if processors no longer fill the column.
        before: the earlier periods. Each item has the layout number at the period's start, and `closed_until`
            (epoch ms) at the period's end.
    """

    since: int | None = 0
    before: tuple[tuple[int, int], ...] = ()

    def condition(self, end: str) -> str | None:
        """Return an SQL condition for rows in which the column is complete (counts all events).

        The result is None if the column is complete in every row. If processors later stop filling the column, it stays
        complete in windows that were closed before. `end` is SQL for the end of the window.
        """
        if self.since == 0:
            return None
        conditions = [] if self.since is None else [f"{SINCE} >= {self.since}"]
        for since, closed_until in reversed(self.before):
            conditions.append(f"({SINCE} >= {since} AND {end} <= timestamptz '{rfc3339_ms(closed_until)}')")
        return f"({' OR '.join(conditions)})" if conditions else "false"

    def left(self, closed_until: int | None) -> Feed:
        """Return a copy of the `Feed` in which processors no longer fill the column."""
        if self.since is None or closed_until is None:
            return replace(self, since=None)
        return Feed(None, (*self.before, (self.since, closed_until)))


@dataclass(frozen=True)
class Feeds:
    """The current layout number of a window table, and the periods in which processors fill its columns.

    Attributes:
        layout: the current layout number.
        columns: the `Feed` of each column that was added or removed after the creation of the table, by column name.
    """

    layout: int = 0
    columns: Mapping[str, Feed] = field(default_factory=dict)

    @classmethod
    def read(cls, layout: int | None, fed: Mapping[str, Any] | None) -> Feeds:
        """Read the columns `layout` and `fed` of `_aggregations`.

        If an older version of Tidemill created the schema, `layout` and `fed` are None.
        """
        columns = {
            name: Feed(item["since"], tuple((since, until) for since, until in item["before"]))
            for name, item in (fed or {}).items()
        }
        return cls(layout or 0, columns)

    @property
    def fed(self) -> str:
        """The columns as JSON. Equal `Feeds` objects have equal JSON."""
        columns = {name: {"since": feed.since, "before": feed.before} for name, feed in self.columns.items()}
        return json.dumps(columns, sort_keys=True)

    def of(self, column: str) -> Feed:
        """Return the periods in which processors fill a column."""
        return self.columns.get(column, Feed())

    def changed(
        self, filled: Collection[str], wanted: Collection[str], *, there: Collection[str], closed_until: int | None
    ) -> Feeds:
        """Return the `Feeds` after a change of the columns that processors fill.

        Args:
            filled: the columns that processors filled before the change.
            wanted: the columns that processors fill after the change.
            there: the columns that exist in the window table.
            closed_until: the time (epoch ms) up to which windows are closed, or None if no window is closed.
        """
        fed = {column for column in filled if column in there and self.of(column).since is not None}
        came, gone = set(wanted) - fed, fed - set(wanted)
        if not came and not gone:
            return self
        layout, columns = self.layout + 1, dict(self.columns)
        for column in gone:
            columns[column] = self.of(column).left(closed_until)
        for column in came:
            columns[column] = Feed(layout, self.of(column).before if column in there else ())
        return Feeds(layout, columns)

    def of_writer(self, columns: Collection[str]) -> int:
        """Return the layout number of a processor that fills only `columns`."""
        missing = [f.since for name, f in self.columns.items() if f.since is not None and name not in columns]
        return min(missing) - 1 if missing else self.layout


def guarded(plan: AggregationLayout, feeds: Feeds) -> AggregationLayout:
    """Return a copy of `plan` that makes queries return null for incomplete metrics.

    A metric is incomplete if the rows of a window lack some of the metric's events.
    """
    whole = []
    metrics = [metric for metric, _ in plan.metrics]
    for metric in metrics:
        columns = [c for operand in function_operands(metrics, metric.name) for c in needed_columns(operand)]
        conditions = [feeds.of(column).condition(plan.end_sql) for column in columns]
        distinct_conditions = dict.fromkeys(condition for condition in conditions if condition is not None)
        if distinct_conditions:
            whole.append((metric.name, " AND ".join(distinct_conditions)))
    return replace(plan, whole=tuple(whole)) if whole else plan
