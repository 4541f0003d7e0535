"""Functions for a field's value in one event of a window, such as the first or the last event.

Each value is stored with the position of its event. A position has the event time, microseconds, epoch, partition,
offset and index in an exploded array.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from pydantic import Field

from tidemill_contract.functions.base import (
    ORDERED_TYPES,
    ColumnNeed,
    Function,
    MergedColumns,
    Metric,
    Name,
    Parameters,
    PartialKind,
    StoredColumn,
    field_sql_type,
    fixed_type,
)


def _first_or_last_kinds(
    name: str, *, earlier: str, pairwise: str, function: str, direction: str
) -> tuple[PartialKind, PartialKind]:
    def merged(column: StoredColumn, old: str, new: str) -> str:
        a, b, at = f"{old}.{column.quoted}", f"{new}.{column.quoted}", column.sibling(f"{name}_at")
        return f"CASE WHEN {old}.{at} IS NULL OR {new}.{at} {earlier} {old}.{at} THEN {b} ELSE {a} END"

    def rollup(column: StoredColumn) -> str:
        at = column.sibling(f"{name}_at")
        return f"(array_agg({column.quoted} ORDER BY {at}{direction}) FILTER (WHERE {at} IS NOT NULL))[1]"

    def merge_position(column: StoredColumn, old: str, new: str) -> str:
        return f"{pairwise}({old}.{column.quoted}, {new}.{column.quoted})"

    def rollup_position(column: StoredColumn) -> str:
        return f"{function}({column.quoted})"

    position = PartialKind(
        name=f"{name}_at",
        sql_type=fixed_type("bigint[]"),
        merge=merge_position,
        rollup=rollup_position,
        needs_order=True,
    )
    return PartialKind(name=name, sql_type=field_sql_type, merge=merged, rollup=rollup, needs_order=True), position


FIRST = _first_or_last_kinds("first", earlier="<", pairwise="least", function="min", direction="")
LAST = _first_or_last_kinds("last", earlier=">", pairwise="greatest", function="max", direction=" DESC")


def _ranked_kinds(name: str, *, better: str, direction: str) -> tuple[PartialKind, PartialKind, PartialKind]:
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

    def rollup_position(column: StoredColumn) -> str:
        # Positions are aggregated as texts, because array_agg of arrays returns a two-dimensional array.
        return f"{best(column, f'{column.quoted}::text')}::bigint[]"

    return (
        PartialKind(name=name, sql_type=field_sql_type, merge=merged, rollup=rollup, needs_order=True),
        PartialKind(name=f"key_{name}", sql_type=field_sql_type, merge=merged, rollup=rollup, needs_order=True),
        PartialKind(
            name=f"at_{name}", sql_type=fixed_type("bigint[]"), merge=merged, rollup=rollup_position, needs_order=True
        ),
    )


LOWEST = _ranked_kinds("lowest", better="<", direction="")
HIGHEST = _ranked_kinds("highest", better=">", direction=" DESC")
KINDS = (*FIRST, *LAST, *LOWEST, *HIGHEST)


class First(Function):
    """The value of the earliest event."""

    name = "first"
    description = (
        "the earliest value; the order follows the event time (in microseconds), then the partition, the offset and the"
        " index of the array element"
    )
    kinds = FIRST

    def answer_sql(self, merged: MergedColumns) -> str:
        """Return the value's column."""
        return merged.columns["first"]


class Last(Function):
    """The value of the latest event."""

    name = "last"
    description = "the latest value; values are ordered as for `first`"
    kinds = LAST

    def answer_sql(self, merged: MergedColumns) -> str:
        """Return the value's column."""
        return merged.columns["last"]


class RankedParameters(Parameters):
    """The parameter `by` of `min_by` and `max_by`."""

    fields: ClassVar[Mapping[str, tuple[str, ...]]] = {"by": ORDERED_TYPES}
    remedies: ClassVar[Mapping[str, str]] = {
        "by": "name a field or a derived field whose smallest or largest value selects the event"
    }

    by: Name = Field(description="Field or derive whose smallest or largest value selects the event.")


class MinBy(Function):
    """The value in the event with the smallest value of another field."""

    name = "min_by"
    description = (
        "the value in the event with the smallest `by`; of several such events, the earliest counts;"
        " events with a null value or a null `by` are ignored"
    )
    parameters = RankedParameters
    kinds = LOWEST

    def needs(self, metric: Metric) -> tuple[ColumnNeed, ...]:
        """Return the three columns."""
        by, (value, key, position) = RankedParameters.of(metric).by, self.kinds
        field = metric.field
        return (
            ColumnNeed(value, field, by=by),
            ColumnNeed(key, field, by=by, source=by),
            ColumnNeed(position, field, by=by),
        )

    def answer_sql(self, merged: MergedColumns) -> str:
        """Return the value's column."""
        return merged.columns[self.kinds[0].name]


class MaxBy(MinBy):
    """The value in the event with the largest value of another field."""

    name = "max_by"
    description = "like `min_by`, but in the event with the largest `by`"
    kinds = HIGHEST


FUNCTIONS = (First(), Last(), MinBy(), MaxBy())
