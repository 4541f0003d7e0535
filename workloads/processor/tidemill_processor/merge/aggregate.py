"""Frames of events to frames of mergeable partials, one per aggregation, with what came too late told apart."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from itertools import pairwise

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
from tidemill_processor.batch import INDEX, MICROS, OFFSET, PARTITION, TIME
from tidemill_processor.merge import spread

PANE, AFTER = "_pane", "_after_ms"
"""Partial frames' columns beside groups and partials: pane start, and the cut of events that some windows missed."""
END = "_end_ms"
"""Of sessions: where they end, and `_pane` is where they start."""

NO_CUT = -(2**63)
_AT = "_at"


@dataclass(frozen=True)
class Aggregated:
    """What a batch adds to one aggregation.

    Attributes:
        rows: group columns, `_pane` (epoch ms), `_after_ms` (hopping; NO_CUT: none), then the partials' columns.
        late: `_i`, `_t` and `_pane` of the events that at least one closed window missed.
        reopening: number of events that changed closed windows.
        doubtful: what is late was decided by sessions that may have changed since.
    """

    rows: pl.DataFrame
    late: pl.DataFrame
    doubtful: bool = False
    reopening: int = 0


def aggregate(
    frame: pl.DataFrame, plan: AggregationLayout, *, closed_until: int | None, epochs: dict[int, int]
) -> Aggregated:
    """Partials of a frame (see Batch.frame) for one aggregation.

    Args:
        frame: valid events.
        plan: the aggregation's layout.
        closed_until: windows that end by this are closed; None: none is.
        epochs: epoch by partition, which orders `first` and `last` after a topic was made anew.
    """
    pane = pl.col(TIME) - pl.col(TIME) % plan.pane_ms
    frame = frame.with_columns(pane.alias(PANE))
    late = frame.select(INDEX, TIME, PANE).clear()
    cut = pl.lit(NO_CUT, dtype=pl.Int64).alias(AFTER)
    shut = plan.shut(closed_until)
    # The first window that holds a pane ends one pane after its start, the last one a window's size after it.
    first_end = pl.col(PANE) + plan.pane_ms
    if shut is not None and frame.height:
        missed = first_end <= shut
        late = frame.filter(missed).select(INDEX, TIME, PANE)
        if late.height:
            frame = frame.filter(pl.col(PANE) + plan.size_ms > shut)
            cut = pl.when(missed).then(shut).otherwise(NO_CUT).cast(pl.Int64).alias(AFTER)
    keys = [name for name, _ in plan.group_by] + [PANE]
    if plan.hopping:
        frame = frame.with_columns(cut)
        keys.append(AFTER)
    rows = partials(frame, plan, keys, epochs)
    rows = revised(rows, plan, first_end, closed_until)
    return Aggregated(rows, late, reopening=reopening(rows))


def revised(rows: pl.DataFrame, plan: AggregationLayout, end: pl.Expr, closed_until: int | None) -> pl.DataFrame:
    """The rows with a 1 in those that change closed windows, where late events do that; `end` of the first of them."""
    if plan.reopen_ms is None:
        return rows
    late = pl.lit(False) if closed_until is None else end <= closed_until
    return rows.with_columns(late.cast(pl.Int64).alias(REVISION))


def reopening(rows: pl.DataFrame) -> int:
    """Number of events in rows that change closed windows."""
    return int(rows.filter(pl.col(REVISION) > 0)["_count"].sum()) if REVISION in rows.columns else 0


def partials(
    frame: pl.DataFrame, plan: AggregationLayout, keys: list[str], epochs: dict[int, int], *further: pl.Expr
) -> pl.DataFrame:
    """One row a key: the keys, what further expressions give, the partials' columns."""
    if any(p.kind in ORDERED_KINDS for p in plan.partials):
        frame = _ordered(frame, epochs)
    frame = spread.deviating(frame, plan, keys)
    rows = frame.group_by(keys).agg([*further, *(_expression(p, frame) for p in plan.partials if p.column != REVISION)])
    rows = spread.settled(rows, frame, plan, keys)
    sketched = [_sketches(rows[p.column], p) for p in plan.partials if p.kind in SKETCHES]
    return rows.with_columns(sketched) if sketched else rows


def _sketches(values: pl.Series, partial: Partial) -> pl.Series:
    """Lists of values as stored sketches."""
    from tidemill_contract.functions import sketches  # loads numpy

    stored = [sketches.build(partial, found) for found in values.to_list()]
    return pl.Series(partial.column, stored, dtype=pl.Binary)


def _ordered(frame: pl.DataFrame, epochs: dict[int, int]) -> pl.DataFrame:
    epoch = pl.col(PARTITION).replace_strict(epochs, default=0, return_dtype=pl.Int64) if epochs else pl.lit(0)
    order = (TIME, MICROS, "_e", PARTITION, OFFSET)
    frame = frame.with_columns(epoch.alias("_e")).sort(*order)
    at = pl.concat_str(pl.lit("{"), pl.concat_str(*order, separator=","), pl.lit("}"))
    return frame.with_columns(at.alias(_AT))


def _expression(partial: Partial, frame: pl.DataFrame) -> pl.Expr:
    if partial.field is None:
        number = pl.len() if partial.where is None else pl.col(partial.source).count()
        return number.cast(pl.Int64).alias(partial.column)
    return _KINDS[partial.kind](_Field(partial, frame)).alias(partial.column)


class _Field:
    """The field of a partial in a frame."""

    def __init__(self, partial: Partial, frame: pl.DataFrame) -> None:
        self.partial, self.frame, self.name = partial, frame, partial.source
        self.column, self.value = pl.col(self.name), spread.numeric(self.name, frame)

    def beyond(self, bound: int, *, rows: int = 1) -> bool:
        """Whether these are integers so large that `rows` of them may add up to more than a bound, or to it."""
        return self.frame.schema[self.name] == pl.Int64 and spread.widest(self.name, self.frame) * rows >= bound


def _sum(field: _Field) -> pl.Expr:
    # 64 bits wrap silently.
    value = field.value.cast(pl.Int128) if field.beyond(2**62, rows=field.frame.height) else field.value
    return pl.when(field.column.count() > 0).then(value.sum())


def _values(field: _Field) -> pl.Expr:
    if isinstance(field.frame.schema[field.name], pl.List):
        return field.column.explode().drop_nulls()
    times = isinstance(field.frame.schema[field.name], pl.Datetime)
    return (field.column.cast(pl.Int64) if times else field.column).drop_nulls()


def _quantiles(field: _Field) -> pl.Expr:
    return (field.value if field.beyond(EXACT_INTEGERS + 1) else field.value.cast(pl.Float64)).drop_nulls()


def _best(field: _Field, wanted: str, *, least: bool) -> pl.Expr:
    """A column of the earliest event whose second field is least or greatest."""
    by = pl.col(str(field.partial.by))
    there = by.filter(field.column.is_not_null())
    edge = there.min() if least else there.max()
    return pl.col(wanted).filter(field.column.is_not_null() & (by == edge)).first()


def _histogram(field: _Field) -> pl.Expr:
    """The counts as Postgres reads an array: of values at least as large as each bound, less those of the next."""
    reached = [field.column.count(), *(_reaching(field, bound).sum() for bound in field.partial.bounds), pl.lit(0)]
    counts = [(here.cast(pl.Int64) - beyond.cast(pl.Int64)).cast(pl.String) for here, beyond in pairwise(reached)]
    array = pl.concat_str(pl.lit("{"), pl.concat_str(counts, separator=","), pl.lit("}"))
    return pl.when(field.column.count() > 0).then(array)


def _reaching(field: _Field, bound: float) -> pl.Expr:
    if not field.frame.schema[field.name].is_integer():
        return field.value >= bound
    # As an integer: as a double a large value would be rounded up to a bound that it is below.
    scale = scale_of(field.partial.noted[1]) if field.partial.noted else None
    least = math.ceil(bound) if scale is None else math.ceil(Decimal(repr(bound)).scaleb(scale))
    return field.column >= least if abs(least) < 2**63 else field.column.is_not_null() & pl.lit(least < 0)


_KINDS: dict[str, Callable[[_Field], pl.Expr]] = {
    "n": lambda field: field.column.count().cast(pl.Int64),
    "sum": _sum,
    "min": lambda field: field.column.min(),
    "max": lambda field: field.column.max(),
    "first": lambda field: field.column.drop_nulls().first(),
    "last": lambda field: field.column.drop_nulls().last(),
    "first_at": lambda field: pl.col(_AT).filter(field.column.is_not_null()).first(),
    "last_at": lambda field: pl.col(_AT).filter(field.column.is_not_null()).last(),
    "lowest": lambda field: _best(field, field.name, least=True),
    "key_lowest": lambda field: _best(field, str(field.partial.by), least=True),
    "at_lowest": lambda field: _best(field, _AT, least=True),
    "highest": lambda field: _best(field, field.name, least=False),
    "key_highest": lambda field: _best(field, str(field.partial.by), least=False),
    "at_highest": lambda field: _best(field, _AT, least=False),
    "histogram": _histogram,
    "mean": lambda field: pl.col(spread.DEVIATION + field.name).mean(),
    "low": lambda field: field.value.min(),
    "m2": lambda field: spread.squares(field.name),
    "quantiles": _quantiles,
    "uniques": lambda field: _values(field).unique(),
    "frequent": _values,
}
"""How a frame's events become each kind of partial."""


def missed_windows(pane: int, plan: AggregationLayout, closed_until: int) -> tuple[int, ...]:
    """Starts of the closed windows that an event of this pane belongs to, ascending."""
    starts = range(pane - plan.size_ms + plan.pane_ms, pane + 1, plan.pane_ms)
    return tuple(start for start in starts if start + plan.size_ms <= closed_until)
