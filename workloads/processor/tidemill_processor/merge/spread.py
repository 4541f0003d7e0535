"""Sums, means and M2 of a batch's groups such that they are exact where a double allows it, and never refused.

Deviations are taken from a pivot, the group's least value: differences of integers and of doubles that are close to
each other are exact, and equal values deviate by exactly 0. What is beyond a double is stored as infinite, see
`tidemill_contract.functions.doubles`; the mean is kept in two doubles, see `tidemill_contract.functions.spread`.
"""

from __future__ import annotations

from collections.abc import Sequence

import polars as pl

from tidemill_contract.functions.partials import AggregationLayout, Partial

DEVIATION = "_deviation_"
"""What the deviations of a column are called, before its name."""
_DOWN, _LOW_BITS = 2.0**-64, 2**32 - 1


def numeric(name: str, frame: pl.DataFrame) -> pl.Expr:
    """A field's values to calculate with."""
    return pl.col(name).cast(pl.Int64) if frame.schema[name] == pl.Boolean else pl.col(name)


def widest(name: str, frame: pl.DataFrame) -> int:
    """The greatest absolute value of an integer field."""
    edges = (frame[name].min(), frame[name].max())
    return max((abs(edge) for edge in edges if isinstance(edge, int)), default=0)


def _spread(plan: AggregationLayout) -> list[str]:
    return [p.source for p in plan.partials if p.kind == "mean"]


def deviating(frame: pl.DataFrame, plan: AggregationLayout, keys: Sequence[str]) -> pl.DataFrame:
    """The frame with the deviations of the fields whose variance is asked for."""
    found = []
    for name in _spread(plan):
        value = numeric(name, frame)
        if frame.schema[name] == pl.Int64 and widest(name, frame) >= 2**62:
            value = value.cast(pl.Int128)  # differences in 64 bits wrap silently
        found.append((value - value.min().over(keys)).cast(pl.Float64).alias(DEVIATION + name))
    return frame.with_columns(found) if found else frame


def squares(name: str) -> pl.Expr:
    """M2 of a field's deviations."""
    m2 = pl.col(DEVIATION + name).var(ddof=0) * pl.col(name).count()
    return pl.when(m2.is_null() | m2.is_finite()).then(m2).otherwise(float("inf"))


def settled(rows: pl.DataFrame, frame: pl.DataFrame, plan: AggregationLayout, keys: Sequence[str]) -> pl.DataFrame:
    """Rows with pivots in place of low parts, and mean deviations in place of means: with both as they are stored.

    Sums that are infinite only because of the order in which they were taken are taken anew.
    """
    means = {p.source: p.column for p in plan.partials if p.kind == "mean"}
    lows = {p.source: p.column for p in plan.partials if p.kind == "low"}
    exact = [part for field, mean in means.items() for part in _mean(rows, mean, lows[field])]
    rows = rows.with_columns(exact) if exact else rows
    for partial in plan.partials:
        double = partial.kind == "sum" and rows.schema[partial.column] == pl.Float64
        if double and not rows[partial.column].is_finite().all():
            rows = _summed_anew(rows, frame, partial, keys)
    return rows


def _mean(rows: pl.DataFrame, mean: str, low: str) -> tuple[pl.Expr, pl.Expr]:
    """Pivot + mean deviation as two doubles."""
    pivot, deviation = pl.col(low), pl.col(mean)
    if rows.schema[low] == pl.Float64:
        high, rest = pivot, deviation
    else:
        # Each half of an integer is a double, and so is what their sum loses by rounding.
        lower = pivot & _LOW_BITS
        high, lost = _two_sum((pivot - lower).cast(pl.Float64), lower.cast(pl.Float64))
        rest = deviation + lost
    high, lost = _two_sum(high, rest)
    return high.alias(mean), lost.alias(low)


def _two_sum(a: pl.Expr, b: pl.Expr) -> tuple[pl.Expr, pl.Expr]:
    """The sum of two doubles, and what rounding took from it (Knuth)."""
    whole = a + b
    part = whole - a
    return whole, (a - (whole - part)) + (b - part)


def _summed_anew(rows: pl.DataFrame, frame: pl.DataFrame, partial: Partial, keys: Sequence[str]) -> pl.DataFrame:
    scaled = frame.group_by(keys).agg((pl.col(partial.source) * _DOWN).sum().alias("_scaled"))
    rows = rows.join(scaled, on=keys, how="left", nulls_equal=True)
    known = pl.col(partial.column)
    kept = pl.when(known.is_null() | known.is_finite()).then(known).otherwise(pl.col("_scaled") / _DOWN)
    return rows.with_columns(kept.alias(partial.column)).drop("_scaled")
