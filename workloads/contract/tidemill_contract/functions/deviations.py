"""The functions `variance` and `stddev`."""

from __future__ import annotations

import math

from tidemill_contract.decimals import scale_of
from tidemill_contract.functions import variance_sql
from tidemill_contract.functions.base import NUMERIC, Function, MergedColumns, PartialKind, StoredColumn, fixed_type
from tidemill_contract.functions.counting import VALUE_COUNT
from tidemill_contract.functions.doubles import divide, finite_or_null


def _moment_kind(name: str, *, optional: bool = False) -> PartialKind:
    def merge(column: StoredColumn, old: str, new: str) -> str:
        return variance_sql.merge_expression(name, column.sibling, old, new)

    def rollup(column: StoredColumn) -> str:
        return variance_sql.rollup_expression(name, column.sibling)

    return PartialKind(
        name=name, sql_type=fixed_type("double precision"), merge=merge, rollup=rollup, optional=optional
    )


MEAN, LOW, M2 = _moment_kind("mean"), _moment_kind("low", optional=True), _moment_kind("m2")
KINDS = (MEAN, LOW, M2)


class Variance(Function):
    """The population variance of a field's values (not the sample variance)."""

    name = "variance"
    description = "the population variance of the values"
    accuracy = "1e-9 relative"
    field_types = NUMERIC
    kinds = (VALUE_COUNT, MEAN, LOW, M2)

    def answer_sql(self, merged: MergedColumns) -> str:
        """Return the variance."""
        variance, scale = divide(finite_or_null(merged.columns["m2"]), merged.columns["n"]), scale_of(merged.field_type)
        return variance if not scale else f"({variance}) / 1e{2 * scale}::double precision"

    def answer_type(self, field_type: str | None) -> str:
        """Return `number`."""
        return "number"

    def answer_range(self, field_type: str | None) -> tuple[float, float]:
        """Return 0 and infinity."""
        return 0.0, math.inf


class StandardDeviation(Variance):
    """The standard deviation: the square root of the variance."""

    name = "stddev"
    description = "the square root of `variance`"

    def answer_sql(self, merged: MergedColumns) -> str:
        """Return the square root."""
        return f"sqrt({super().answer_sql(merged)})"


FUNCTIONS = (Variance(), StandardDeviation())
