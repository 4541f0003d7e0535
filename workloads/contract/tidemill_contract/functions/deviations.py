"""How far values are spread: variance and standard deviation, of the population. Their SQL is in `spread`."""

from __future__ import annotations

import math

from tidemill_contract.decimals import scale_of
from tidemill_contract.functions import spread
from tidemill_contract.functions.base import NUMERIC, Function, Merged, PartialKind, StoredColumn, always
from tidemill_contract.functions.counting import VALUES
from tidemill_contract.functions.doubles import divided, finite


def _of(name: str, *, refining: bool = False) -> PartialKind:
    def merged(column: StoredColumn, old: str, new: str) -> str:
        return spread.merged(name, column.sibling, old, new)

    def rollup(column: StoredColumn) -> str:
        return spread.rolled(name, column.sibling)

    return PartialKind(name=name, sql_type=always("double precision"), merge=merged, rollup=rollup, refining=refining)


MEAN, LOW, M2 = _of("mean"), _of("low", refining=True), _of("m2")
KINDS = (MEAN, LOW, M2)


class Variance(Function):
    """The population's variance."""

    name = "variance"
    value = "the population's"
    error = "1e-9 relative"
    takes = NUMERIC
    kinds = (VALUES, MEAN, LOW, M2)

    def answer(self, merged: Merged) -> str:
        """M2 by the count; of decimals it is of their scaled integers."""
        variance, scale = divided(finite(merged.columns["m2"]), merged.columns["n"]), scale_of(merged.field_type)
        return variance if not scale else f"({variance}) / 1e{2 * scale}::double precision"

    def answer_type(self, field_type: str | None) -> str:
        """A double."""
        return "number"

    def answer_range(self, field_type: str | None) -> tuple[float, float]:
        """Squares add up to no less than nothing."""
        return 0.0, math.inf


class StandardDeviation(Variance):
    """The root of the variance."""

    name = "stddev"
    value = "the root of `variance`"

    def answer(self, merged: Merged) -> str:
        """The root of it."""
        return f"sqrt({super().answer(merged)})"


FUNCTIONS = (Variance(), StandardDeviation())
