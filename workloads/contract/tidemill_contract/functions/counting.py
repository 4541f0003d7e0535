"""Counts of events: of all, of those in which a field is not null, and of those between bounds."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Annotated, Any, ClassVar

from pydantic import AfterValidator, Field

from tidemill_contract.functions.base import (
    NUMERIC,
    Function,
    Item,
    Merged,
    Metric,
    Need,
    Parameters,
    PartialKind,
    StoredColumn,
    always,
)


def _added(column: StoredColumn, old: str, new: str) -> str:
    return f"{old}.{column.quoted} + {new}.{column.quoted}"


def _total(column: StoredColumn) -> str:
    return f"sum({column.quoted})::bigint"


COUNT = PartialKind(name="count", sql_type=always("bigint"), merge=_added, rollup=_total)
"""Events; every row has it."""
VALUES = PartialKind(name="n", sql_type=always("bigint"), merge=_added, rollup=_total)
"""Events in which the field is not null."""


def _between(column: StoredColumn, old: str, new: str) -> str:
    a, b = f"{old}.{column.quoted}", f"{new}.{column.quoted}"
    pairs = f"unnest({a}, {b}) WITH ORDINALITY AS u (a, b, n)"
    both = f"SELECT array_agg(u.a + u.b ORDER BY u.n) FROM {pairs}"
    return f"CASE WHEN {a} IS NULL THEN {b} WHEN {b} IS NULL THEN {a} ELSE ({both}) END"


def _all_between(column: StoredColumn) -> str:
    # Arrays of one length are put together to one of two dimensions, which unnest reads row by row.
    rows = f"unnest(array_agg({column.quoted}) FILTER (WHERE {column.quoted} IS NOT NULL))"
    place = f"mod(u.n - 1, {len(column.bounds) + 1})"
    totals = f"SELECT {place} AS place, sum(u.v)::bigint AS total FROM {rows} WITH ORDINALITY AS u (v, n) GROUP BY 1"
    return f"(SELECT array_agg(t.total ORDER BY t.place) FROM ({totals}) AS t)"


BETWEEN = PartialKind(name="histogram", sql_type=always("bigint[]"), merge=_between, rollup=_all_between)
"""Values below the first bound, from each bound to the next, and from the last on."""
KINDS = (COUNT, VALUES, BETWEEN)


class Count(Function):
    """The number of events."""

    name = "count"
    value = "events; with `field` those in which it is not null"
    alone = True
    zero_filled = True

    def needs(self, metric: Metric) -> tuple[Need, ...]:
        """Its own column, or that of the field."""
        return (Need(VALUES if metric.field else COUNT, metric.field),)

    def answer(self, merged: Merged) -> str:
        """The one column that there is."""
        (column,) = merged.columns.values()
        return column

    def answer_type(self, field_type: str | None) -> str:
        """A whole number."""
        return "integer"

    def answer_range(self, field_type: str | None) -> tuple[float, float]:
        """There are no fewer than none."""
        return 0.0, math.inf


def _ascending(bounds: list[float] | None) -> list[float] | None:
    if bounds is not None and not all(low < high for low, high in pairwise([-math.inf, *bounds, math.inf])):
        raise ValueError("are not in ascending order: write finite numbers, each greater than the one before")
    return bounds


class HistogramParameters(Parameters):
    """Which bounds."""

    remedies: ClassVar[Mapping[str, str]] = {"bounds": "add some in ascending order, such as bounds: [10, 100, 1000]"}

    bounds: Annotated[list[float], AfterValidator(_ascending)] = Field(
        min_length=1, max_length=64, description="Ascending numbers between which values are counted."
    )


class Histogram(Function):
    """How many values are between bounds."""

    name = "histogram"
    value = "with ascending `bounds` (1 to 64): how many values are below the first, from each to the next, and beyond"
    takes = NUMERIC
    parameters = HistogramParameters
    example: ClassVar[Mapping[str, Any]] = {"bounds": [-10, 0, 0.5, 1000]}
    item = Item(
        "HistogramBucket",
        "What a histogram metric lists: how many values are at least `from` and less than `to`; null: no bound.",
        {
            "from": {"anyOf": [{"type": "number"}, {"type": "null"}]},
            "to": {"anyOf": [{"type": "number"}, {"type": "null"}]},
            "count": {"type": "integer"},
        },
    )

    def needs(self, metric: Metric) -> tuple[Need, ...]:
        """Other bounds are another column."""
        bounds = tuple(map(float, HistogramParameters.of(metric).bounds))
        return (Need(BETWEEN, metric.field, bounds=bounds),)

    def answer(self, merged: Merged) -> str:
        """The counts."""
        return merged.columns["histogram"]

    def answer_type(self, field_type: str | None) -> str:
        """A list."""
        return "array"

    def decoder(self, metric: Metric, field_type: str | None) -> Callable[[Any], Any]:
        """What tells the bounds of each count."""
        bounds = HistogramParameters.of(metric).bounds
        edges = list(pairwise([None, *bounds, None]))

        def listed(counts: list[int] | None) -> list[dict[str, Any]] | None:
            if counts is None:
                return None
            return [{"from": a, "to": b, "count": count} for (a, b), count in zip(edges, counts, strict=True)]

        return listed


FUNCTIONS = (Count(), Histogram())
