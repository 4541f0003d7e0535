"""Windows out of stored rows: which rows make one, and what is answered of the partials that they are merged to.

SQL text only, like `partials`; what answers sketches decodes bytes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from tidemill_contract.functions.base import Merged
from tidemill_contract.functions.composed import composed_sql, is_composed
from tidemill_contract.functions.partials import (
    AggregationLayout,
    columns_by_kind,
    own_partial,
    quote,
    rollup_select,
    whole_partial,
)
from tidemill_contract.functions.registry import FUNCTIONS
from tidemill_contract.resource.kinds.metrics import MetricSpec

Decoder = Callable[[Any], Any]


def answer_expression(metric: MetricSpec, field_type: str | None, seconds: str) -> str:
    """SQL for a metric's value over merged partial columns; of what has a decoder, what that reads.

    A value beyond a double is null.

    Args:
        metric: of the layout, with a function.
        field_type: the spec type of its field; None: it has none.
        seconds: SQL of the window's length in seconds, a double.
    """
    return FUNCTIONS[metric.function].answer(Merged(columns_by_kind(metric), field_type, seconds))


def answer_type(metric: MetricSpec, field_type: str | None) -> str:
    """The spec type (string, integer, number, boolean, timestamp) of a metric's value, or array."""
    if is_composed(metric):
        return str(field_type)
    return FUNCTIONS[metric.function].answer_type(field_type)


def answer_range(metric: MetricSpec, field_type: str | None) -> tuple[float, float]:
    """The least and the greatest that a metric's value can be."""
    if is_composed(metric):
        return -math.inf, math.inf
    return FUNCTIONS[metric.function].answer_range(field_type)


def evaluator(metric: MetricSpec, field_type: str | None) -> Decoder | None:
    """What turns stored bytes into the metric's value; None: SQL gives the value itself."""
    return None if is_composed(metric) else FUNCTIONS[metric.function].decoder(metric, field_type)


def decoders(plan: AggregationLayout) -> dict[str, Decoder]:
    """By metric, what makes its value of what SQL answers, where that is a sketch."""
    found = {metric.name: evaluator(metric, kind) for metric, kind in plan.metrics}
    return {name: decode for name, decode in found.items() if decode is not None}


def window_source(
    table: str,
    plan: AggregationLayout,
    where: str = "true",
    *,
    first: str | None = None,
    last: str | None = None,
    vanished: bool = False,
) -> str:
    """A parenthesised query of whole windows' partials: `table` itself, or windows composed of its panes.

    Args:
        table: quoted, schema-qualified window table.
        plan: the aggregation's layout.
        where: an SQL condition over stored rows, applied before composing; for hopping windows its bounds on
            window_start must reach `size - hop` beyond the last window wanted.
        first: SQL of where the first window wanted starts: hardly any before it is composed.
        last: the same of the last one, and those after it.
        vanished: also sessions that have joined an earlier one: what is left of them is empty and ends where it starts.

    Returns:
        `(SELECT group columns, window_start, _rev, what is merged …) AS w`, of sessions with `window_end`. Windows
        that hold no event are absent.
    """
    columns = [quote(name) for name, _ in plan.group_by]
    if plan.sessions:
        listed = ", ".join([*columns, "window_start", "window_end", "_rev", *plan.stored])
        there = "" if vanished else " AND window_end > window_start"
        return f"(SELECT {listed} FROM {table} WHERE ({where}){there}) AS w"
    if not plan.hopping:
        listed = ", ".join([*columns, "window_start", "_rev", *plan.stored])
        return f"(SELECT {listed} FROM {table} WHERE {where}) AS w"
    hop, size = f"interval '{plan.pane_ms} milliseconds'", f"interval '{plan.size_ms} milliseconds'"
    # A pane belongs to every window that starts up to size - hop before it. What came late for some of them carries
    # `_after`, the end of the last window that was closed then, and counts only for windows that end later.
    low, high = f"p.window_start - interval '{plan.spread_ms} milliseconds'", "p.window_start"
    if first is not None:
        low = f"greatest({low}, date_bin({hop}, {first}, timestamptz 'epoch'))"
    if last is not None:
        high = f"least({high}, {last})"
    newest = own_partial("max", "rev", "bigint")
    starts = f"SELECT _start FROM generate_series({low}, {high}, {hop}) AS _start"
    spread = (
        f"(SELECT {', '.join([*columns, *plan.stored])}, _rev AS {quote(newest.column)}, s._start AS window_start"
        f" FROM {table} AS p, LATERAL ({starts}) AS s WHERE ({where}) AND s._start + {size} > p._after) AS x"
    )
    keys = [(quote(name), name) for name, _ in plan.group_by] + [("window_start", "window_start")]
    merged = rollup_select((*plan.merged, newest), spread, keys)
    revision = f"{quote(newest.column)} AS _rev"
    listed = ", ".join([*columns, "window_start", revision, *(quote(p.column) for p in plan.merged)])
    return f"(SELECT {listed} FROM ({merged}) AS m) AS w"


def answer_columns(plan: AggregationLayout, end: str | None = None) -> list[tuple[str, str, str]]:
    """(output name, spec type, SQL expression over what is merged) of each metric.

    Args:
        plan: the aggregation's layout.
        end: SQL of where the windows that are answered end; None: they are those of the layout.
    """
    seconds = f"extract(epoch FROM {end or plan.end_sql} - window_start)::double precision"
    metrics = {metric.name: metric for metric, _ in plan.metrics}
    computed = {
        metric.name: (answer_type(metric, field_type), answer_expression(metric, field_type, seconds))
        for metric, field_type in plan.metrics
        if not is_composed(metric)
    }
    found, guarded = [], dict(plan.whole)
    for metric, field_type in plan.metrics:
        name = metric.name
        expression = computed[name][1] if name in computed else composed_sql(metrics, computed, name)
        if name in guarded:
            expression = f"CASE WHEN {quote(whole_partial(name).column)} THEN {expression} END"
        found.append((name, answer_type(metric, field_type), expression))
    return found
