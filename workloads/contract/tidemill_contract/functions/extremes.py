"""The smallest and the largest value of a field."""

from __future__ import annotations

from tidemill_contract.functions.base import (
    ORDERED_TYPES,
    Function,
    MergedColumns,
    PartialKind,
    StoredColumn,
    field_sql_type,
)


def _extreme_kind(function: str, pairwise: str) -> PartialKind:
    def merge(column: StoredColumn, old: str, new: str) -> str:
        return f"{pairwise}({old}.{column.quoted}, {new}.{column.quoted})"

    def rollup(column: StoredColumn) -> str:
        return f"{function}({column.quoted})"

    return PartialKind(name=function, sql_type=field_sql_type, merge=merge, rollup=rollup)


MIN, MAX = _extreme_kind("min", "least"), _extreme_kind("max", "greatest")
KINDS = (MIN, MAX)


class Least(Function):
    """The smallest value of a field."""

    name = "min"
    description = "the smallest value"
    field_types = ORDERED_TYPES
    kinds = (MIN,)

    def answer_sql(self, merged: MergedColumns) -> str:
        """Return the column."""
        return merged.columns["min"]


class Greatest(Function):
    """The largest value of a field."""

    name = "max"
    description = "the largest value"
    field_types = ORDERED_TYPES
    kinds = (MAX,)

    def answer_sql(self, merged: MergedColumns) -> str:
        """Return the column."""
        return merged.columns["max"]


FUNCTIONS = (Least(), Greatest())
