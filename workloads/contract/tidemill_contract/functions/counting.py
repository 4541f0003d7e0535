"""Counts of events, and of those in which a field is not null."""

from __future__ import annotations

import math

from tidemill_contract.functions.base import Function, Merged, Metric, Need, PartialKind, StoredColumn, always


def _added(column: StoredColumn, old: str, new: str) -> str:
    return f"{old}.{column.quoted} + {new}.{column.quoted}"


def _total(column: StoredColumn) -> str:
    return f"sum({column.quoted})::bigint"


COUNT = PartialKind(name="count", sql_type=always("bigint"), merge=_added, rollup=_total)
"""Events; every row has it."""
VALUES = PartialKind(name="n", sql_type=always("bigint"), merge=_added, rollup=_total)
"""Events in which the field is not null."""
KINDS = (COUNT, VALUES)


class Count(Function):
    """The number of events."""

    name = "count"
    value = "events; with `field` those in which it is not null"
    alone = True
    zero_filled = True

    def needs(self, metric: Metric) -> tuple[Need, ...]:
        """Its own column, or that of the field."""
        return (Need(VALUES if metric.field else COUNT, metric.field),)

    def answer(self, merged: Merged) -> str:
        """The one column that there is."""
        (column,) = merged.columns.values()
        return column

    def answer_type(self, field_type: str | None) -> str:
        """A whole number."""
        return "integer"

    def answer_range(self, field_type: str | None) -> tuple[float, float]:
        """There are no fewer than none."""
        return 0.0, math.inf


FUNCTIONS = (Count(),)
