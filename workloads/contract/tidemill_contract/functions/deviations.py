"""The functions `variance` and `stddev`."""

from __future__ import annotations

import math

from tidemill_contract.decimals import scale_of
from tidemill_contract.functions import variance_sql
from tidemill_contract.functions.base import NUMERIC, Function, Merged, PartialKind, StoredColumn, always
from tidemill_contract.functions.counting import VALUES
from tidemill_contract.functions.doubles import divided, finite


def _of(name: str, *, refining: bool = False) -> PartialKind:
    def merged(column: StoredColumn, old: str, new: str) -> str:
        return variance_sql.merged(name, column.sibling, old, new)

    def rollup(column: StoredColumn) -> str:
        return variance_sql.rolled(name, column.sibling)

    return PartialKind(name=name, sql_type=always("double precision"), merge=merged, rollup=rollup, refining=refining)


MEAN, LOW, M2 = _of("mean"), _of("low", refining=True), _of("m2")
KINDS = (MEAN, LOW, M2)


class Variance(Function):
    """The population variance of a field's values (not the sample variance)."""

    name = "variance"
    value = "the population variance of the values"
    error = "1e-9 relative"
    takes = NUMERIC
    kinds = (VALUES, MEAN, LOW, M2)

    def answer(self, merged: Merged) -> str:
        """Return the variance."""
        variance, scale = divided(finite(merged.columns["m2"]), merged.columns["n"]), scale_of(merged.field_type)
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
    value = "the square root of `variance`"

    def answer(self, merged: Merged) -> str:
        """Return the square root."""
        return f"sqrt({super().answer(merged)})"


FUNCTIONS = (Variance(), StandardDeviation())
