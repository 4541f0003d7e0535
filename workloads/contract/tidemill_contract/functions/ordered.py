"""The values that came first and last, by event time.

Beside a value stands where its event was: an array of event time, its microseconds, epoch, partition and offset. Rows
from before there were microseconds compare by their milliseconds, and a tie within one is broken either way.
"""

from __future__ import annotations

from tidemill_contract.functions.base import Function, Merged, PartialKind, StoredColumn, always, like_field


def _of(name: str, *, earlier: str, pairwise: str, function: str, direction: str) -> tuple[PartialKind, PartialKind]:
    """The value, and where its event was."""

    def merged(column: StoredColumn, old: str, new: str) -> str:
        a, b, at = f"{old}.{column.quoted}", f"{new}.{column.quoted}", column.sibling(f"{name}_at")
        return f"CASE WHEN {old}.{at} IS NULL OR {new}.{at} {earlier} {old}.{at} THEN {b} ELSE {a} END"

    def rollup(column: StoredColumn) -> str:
        at = column.sibling(f"{name}_at")
        return f"(array_agg({column.quoted} ORDER BY {at}{direction}) FILTER (WHERE {at} IS NOT NULL))[1]"

    def place_merged(column: StoredColumn, old: str, new: str) -> str:
        return f"{pairwise}({old}.{column.quoted}, {new}.{column.quoted})"

    def place_rollup(column: StoredColumn) -> str:
        return f"{function}({column.quoted})"

    place = PartialKind(
        name=f"{name}_at", sql_type=always("bigint[]"), merge=place_merged, rollup=place_rollup, ordered=True
    )
    return PartialKind(name=name, sql_type=like_field, merge=merged, rollup=rollup, ordered=True), place


FIRST = _of("first", earlier="<", pairwise="least", function="min", direction="")
LAST = _of("last", earlier=">", pairwise="greatest", function="max", direction=" DESC")
KINDS = (*FIRST, *LAST)


class First(Function):
    """The earliest value of a field."""

    name = "first"
    value = "the earliest by event time to the microsecond, ties by partition and offset"
    kinds = FIRST

    def answer(self, merged: Merged) -> str:
        """The value's column."""
        return merged.columns["first"]


class Last(Function):
    """The latest value of a field."""

    name = "last"
    value = "the latest likewise"
    kinds = LAST

    def answer(self, merged: Merged) -> str:
        """The value's column."""
        return merged.columns["last"]


FUNCTIONS = (First(), Last())
