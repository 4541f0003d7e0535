"""Windows out of stored rows: which rows make one, and what is answered of the partials that they are merged to.

SQL text only, like `partials`; what answers sketches decodes bytes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from tidemill_contract.functions.doubles import divided, finite
from tidemill_contract.functions.partials import (
    AggregationLayout,
    Kind,
    column_of,
    own_partial,
    quote,
    rollup_select,
    whole_partial,
)
from tidemill_contract.resource.spec import MetricSpec

SKETCHED_FUNCTIONS = frozenset({"quantile", "distinct", "topk"})
"""Functions whose merged partials are sketches: what SQL answers are their bytes (see `decoders`)."""


def answer_expression(metric: MetricSpec, field_type: str | None) -> str:
    """SQL for a metric's value over merged partial columns; of a sketched function the sketch's bytes.

    A value beyond a double is null.
    """
    if metric.field is None:
        return quote("_count")

    def column(kind: Kind) -> str:
        return quote(column_of(kind, str(metric.field)))

    match metric.function:
        case "count":
            return column("n")
        case "avg":
            return divided(finite(f"{column('sum')}::double precision"), column("n"))
        case "variance":
            return divided(finite(column("m2")), column("n"))
        case "stddev":
            return f"sqrt({divided(finite(column('m2')), column('n'))})"
        case "sum" if field_type == "number":
            return finite(column("sum"))
        case "sum" | "min" | "max" | "first" | "last":
            return column(metric.function)
        case "quantile":
            return column("quantiles")
        case "distinct":
            return column("uniques")
        case "topk":
            return column("frequent")


def answer_type(metric: MetricSpec, field_type: str | None) -> str:
    """The spec type (string, integer, number, boolean, timestamp) of a metric's value, or array."""
    match metric.function:
        case "count" | "distinct":
            return "integer"
        case "sum":
            return "number" if field_type == "number" else "integer"
        case "min" | "max" | "first" | "last":
            return str(field_type)
        case "topk":
            return "array"
        case _:
            return "number"


def answer_range(metric: MetricSpec, field_type: str | None) -> tuple[float, float]:
    """The least and the greatest that a metric's value can be."""
    match metric.function:
        case "count" | "distinct" | "variance" | "stddev":
            return 0.0, math.inf
        case "avg" if field_type == "boolean":
            return 0.0, 1.0
        case "sum" if field_type == "boolean":
            return 0.0, math.inf
        case _:
            return -math.inf, math.inf


def decoders(plan: AggregationLayout) -> dict[str, Callable[[bytes | None], Any]]:
    """By metric, what makes its value of what SQL answers, where that is a sketch."""
    sketched = [(metric, kind) for metric, kind in plan.metrics if metric.function in SKETCHED_FUNCTIONS]
    if not sketched:
        return {}
    from tidemill_contract.functions import sketches  # loads numpy

    return {metric.name: sketches.evaluator(metric, kind) for metric, kind in sketched}


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


def answer_columns(plan: AggregationLayout) -> list[tuple[str, str, str]]:
    """(output name, spec type, SQL expression over what is merged) of each metric."""
    found, guarded = [], dict(plan.whole)
    for metric, field_type in plan.metrics:
        expression = answer_expression(metric, field_type)
        if metric.name in guarded:
            expression = f"CASE WHEN {quote(whole_partial(metric.name).column)} THEN {expression} END"
        found.append((metric.name, answer_type(metric, field_type), expression))
    return found
