"""Functions for a field's value in one event of a window, such as the first or the last event.

Each value is stored with the position of its event. A position has the event time, microseconds, epoch, partition,
offset and index in an exploded array.
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
        # Positions are aggregated as texts, because array_agg of arrays returns a two-dimensional array.
        return f"{best(column, f'{column.quoted}::text')}::bigint[]"

    return (
        PartialKind(name=name, sql_type=like_field, merge=merged, rollup=rollup, ordered=True),
        PartialKind(name=f"key_{name}", sql_type=like_field, merge=merged, rollup=rollup, ordered=True),
        PartialKind(name=f"at_{name}", sql_type=always("bigint[]"), merge=merged, rollup=place, ordered=True),
    )


LOWEST = _ranked("lowest", better="<", direction="")
HIGHEST = _ranked("highest", better=">", direction=" DESC")
KINDS = (*FIRST, *LAST, *LOWEST, *HIGHEST)


class First(Function):
    """The value of the earliest event."""

    name = "first"
    value = (
        "the earliest value; the order follows the event time (in microseconds), then the partition, the offset and the"
        " index of the array element"
    )
    kinds = FIRST

    def answer(self, merged: Merged) -> str:
        """Return the value's column."""
        return merged.columns["first"]


class Last(Function):
    """The value of the latest event."""

    name = "last"
    value = "the latest value; values are ordered as for `first`"
    kinds = LAST

    def answer(self, merged: Merged) -> str:
        """Return the value's column."""
        return merged.columns["last"]


class RankedParameters(Parameters):
    """The parameter `by` of `min_by` and `max_by`."""

    fields: ClassVar[Mapping[str, tuple[str, ...]]] = {"by": ORDERED}
    remedies: ClassVar[Mapping[str, str]] = {
        "by": "name a field or a derived field whose smallest or largest value selects the event"
    }

    by: Name = Field(description="Field or derive whose smallest or largest value selects the event.")


class MinBy(Function):
    """The value in the event with the smallest value of another field."""

    name = "min_by"
    value = (
        "the value in the event with the smallest `by`; of several such events, the earliest counts;"
        " events with a null value or a null `by` are ignored"
    )
    parameters = RankedParameters
    kinds = LOWEST

    def needs(self, metric: Metric) -> tuple[Need, ...]:
        """Return the three columns."""
        by, (value, key, place) = RankedParameters.of(metric).by, self.kinds
        field = metric.field
        return Need(value, field, by=by), Need(key, field, by=by, source=by), Need(place, field, by=by)

    def answer(self, merged: Merged) -> str:
        """Return the value's column."""
        return merged.columns[self.kinds[0].name]


class MaxBy(MinBy):
    """The value in the event with the largest value of another field."""

    name = "max_by"
    value = "like `min_by`, but in the event with the largest `by`"
    kinds = HIGHEST


FUNCTIONS = (First(), Last(), MinBy(), MaxBy())
