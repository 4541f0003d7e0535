"""The value of one event of a window: the first, the last, or the one where another field is least or greatest.

Beside a value stands where its event was: an array of event time, its microseconds, epoch, partition and offset, and
the place in an exploded array. Rows from before there were microseconds compare by their milliseconds, and a tie within
one is broken either way. Where another field decides, its value stands there too, and of equal ones the earliest event
counts.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from pydantic import Field

from tidemill_contract.functions.base import (
    ORDERED,
    Function,
    Merged,
    Metric,
    Name,
    Need,
    Parameters,
    PartialKind,
    StoredColumn,
    always,
    like_field,
)


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


def _ranked(name: str, *, better: str, direction: str) -> tuple[PartialKind, PartialKind, PartialKind]:
    """The value, the other field's value, and where the event was."""

    def merged(column: StoredColumn, old: str, new: str) -> str:
        key, at = column.sibling(f"key_{name}"), column.sibling(f"at_{name}")
        return (
            f"CASE WHEN {old}.{key} IS NULL OR {new}.{key} {better} {old}.{key}"
            f" OR ({new}.{key} = {old}.{key} AND {new}.{at} < {old}.{at})"
            f" THEN {new}.{column.quoted} ELSE {old}.{column.quoted} END"
        )

    def best(column: StoredColumn, value: str) -> str:
        key, at = column.sibling(f"key_{name}"), column.sibling(f"at_{name}")
        order = f"ORDER BY {key}{direction}, {at}"
        return f"(array_agg({value} {order}) FILTER (WHERE {key} IS NOT NULL))[1]"

    def rollup(column: StoredColumn) -> str:
        return best(column, column.quoted)

    def place(column: StoredColumn) -> str:
        return f"{best(column, f'{column.quoted}::text')}::bigint[]"  # an array of arrays has no array in it

    return (
        PartialKind(name=name, sql_type=like_field, merge=merged, rollup=rollup, ordered=True),
        PartialKind(name=f"key_{name}", sql_type=like_field, merge=merged, rollup=rollup, ordered=True),
        PartialKind(name=f"at_{name}", sql_type=always("bigint[]"), merge=merged, rollup=place, ordered=True),
    )


LOWEST = _ranked("lowest", better="<", direction="")
HIGHEST = _ranked("highest", better=">", direction=" DESC")
KINDS = (*FIRST, *LAST, *LOWEST, *HIGHEST)


class First(Function):
    """The earliest value of a field."""

    name = "first"
    value = "the earliest by event time to the microsecond, ties by partition, offset and place in an exploded array"
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


class RankedParameters(Parameters):
    """Which field decides."""

    fields: ClassVar[Mapping[str, tuple[str, ...]]] = {"by": ORDERED}
    remedies: ClassVar[Mapping[str, str]] = {"by": "name the field or derive that is to be least or greatest"}

    by: Name = Field(description="Field or derive that is least or greatest where the value is taken.")


class MinBy(Function):
    """The value where another field is least."""

    name = "min_by"
    value = "the value where the field `by` is least, of equal ones the earliest; events without either are skipped"
    parameters = RankedParameters
    kinds = LOWEST

    def needs(self, metric: Metric) -> tuple[Need, ...]:
        """All three, of both fields."""
        by, (value, key, place) = RankedParameters.of(metric).by, self.kinds
        field = metric.field
        return Need(value, field, by=by), Need(key, field, by=by, source=by), Need(place, field, by=by)

    def answer(self, merged: Merged) -> str:
        """The value's column."""
        return merged.columns[self.kinds[0].name]


class MaxBy(MinBy):
    """The value where another field is greatest."""

    name = "max_by"
    value = "likewise where `by` is greatest"
    kinds = HIGHEST


FUNCTIONS = (First(), Last(), MinBy(), MaxBy())
