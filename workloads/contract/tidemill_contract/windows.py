"""Windows out of stored rows: which rows make one, and what is answered of the partials that they are merged to.

SQL text only, like `partials`; what answers sketches decodes bytes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tidemill_contract.doubles import divided, finite
from tidemill_contract.partials import AggregationLayout, Partial, quote, rollup_select, whole_partial
from tidemill_contract.spec import MetricSpec

SKETCHED_FUNCTIONS = frozenset({"quantile", "distinct", "topk"})
"""Functions whose merged partials are sketches: what SQL answers are their bytes (see `decoders`)."""


def answer_expression(metric: MetricSpec, field_type: str | None) -> str:
    """SQL for a metric's value over merged partial columns; of a sketched function the sketch's bytes.

    A value beyond a double is null.
    """
    f = metric.field
    n = quote(f"_n_{f}")
    match metric.function:
        case "count":
            return n if f else quote("_count")
        case "avg":
            return divided(finite(f"{quote(f'_sum_{f}')}::double precision"), n)
        case "variance":
            return divided(finite(quote(f"_m2_{f}")), n)
        case "stddev":
            return f"sqrt({divided(finite(quote(f'_m2_{f}')), n)})"
        case "sum" if field_type == "number":
            return finite(quote(f"_sum_{f}"))
        case "sum" | "min" | "max" | "first" | "last":
            return quote(f"_{metric.function}_{f}")
        case "quantile":
            return quote(f"_quantiles_{f}")
        case "distinct":
            return quote(f"_uniques_{f}")
        case "topk":
            return quote(f"_frequent_{f}")


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


def decoders(plan: AggregationLayout) -> dict[str, Callable[[bytes | None], Any]]:
    """By metric, what makes its value of what SQL answers, where that is a sketch."""
    sketched = [(metric, kind) for metric, kind in plan.metrics if metric.function in SKETCHED_FUNCTIONS]
    if not sketched:
        return {}
    from tidemill_contract import sketches  # loads numpy

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
    starts = f"SELECT start FROM generate_series({low}, {high}, {hop}) AS start"
    spread = (
        f'(SELECT {", ".join([*columns, *plan.stored])}, _rev AS "_max_rev__", s.start AS window_start'
        f" FROM {table} AS p, LATERAL ({starts}) AS s WHERE ({where}) AND s.start + {size} > p._after) AS x"
    )
    keys = [(quote(name), name) for name, _ in plan.group_by] + [("window_start", "window_start")]
    with_rev = (*plan.merged, Partial("max", "rev__", "bigint"))
    merged = rollup_select(with_rev, spread, keys)
    listed = ", ".join([*columns, "window_start", '"_max_rev__" AS _rev', *(quote(p.column) for p in plan.merged)])
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
