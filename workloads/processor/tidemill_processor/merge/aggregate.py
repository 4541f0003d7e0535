"""Aggregates events into partial results, which can be merged, and finds late events."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from itertools import pairwise, takewhile

import polars as pl

from tidemill_contract.decimals import scale_of
from tidemill_contract.functions.partials import (
    EXACT_INTEGERS,
    ORDERED_KINDS,
    REVISION,
    SKETCHES,
    AggregationLayout,
    Partial,
)
from tidemill_contract.grids import Steps
from tidemill_processor.batches.batch import ELEMENT, INDEX, MICROS, OFFSET, PARTITION, TIME
from tidemill_processor.merge import exact_sums

PANE, AFTER = "_pane", "_after_ms"
END = "_end_ms"
"""The column with the end of a session. The column `_pane` has the start of the session."""

NO_AFTER = -(2**63)
_POSITION = "_at"


@dataclass(frozen=True)
class Aggregated:
    """The partial results and the late events of one batch and one aggregation.

    Attributes:
        rows: the partial results. A row counts only in windows that end after the row's `_after_ms`.
        late: the events that are late for at least one window.
        doubtful: whether `late` may be wrong, because stored sessions may have changed.
        reopening_count: the number of late events that change closed windows.
    """

    rows: pl.DataFrame
    late: pl.DataFrame
    doubtful: bool = False
    reopening_count: int = 0


def aggregate(
    frame: pl.DataFrame, layout: AggregationLayout, *, closed_until: int | None, epochs: dict[int, int]
) -> Aggregated:
    """Aggregate the events of a frame for one aggregation.

    Args:
        frame: valid events.
        layout: the aggregation's layout.
        closed_until: the time (epoch ms) up to which windows are closed, or None before the first window is closed.
        epochs: the epoch of each partition, which orders events for `first` and `last`.
    """
    frame = frame.with_columns(_panes(frame, layout).alias(PANE))
    late = frame.select(INDEX, TIME, PANE).clear()
    after = pl.lit(NO_AFTER, dtype=pl.Int64).alias(AFTER)
    final_until = layout.final_until(closed_until)
    # An event whose pane has ended is late for at least its first window. An event whose last window has ended is
    # late for all its windows.
    if final_until is not None and frame.height:
        is_late = pl.col(PANE) < layout.grid.start_of(final_until)
        late = frame.filter(is_late).select(INDEX, TIME, PANE)
        if late.height:
            frame = frame.filter(pl.col(PANE) > layout.last_start(final_until))
            after = pl.when(is_late).then(final_until).otherwise(NO_AFTER).cast(pl.Int64).alias(AFTER)
    keys = [name for name, _ in layout.group_by] + [PANE]
    if layout.is_hopping:
        frame = frame.with_columns(after)
        keys.append(AFTER)
    rows = compute_partials(frame, layout, keys, epochs)
    late_rows = None if closed_until is None else pl.col(PANE) < layout.grid.start_of(closed_until)
    rows = with_revision(rows, layout, late_rows)
    return Aggregated(rows, late, reopening_count=count_reopening(rows))


def _panes(frame: pl.DataFrame, layout: AggregationLayout) -> pl.Expr:
    time, grid = pl.col(TIME), layout.grid
    if isinstance(grid, Steps):
        return time - (time - grid.offset_ms if grid.offset_ms else time) % grid.length_ms
    if not frame.height:
        return time
    starts = grid.starts(int(frame[TIME].min()), int(frame[TIME].max()))  # type: ignore[arg-type]
    if len(starts) == 1:
        return pl.lit(starts[0], dtype=pl.Int64)
    table = pl.Series(starts, dtype=pl.Int64)
    return pl.lit(table.gather(table.search_sorted(frame[TIME], side="right") - 1))


def with_revision(rows: pl.DataFrame, layout: AggregationLayout, late: pl.Expr | None) -> pl.DataFrame:
    """Add the revision column: 1 in rows that change a closed window, or else 0.

    Args:
        rows: the partials.
        layout: the aggregation's layout.
        late: an expression that is true for rows of closed windows, or None if no window is closed.
    """
    if layout.reopen_ms is None:
        return rows
    late = pl.lit(False) if late is None else late
    return rows.with_columns(late.cast(pl.Int64).alias(REVISION))


def count_reopening(rows: pl.DataFrame) -> int:
    """Return the number of events that change closed windows."""
    return int(rows.filter(pl.col(REVISION) > 0)["_count"].sum()) if REVISION in rows.columns else 0


def compute_partials(
    frame: pl.DataFrame, layout: AggregationLayout, keys: list[str], epochs: dict[int, int], *extra: pl.Expr
) -> pl.DataFrame:
    """Group a frame by `keys`. Return the partial results and the columns `extra` of each group."""
    if any(p.kind in ORDERED_KINDS for p in layout.partials):
        frame = _sort_by_position(frame, epochs)
    frame = exact_sums.with_deviations(frame, layout, keys)
    rows = frame.group_by(keys).agg([*extra, *(_expression(p, frame) for p in layout.partials if p.column != REVISION)])
    rows = exact_sums.with_exact_sums(rows, frame, layout, keys)
    sketch_columns = [_build_sketches(rows[p.column], p) for p in layout.partials if p.kind in SKETCHES]
    return rows.with_columns(sketch_columns) if sketch_columns else rows


def _build_sketches(values: pl.Series, partial: Partial) -> pl.Series:
    from tidemill_contract.functions import sketches

    stored = [sketches.build(partial, group) for group in values.to_list()]
    return pl.Series(partial.column, stored, dtype=pl.Binary)


def _sort_by_position(frame: pl.DataFrame, epochs: dict[int, int]) -> pl.DataFrame:
    epoch = pl.col(PARTITION).replace_strict(epochs, default=0, return_dtype=pl.Int64) if epochs else pl.lit(0)
    order = (TIME, MICROS, "_e", PARTITION, OFFSET, *([ELEMENT] if ELEMENT in frame.columns else []))
    frame = frame.with_columns(epoch.alias("_e")).sort(*order)
    position = pl.concat_str(pl.lit("{"), pl.concat_str(*order, separator=","), pl.lit("}"))
    return frame.with_columns(position.alias(_POSITION))


def _expression(partial: Partial, frame: pl.DataFrame) -> pl.Expr:
    if partial.field is None:
        count = pl.len() if partial.where is None else pl.col(partial.source).count()
        return count.cast(pl.Int64).alias(partial.column)
    return _EXPRESSIONS[partial.kind](_Field(partial, frame)).alias(partial.column)


class _Field:
    def __init__(self, partial: Partial, frame: pl.DataFrame) -> None:
        self.partial, self.frame, self.name = partial, frame, partial.source
        self.column, self.value = pl.col(self.name), exact_sums.numeric(self.name, frame)

    def may_exceed(self, bound: int, *, rows: int = 1) -> bool:
        return (
            self.frame.schema[self.name] == pl.Int64 and exact_sums.max_absolute(self.name, self.frame) * rows >= bound
        )


def _sum(field: _Field) -> pl.Expr:
    # Sum large values in 128 bits, because 64 bits would overflow silently.
    value = field.value.cast(pl.Int128) if field.may_exceed(2**62, rows=field.frame.height) else field.value
    return pl.when(field.column.count() > 0).then(value.sum())


def _values(field: _Field) -> pl.Expr:
    if isinstance(field.frame.schema[field.name], pl.List):
        return field.column.explode().drop_nulls()
    times = isinstance(field.frame.schema[field.name], pl.Datetime)
    return (field.column.cast(pl.Int64) if times else field.column).drop_nulls()


def _quantiles(field: _Field) -> pl.Expr:
    return (field.value if field.may_exceed(EXACT_INTEGERS + 1) else field.value.cast(pl.Float64)).drop_nulls()


def _value_at_extreme(field: _Field, wanted: str, *, least: bool) -> pl.Expr:
    by = pl.col(str(field.partial.by))
    candidates = by.filter(field.column.is_not_null())
    extreme = candidates.min() if least else candidates.max()
    return pl.col(wanted).filter(field.column.is_not_null() & (by == extreme)).first()


def _histogram(field: _Field) -> pl.Expr:
    counts_from = [field.column.count(), *(_at_least(field, bound).sum() for bound in field.partial.bounds), pl.lit(0)]
    counts = [(count.cast(pl.Int64) - above.cast(pl.Int64)).cast(pl.String) for count, above in pairwise(counts_from)]
    array = pl.concat_str(pl.lit("{"), pl.concat_str(counts, separator=","), pl.lit("}"))
    return pl.when(field.column.count() > 0).then(array)


def _at_least(field: _Field, bound: float) -> pl.Expr:
    if not field.frame.schema[field.name].is_integer():
        return field.value >= bound
    # Compare integers, because doubles round large values.
    scale = scale_of(field.partial.source_field[1]) if field.partial.source_field else None
    least = math.ceil(bound) if scale is None else math.ceil(Decimal(repr(bound)).scaleb(scale))
    return field.column >= least if abs(least) < 2**63 else field.column.is_not_null() & pl.lit(least < 0)


_EXPRESSIONS: dict[str, Callable[[_Field], pl.Expr]] = {
    "n": lambda field: field.column.count().cast(pl.Int64),
    "sum": _sum,
    "min": lambda field: field.column.min(),
    "max": lambda field: field.column.max(),
    "first": lambda field: field.column.drop_nulls().first(),
    "last": lambda field: field.column.drop_nulls().last(),
    "first_at": lambda field: pl.col(_POSITION).filter(field.column.is_not_null()).first(),
    "last_at": lambda field: pl.col(_POSITION).filter(field.column.is_not_null()).last(),
    "lowest": lambda field: _value_at_extreme(field, field.name, least=True),
    "key_lowest": lambda field: _value_at_extreme(field, str(field.partial.by), least=True),
    "at_lowest": lambda field: _value_at_extreme(field, _POSITION, least=True),
    "highest": lambda field: _value_at_extreme(field, field.name, least=False),
    "key_highest": lambda field: _value_at_extreme(field, str(field.partial.by), least=False),
    "at_highest": lambda field: _value_at_extreme(field, _POSITION, least=False),
    "histogram": _histogram,
    "mean": lambda field: pl.col(exact_sums.DEVIATION + field.name).mean(),
    "low": lambda field: field.value.min(),
    "m2": lambda field: exact_sums.squares(field.name),
    "quantiles": _quantiles,
    "uniques": lambda field: _values(field).unique(),
    "frequent": _values,
}


def missed_windows(pane: int, layout: AggregationLayout, closed_until: int) -> tuple[int, ...]:
    """Return the starts of the closed windows that contain `pane`, in ascending order."""
    starts = (layout.grid.shift(pane, -back) for back in range(layout.panes - 1, -1, -1))
    return tuple(takewhile(lambda start: layout.end_of(start) <= closed_until, starts))
