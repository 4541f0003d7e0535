"""The smallest and the largest value of a field."""

from __future__ import annotations

from tidemill_contract.functions.base import ORDERED, Function, Merged, PartialKind, StoredColumn, like_field


def _of(function: str, pairwise: str) -> PartialKind:
    def merged(column: StoredColumn, old: str, new: str) -> str:
        return f"{pairwise}({old}.{column.quoted}, {new}.{column.quoted})"

    def rollup(column: StoredColumn) -> str:
        return f"{function}({column.quoted})"

    return PartialKind(name=function, sql_type=like_field, merge=merged, rollup=rollup)


MIN, MAX = _of("min", "least"), _of("max", "greatest")
KINDS = (MIN, MAX)


class Least(Function):
    """The smallest value of a field."""

    name = "min"
    value = "the smallest value"
    takes = ORDERED
    kinds = (MIN,)

    def answer(self, merged: Merged) -> str:
        """Return the column."""
        return merged.columns["min"]


class Greatest(Function):
    """The largest value of a field."""

    name = "max"
    value = "the largest value"
    takes = ORDERED
    kinds = (MAX,)

    def answer(self, merged: Merged) -> str:
        """Return the column."""
        return merged.columns["max"]


FUNCTIONS = (Least(), Greatest())
