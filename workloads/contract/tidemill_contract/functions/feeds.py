"""Since when writers feed each partial column of a window table, and which stored rows are whole for a metric.

A column that came later lacks the events that were counted before. So the sets of fed columns are numbered (layouts),
each row has the least layout of its writers in `_since`, and `_aggregations` says which layout a column came with.
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
"""Column of every window table."""


@dataclass(frozen=True)
class Feed:
    """When one column was fed; by default from the table's first row on.

    Attributes:
        since: the layout from which on writers feed it; None: they do not any more.
        before: earlier times: the layout that it came with, and what was closed when it left (epoch ms).
    """

    since: int | None = 0
    before: tuple[tuple[int, int], ...] = ()

    def condition(self, end: str) -> str | None:
        """SQL over a stored row, whose end is SQL too: all its events are in the column; None: so it is for every row.

        Whatever was closed when the column left took no event after that, so only those who wrote before count.
        """
        if self.since == 0:
            return None
        found = [] if self.since is None else [f"{SINCE} >= {self.since}"]
        for since, closed_until in reversed(self.before):
            found.append(f"({SINCE} >= {since} AND {end} <= timestamptz '{rfc3339_ms(closed_until)}')")
        return f"({' OR '.join(found)})" if found else "false"

    def left(self, closed_until: int | None) -> Feed:
        """After writers stopped feeding it."""
        if self.since is None or closed_until is None:
            return replace(self, since=None)
        return Feed(None, (*self.before, (self.since, closed_until)))


@dataclass(frozen=True)
class Feeds:
    """Which columns of a window table are fed.

    Attributes:
        layout: number of the present set; it grows with every change.
        columns: by name, those that are not fed from the first row on.
    """

    layout: int = 0
    columns: Mapping[str, Feed] = field(default_factory=dict)

    @classmethod
    def read(cls, layout: int | None, fed: Mapping[str, Any] | None) -> Feeds:
        """From the columns `layout` and `fed` of `_aggregations`; None: an older schema, which has neither."""
        columns = {
            name: Feed(item["since"], tuple((since, until) for since, until in item["before"]))
            for name, item in (fed or {}).items()
        }
        return cls(layout or 0, columns)

    @property
    def fed(self) -> str:
        """As JSON, the same for equal ones."""
        columns = {name: {"since": feed.since, "before": feed.before} for name, feed in self.columns.items()}
        return json.dumps(columns, sort_keys=True)

    def of(self, column: str) -> Feed:
        """When a column was fed."""
        return self.columns.get(column, Feed())

    def changed(
        self, known: Collection[str], wanted: Collection[str], *, there: Collection[str], closed_until: int | None
    ) -> Feeds:
        """After writers were told to feed another set of columns; the same if it is none.

        Args:
            known: columns that the table was planned with last.
            wanted: columns to be fed from now on.
            there: columns that the table has; what it has lost comes back empty.
            closed_until: windows that end by it take no more events (epoch ms); None: none is closed.
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
        """What a writer of these columns notes in `_since`: the layout before the first one that it cannot fill."""
        missing = [f.since for name, f in self.columns.items() if f.since is not None and name not in columns]
        return min(missing) - 1 if missing else self.layout


def guarded(plan: AggregationLayout, feeds: Feeds) -> AggregationLayout:
    """The layout as it is read: each metric is null where rows lack some of its events; the same if none can."""
    whole = []
    metrics = [metric for metric, _ in plan.metrics]
    for metric in metrics:
        columns = [c for operand in function_operands(metrics, metric.name) for c in needed_columns(operand)]
        conditions = [feeds.of(column).condition(plan.end_sql) for column in columns]
        told = dict.fromkeys(condition for condition in conditions if condition is not None)
        if told:
            whole.append((metric.name, " AND ".join(told)))
    return replace(plan, whole=tuple(whole)) if whole else plan
