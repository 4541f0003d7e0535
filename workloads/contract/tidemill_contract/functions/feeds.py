"""Computes which rows contain all events of a metric, from the periods in which processors filled each column.

A column that is added later lacks the events that were counted before. So each set of filled columns has a number, the
layout. Each row stores in `_since` the lowest layout of the processors that wrote the row. `_aggregations` stores for
each column the layout that added it.
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
"""The name of the column with the lowest layout of a row's writers. Every window table has this column."""


@dataclass(frozen=True)
class Feed:
    """The layouts in which processors fill one column. By default, every layout fills the column.

    Attributes:
        since: the first layout of the period in which the column is filled now, or None if it is no longer filled.
        before: the earlier periods. Each period is the layout that added the column, and the value of `closed_until`
            (epoch ms) when the column was removed.
    """

    since: int | None = 0
    before: tuple[tuple[int, int], ...] = ()

    def condition(self, end: str) -> str | None:
        """Return the SQL condition for rows in which the column contains all events, or None if all rows qualify.

        A window that was closed when the column was removed got no events afterwards. For such a window, the column
        contains all events if every writer filled it before.

        Args:
            end: SQL for the end of the row's window.
        """
        if self.since == 0:
            return None
        found = [] if self.since is None else [f"{SINCE} >= {self.since}"]
        for since, closed_until in reversed(self.before):
            found.append(f"({SINCE} >= {since} AND {end} <= timestamptz '{rfc3339_ms(closed_until)}')")
        return f"({' OR '.join(found)})" if found else "false"

    def left(self, closed_until: int | None) -> Feed:
        """Return the feed after processors stopped filling the column."""
        if self.since is None or closed_until is None:
            return replace(self, since=None)
        return Feed(None, (*self.before, (self.since, closed_until)))


@dataclass(frozen=True)
class Feeds:
    """The columns of a window table that processors fill.

    Attributes:
        layout: the number of the current set of columns, which grows with every change.
        columns: by name, the feed of each column that has not been filled since the first row.
    """

    layout: int = 0
    columns: Mapping[str, Feed] = field(default_factory=dict)

    @classmethod
    def read(cls, layout: int | None, fed: Mapping[str, Any] | None) -> Feeds:
        """Read the columns `layout` and `fed` of `_aggregations`.

        Both are None if the schema is older and lacks these columns.
        """
        columns = {
            name: Feed(item["since"], tuple((since, until) for since, until in item["before"]))
            for name, item in (fed or {}).items()
        }
        return cls(layout or 0, columns)

    @property
    def fed(self) -> str:
        """The columns as JSON. Equal feeds have equal texts."""
        columns = {name: {"since": feed.since, "before": feed.before} for name, feed in self.columns.items()}
        return json.dumps(columns, sort_keys=True)

    def of(self, column: str) -> Feed:
        """Return the feed of a column."""
        return self.columns.get(column, Feed())

    def changed(
        self, known: Collection[str], wanted: Collection[str], *, there: Collection[str], closed_until: int | None
    ) -> Feeds:
        """Return the feeds after the set of filled columns changed. If the set is the same, the feeds are unchanged.

        Args:
            known: the columns of the table's last plan.
            wanted: the columns that processors fill from now on.
            there: the columns that the table has now. A column that is missing is added again, and is then empty.
            closed_until: the time (epoch ms) up to which windows get no more events, or None if no window is closed.
        """
        fed = {column for column in known if column in there and self.of(column).since is not None}
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
        """Return the layout that a writer of these columns stores in `_since`.

        This is the last layout of which the writer fills all columns.
        """
        missing = [f.since for name, f in self.columns.items() if f.since is not None and name not in columns]
        return min(missing) - 1 if missing else self.layout


def guarded(plan: AggregationLayout, feeds: Feeds) -> AggregationLayout:
    """Return the layout for readers: a metric is null if a merged row lacks some of the metric's events."""
    whole = []
    metrics = [metric for metric, _ in plan.metrics]
    for metric in metrics:
        columns = [c for operand in function_operands(metrics, metric.name) for c in needed_columns(operand)]
        conditions = [feeds.of(column).condition(plan.end_sql) for column in columns]
        told = dict.fromkeys(condition for condition in conditions if condition is not None)
        if told:
            whole.append((metric.name, " AND ".join(told)))
    return replace(plan, whole=tuple(whole)) if whole else plan
