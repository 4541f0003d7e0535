"""Functions for counting events, counting values other than null, and counting values between bounds."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Annotated, Any, ClassVar

from pydantic import AfterValidator, Field

from tidemill_contract.functions.base import (
    NUMERIC,
    ColumnNeed,
    Function,
    Item,
    MergedColumns,
    Metric,
    Parameters,
    PartialKind,
    StoredColumn,
    fixed_type,
)


def _merge_counts(column: StoredColumn, old: str, new: str) -> str:
    return f"{old}.{column.quoted} + {new}.{column.quoted}"


def rollup_counts(column: StoredColumn) -> str:
    """Return the SQL of the sum of counts, as a bigint."""
    return f"sum({column.quoted})::bigint"


COUNT = PartialKind(name="count", sql_type=fixed_type("bigint"), merge=_merge_counts, rollup=rollup_counts)
"""The kind of the column with the number of events. Every row has this column."""
VALUE_COUNT = PartialKind(name="n", sql_type=fixed_type("bigint"), merge=_merge_counts, rollup=rollup_counts)
"""Columns of this kind count the events in which the field is not null."""


def _merge_histogram(column: StoredColumn, old: str, new: str) -> str:
    a, b = f"{old}.{column.quoted}", f"{new}.{column.quoted}"
    pairs = f"unnest({a}, {b}) WITH ORDINALITY AS u (a, b, n)"
    both = f"SELECT array_agg(u.a + u.b ORDER BY u.n) FROM {pairs}"
    return f"CASE WHEN {a} IS NULL THEN {b} WHEN {b} IS NULL THEN {a} ELSE ({both}) END"


def _rollup_histogram(column: StoredColumn) -> str:
    # `unnest` joins all arrays. All arrays have the same length, so `index` is the index within an array.
    rows = f"unnest(array_agg({column.quoted}) FILTER (WHERE {column.quoted} IS NOT NULL))"
    index = f"mod(u.n - 1, {len(column.bounds) + 1})"
    totals = f"SELECT {index} AS place, sum(u.v)::bigint AS total FROM {rows} WITH ORDINALITY AS u (v, n) GROUP BY 1"
    return f"(SELECT array_agg(t.total ORDER BY t.place) FROM ({totals}) AS t)"


HISTOGRAM = PartialKind(
    name="histogram", sql_type=fixed_type("bigint[]"), merge=_merge_histogram, rollup=_rollup_histogram
)
"""The kind of histogram columns. Histograms count the values below the first bound, between neighbouring bounds, and
from the last bound on."""
KINDS = (COUNT, VALUE_COUNT, HISTOGRAM)


class Count(Function):
    """The number of events."""

    name = "count"
    description = "the number of events; with `field`, of events in which the field is not null"
    field_optional = True
    zero_filled = True

    def needs(self, metric: Metric) -> tuple[ColumnNeed, ...]:
        """Return the counting column."""
        return (ColumnNeed(VALUE_COUNT if metric.field else COUNT, metric.field),)

    def answer_sql(self, merged: MergedColumns) -> str:
        """Return the only column."""
        (column,) = merged.columns.values()
        return column

    def answer_type(self, field_type: str | None) -> str:
        """Return `integer`."""
        return "integer"

    def answer_range(self, field_type: str | None) -> tuple[float, float]:
        """Return 0 and infinity."""
        return 0.0, math.inf


def _check_ascending(bounds: list[float] | None) -> list[float] | None:
    if bounds is not None and not all(low < high for low, high in pairwise([-math.inf, *bounds, math.inf])):
        raise ValueError("are not in ascending order: write finite numbers, each greater than the previous number")
    return bounds


class HistogramParameters(Parameters):
    """The bounds of a histogram."""

    remedies: ClassVar[Mapping[str, str]] = {
        "bounds": "add numbers in ascending order, such as bounds: [10, 100, 1000]"
    }

    bounds: Annotated[list[float], AfterValidator(_check_ascending)] = Field(
        min_length=1,
        max_length=64,
        description="Numbers in ascending order. The values between neighbouring numbers are counted.",
    )


class Histogram(Function):
    """The number of values between neighbouring bounds."""

    name = "histogram"
    description = (
        "the number of values in each bucket; `bounds` (1 to 64 ascending numbers) separate the buckets;"
        " a value equal to a bound belongs to the bucket above"
    )
    field_types = NUMERIC
    parameters = HistogramParameters
    example: ClassVar[Mapping[str, Any]] = {"bounds": [-10, 0, 0.5, 1000]}
    item = Item(
        "HistogramBucket",
        "An item of a histogram: the number of values from `from` (included) to `to` (excluded). Null means no bound.",
        {
            "from": {"anyOf": [{"type": "number"}, {"type": "null"}]},
            "to": {"anyOf": [{"type": "number"}, {"type": "null"}]},
            "count": {"type": "integer"},
        },
    )

    def needs(self, metric: Metric) -> tuple[ColumnNeed, ...]:
        """Return the histogram's column."""
        bounds = tuple(map(float, HistogramParameters.of(metric).bounds))
        return (ColumnNeed(HISTOGRAM, metric.field, bounds=bounds),)

    def answer_sql(self, merged: MergedColumns) -> str:
        """Return the column with the counts."""
        return merged.columns["histogram"]

    def answer_type(self, field_type: str | None) -> str:
        """Return `array`."""
        return "array"

    def decoder(self, metric: Metric, field_type: str | None) -> Callable[[Any], Any]:
        """Return a decoder that adds the bounds to each count."""
        bounds = HistogramParameters.of(metric).bounds
        edges = list(pairwise([None, *bounds, None]))

        def with_bounds(counts: list[int] | None) -> list[dict[str, Any]] | None:
            if counts is None:
                return None
            return [{"from": a, "to": b, "count": count} for (a, b), count in zip(edges, counts, strict=True)]

        return with_bounds


FUNCTIONS = (Count(), Histogram())
