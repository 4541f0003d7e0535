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
class FillPeriods:
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

    def ended(self, closed_until: int | None) -> FillPeriods:
        """Return a copy in which processors no longer fill the column."""
        if self.since is None or closed_until is None:
            return replace(self, since=None)
        return FillPeriods(None, (*self.before, (self.since, closed_until)))


@dataclass(frozen=True)
class FillHistory:
    """The current layout number of a window table, and the periods in which processors fill its columns.

    Attributes:
        layout_number: the current layout number.
        columns: the periods of each column that was added or removed after the creation of the table, by column name.
    """

    layout_number: int = 0
    columns: Mapping[str, FillPeriods] = field(default_factory=dict)

    @classmethod
    def read(cls, layout: int | None, fed: Mapping[str, Any] | None) -> FillHistory:
        """Read the columns `layout` and `fed` of `_aggregations`.

        If an older version of Tidemill created the schema, `layout` and `fed` are None.
        """
        columns = {
            name: FillPeriods(item["since"], tuple((since, until) for since, until in item["before"]))
            for name, item in (fed or {}).items()
        }
        return cls(layout or 0, columns)

    @property
    def columns_json(self) -> str:
        """The columns as JSON. Equal histories have equal JSON."""
        columns = {name: {"since": periods.since, "before": periods.before} for name, periods in self.columns.items()}
        return json.dumps(columns, sort_keys=True)

    def periods_of(self, column: str) -> FillPeriods:
        """Return the periods in which processors fill a column."""
        return self.columns.get(column, FillPeriods())

    def after_change(
        self, filled: Collection[str], wanted: Collection[str], *, existing: Collection[str], closed_until: int | None
    ) -> FillHistory:
        """Return the history after a change of the columns that processors fill.

        Args:
            filled: the columns that processors filled before the change.
            wanted: the columns that processors fill after the change.
            existing: the columns that exist in the window table.
            closed_until: the time (epoch ms) up to which windows are closed, or None if no window is closed.
        """
        current = {column for column in filled if column in existing and self.periods_of(column).since is not None}
        added, removed = set(wanted) - current, current - set(wanted)
        if not added and not removed:
            return self
        number, columns = self.layout_number + 1, dict(self.columns)
        for column in removed:
            columns[column] = self.periods_of(column).ended(closed_until)
        for column in added:
            columns[column] = FillPeriods(number, self.periods_of(column).before if column in existing else ())
        return FillHistory(number, columns)

    def writer_layout_number(self, columns: Collection[str]) -> int:
        """Return the layout number of a processor that fills only `columns`."""
        missing = [f.since for name, f in self.columns.items() if f.since is not None and name not in columns]
        return min(missing) - 1 if missing else self.layout_number


def mask_incomplete_metrics(layout: AggregationLayout, history: FillHistory) -> AggregationLayout:
    """Return a copy of the layout that makes queries return null for incomplete metrics.

    A metric is incomplete if the rows of a window lack some of the metric's events.
    """
    completeness = []
    metrics = [metric for metric, _ in layout.metrics]
    for metric in metrics:
        columns = [c for operand in function_operands(metrics, metric.name) for c in needed_columns(operand)]
        conditions = [history.periods_of(column).condition(layout.end_sql) for column in columns]
        distinct_conditions = dict.fromkeys(condition for condition in conditions if condition is not None)
        if distinct_conditions:
            completeness.append((metric.name, " AND ".join(distinct_conditions)))
    return replace(layout, completeness=tuple(completeness)) if completeness else layout
