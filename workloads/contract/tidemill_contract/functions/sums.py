"""Sums, and the functions that divide them: averages and rates."""

from __future__ import annotations

import math

from tidemill_contract.functions import doubles
from tidemill_contract.functions.base import NUMERIC, Function, Merged, Metric, Need, PartialKind, StoredColumn
from tidemill_contract.functions.counting import COUNT, VALUES


def _sql_type(field_type: str) -> str:
    return "double precision" if field_type == "number" else "numeric"


def _merged(column: StoredColumn, old: str, new: str) -> str:
    a, b = f"{old}.{column.quoted}", f"{new}.{column.quoted}"
    return doubles.added(a, b) if column.sql_type == "double precision" else f"coalesce({a} + {b}, {a}, {b})"


def _rollup(column: StoredColumn) -> str:
    return doubles.total(column.quoted) if column.sql_type == "double precision" else f"sum({column.quoted})"


SUM = PartialKind(name="sum", sql_type=_sql_type, merge=_merged, rollup=_rollup)
"""The sum of the field's values: of integers exact at any size, of numbers as a double."""
KINDS = (SUM,)


class Sum(Function):
    """The sum of a field's values."""

    name = "sum"
    value = "the sum, of integers at any size; a boolean counts as 0 or 1"
    error = "exact for integers, else 1e-9 relative"
    takes = NUMERIC
    kinds = (SUM,)
    zero_filled = True

    def answer(self, merged: Merged) -> str:
        """Return the sum; of numbers null if it is beyond a double."""
        column = merged.columns["sum"]
        return doubles.finite(column) if merged.field_type == "number" else column

    def answer_type(self, field_type: str | None) -> str:
        """Return `number` for numbers, `integer` for integers and booleans."""
        return "number" if field_type == "number" else "integer"

    def answer_range(self, field_type: str | None) -> tuple[float, float]:
        """Return the range: a sum of booleans is never negative."""
        return (0.0 if field_type == "boolean" else -math.inf), math.inf


class Average(Function):
    """The mean of a field's values."""

    name = "avg"
    value = "the mean"
    error = "1e-9 relative"
    takes = NUMERIC
    kinds = (VALUES, SUM)

    def answer(self, merged: Merged) -> str:
        """Return the sum divided by the count."""
        total = f"{merged.columns['sum']}::double precision"
        return doubles.divided(doubles.finite(total), merged.columns["n"])

    def answer_type(self, field_type: str | None) -> str:
        """Return `number`."""
        return "number"

    def answer_range(self, field_type: str | None) -> tuple[float, float]:
        """Return the range: an average of booleans is between 0 and 1."""
        return (0.0, 1.0) if field_type == "boolean" else (-math.inf, math.inf)


class Rate(Function):
    """The number of events, or the sum of a field, per second of the window."""

    name = "rate"
    value = "events per second of the window; with `field`, the sum of the field per second"
    error = "1e-9 relative"
    takes = NUMERIC
    alone = True
    zero_filled = True

    def needs(self, metric: Metric) -> tuple[Need, ...]:
        """Return the sum of the field, or without a field the count of events."""
        return (Need(SUM if metric.field else COUNT, metric.field),)

    def answer(self, merged: Merged) -> str:
        """Return the only column divided by the window's length in seconds."""
        (column,) = merged.columns.values()
        return doubles.per(doubles.finite(f"{column}::double precision"), merged.seconds)

    def answer_type(self, field_type: str | None) -> str:
        """Return `number`."""
        return "number"

    def answer_range(self, field_type: str | None) -> tuple[float, float]:
        """Return the range: a rate of events or booleans is never negative."""
        return (0.0 if field_type in (None, "boolean") else -math.inf), math.inf


FUNCTIONS = (Sum(), Average(), Rate())
