"""Computes sums, means and sums of squared deviations (M2) as exactly as doubles allow."""

from __future__ import annotations

from collections.abc import Sequence

import polars as pl

from tidemill_contract.functions.partials import AggregationLayout, Partial

DEVIATION = "_deviation_"
_DOWN, _LOW_BITS = 2.0**-64, 2**32 - 1


def numeric(name: str, frame: pl.DataFrame) -> pl.Expr:
    """Return an expression for a field's values as numbers."""
    return pl.col(name).cast(pl.Int64) if frame.schema[name] == pl.Boolean else pl.col(name)


def max_absolute(name: str, frame: pl.DataFrame) -> int:
    """Return the greatest absolute value found in an integer column, or 0 for other columns."""
    edges = (frame[name].min(), frame[name].max())
    return max((abs(edge) for edge in edges if isinstance(edge, int)), default=0)


def _variance_fields(layout: AggregationLayout) -> list[str]:
    return [p.source for p in layout.partials if p.kind == "mean"]


def with_deviations(frame: pl.DataFrame, layout: AggregationLayout, keys: Sequence[str]) -> pl.DataFrame:
    """For each field of a variance metric, add a column: the value minus the group's minimum."""
    columns = []
    for name in _variance_fields(layout):
        value = numeric(name, frame)
        if frame.schema[name] == pl.Int64 and max_absolute(name, frame) >= 2**62:
            value = value.cast(pl.Int128)
        columns.append((value - value.min().over(keys)).cast(pl.Float64).alias(DEVIATION + name))
    return frame.with_columns(columns) if columns else frame


def squares(name: str) -> pl.Expr:
    """Return an expression for the sum of squared deviations (M2) of a field."""
    m2 = pl.col(DEVIATION + name).var(ddof=0) * pl.col(name).count()
    return pl.when(m2.is_null() | m2.is_finite()).then(m2).otherwise(float("inf"))


def with_exact_sums(
    rows: pl.DataFrame, frame: pl.DataFrame, layout: AggregationLayout, keys: Sequence[str]
) -> pl.DataFrame:
    """Return the rows with means and sums in the form that Postgres stores."""
    means = {p.source: p.column for p in layout.partials if p.kind == "mean"}
    lows = {p.source: p.column for p in layout.partials if p.kind == "low"}
    exact = [part for field, mean in means.items() for part in _mean(rows, mean, lows[field])]
    rows = rows.with_columns(exact) if exact else rows
    for partial in layout.partials:
        double = partial.kind == "sum" and rows.schema[partial.column] == pl.Float64
        if double and not rows[partial.column].is_finite().all():
            rows = _recompute_sum(rows, frame, partial, keys)
    return rows


def _mean(rows: pl.DataFrame, mean: str, low: str) -> tuple[pl.Expr, pl.Expr]:
    pivot, deviation = pl.col(low), pl.col(mean)
    if rows.schema[low] == pl.Float64:
        high, rest = pivot, deviation
    else:
        # Split the integer into its upper and lower 32 bits, which are exact as doubles. `_two_sum` also returns the
        # exact rounding error of the sum.
        lower = pivot & _LOW_BITS
        high, lost = _two_sum((pivot - lower).cast(pl.Float64), lower.cast(pl.Float64))
        rest = deviation + lost
    high, lost = _two_sum(high, rest)
    return high.alias(mean), lost.alias(low)


def _two_sum(a: pl.Expr, b: pl.Expr) -> tuple[pl.Expr, pl.Expr]:
    """Return the sum of two doubles and its rounding error (Knuth's TwoSum)."""
    whole = a + b
    part = whole - a
    return whole, (a - (whole - part)) + (b - part)


def _recompute_sum(rows: pl.DataFrame, frame: pl.DataFrame, partial: Partial, keys: Sequence[str]) -> pl.DataFrame:
    scaled = frame.group_by(keys).agg((pl.col(partial.source) * _DOWN).sum().alias("_scaled"))
    rows = rows.join(scaled, on=keys, how="left", nulls_equal=True)
    total = pl.col(partial.column)
    finite_total = pl.when(total.is_null() | total.is_finite()).then(total).otherwise(pl.col("_scaled") / _DOWN)
    return rows.with_columns(finite_total.alias(partial.column)).drop("_scaled")
