"""Sums, and the functions that divide sums: averages and rates."""

from __future__ import annotations

import math

from tidemill_contract.decimals import MAX_DIGITS, decimal_type, scale_of, value_sql
from tidemill_contract.functions import doubles
from tidemill_contract.functions.base import (
    NUMERIC,
    ColumnNeed,
    Function,
    MergedColumns,
    Metric,
    PartialKind,
    StoredColumn,
)
from tidemill_contract.functions.counting import COUNT, VALUE_COUNT


def _sql_type(field_type: str) -> str:
    return "double precision" if field_type == "number" else "numeric"


def _merge_sum(column: StoredColumn, old: str, new: str) -> str:
    a, b = f"{old}.{column.quoted}", f"{new}.{column.quoted}"
    return doubles.add(a, b) if column.sql_type == "double precision" else f"coalesce({a} + {b}, {a}, {b})"


def _rollup_sum(column: StoredColumn) -> str:
    return doubles.sum_aggregate(column.quoted) if column.sql_type == "double precision" else f"sum({column.quoted})"


SUM = PartialKind(name="sum", sql_type=_sql_type, merge=_merge_sum, rollup=_rollup_sum)
"""The kind of columns with the sum of a field's values. Sums of integers and decimals are exact at any size. Sums of
`number` fields are doubles."""
KINDS = (SUM,)
AVERAGE_SCALE = 6
"""The minimum number of digits after the point in a mean of decimals, as in Flink's AVG."""


def _double(column: str, field_type: str | None) -> str:
    scale = scale_of(field_type)
    return f"{column if scale is None else value_sql(column, scale)}::double precision"


class Sum(Function):
    """The sum of a field's values."""

    name = "sum"
    description = "the sum; sums of integers and decimals can have any size; a boolean counts as 0 or 1"
    accuracy = "exact for integers and decimals, else 1e-9 relative"
    field_types = NUMERIC
    kinds = (SUM,)
    zero_filled = True

    def answer_sql(self, merged: MergedColumns) -> str:
        """Return the sum."""
        column = merged.columns["sum"]
        return doubles.finite_or_null(column) if merged.field_type == "number" else column

    def answer_type(self, field_type: str | None) -> str:
        """Return the sum's type."""
        return str(field_type) if field_type == "number" or scale_of(field_type) is not None else "integer"

    def answer_range(self, field_type: str | None) -> tuple[float, float]:
        """Return the range."""
        return (0.0 if field_type == "boolean" else -math.inf), math.inf


class Average(Function):
    """The mean of a field's values."""

    name = "avg"
    description = f"the mean; a mean of decimals has at least {AVERAGE_SCALE} digits after the point"
    accuracy = "1e-9 relative; for decimals half a unit of the last digit"
    field_types = NUMERIC
    kinds = (VALUE_COUNT, SUM)

    def answer_sql(self, merged: MergedColumns) -> str:
        """Return the mean. A mean of decimals is rounded half away from zero."""
        total, count = merged.columns["sum"], merged.columns["n"]
        scale = scale_of(merged.field_type)
        if scale is None:
            return doubles.divide(doubles.finite_or_null(f"{total}::double precision"), count)
        # For `numeric`, `div` truncates exactly, and `/` rounds.
        scaled = f"{total} * {10 ** (_scale_of_average(scale) - scale)}"
        return f"sign({total}) * div(2 * abs({scaled}) + {count}, nullif(2 * {count}, 0))"

    def answer_type(self, field_type: str | None) -> str:
        """Return the mean's type."""
        scale = scale_of(field_type)
        return "number" if scale is None else decimal_type(_scale_of_average(scale))

    def answer_range(self, field_type: str | None) -> tuple[float, float]:
        """Return the range."""
        return (0.0, 1.0) if field_type == "boolean" else (-math.inf, math.inf)


def _scale_of_average(scale: int) -> int:
    return min(max(scale, AVERAGE_SCALE), MAX_DIGITS)


class Rate(Function):
    """The number of events, or the sum of a field, per second of the window."""

    name = "rate"
    description = "events per second of the window; with `field`, the sum of the field per second"
    accuracy = "1e-9 relative"
    field_types = NUMERIC
    field_optional = True
    zero_filled = True

    def needs(self, metric: Metric) -> tuple[ColumnNeed, ...]:
        """Return the column."""
        return (ColumnNeed(SUM if metric.field else COUNT, metric.field),)

    def answer_sql(self, merged: MergedColumns) -> str:
        """Return the rate."""
        (column,) = merged.columns.values()
        return doubles.per_second(doubles.finite_or_null(_double(column, merged.field_type)), merged.seconds)

    def answer_type(self, field_type: str | None) -> str:
        """Return `number`."""
        return "number"

    def answer_range(self, field_type: str | None) -> tuple[float, float]:
        """Return the range."""
        return (0.0 if field_type in (None, "boolean") else -math.inf), math.inf


FUNCTIONS = (Sum(), Average(), Rate())
