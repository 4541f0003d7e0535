"""Generate SQL that combines stored rows into windows, and computes the values of metrics."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from tidemill_contract.decimals import scale_of, value_sql
from tidemill_contract.functions.base import MergedColumns
from tidemill_contract.functions.composed import composed_sql, is_composed
from tidemill_contract.functions.partials import (
    AggregationLayout,
    columns_by_kind,
    completeness_partial,
    internal_partial,
    quote,
    rollup_select,
)
from tidemill_contract.functions.registry import FUNCTIONS
from tidemill_contract.grids import grid_sql
from tidemill_contract.resource.kinds.metrics import MetricSpec

Decoder = Callable[[Any], Any]


def answer_expression(metric: MetricSpec, field_type: str | None, seconds: str) -> str:
    """Return SQL that computes a metric's value from merged columns.

    If the metric has a decoder, the SQL computes the input of the decoder.

    Args:
        metric: a metric of the layout, with a function.
        field_type: the type of the metric's field, such as `integer`, or None if the metric has no field.
        seconds: the SQL of the window's length in seconds, as a double.
    """
    answer = FUNCTIONS[metric.function].answer_sql(MergedColumns(columns_by_kind(metric), field_type, seconds))
    scale = scale_of(answer_type(metric, field_type))
    return answer if scale is None or find_decoder(metric, field_type) is not None else value_sql(answer, scale)


def answer_type(metric: MetricSpec, field_type: str | None) -> str:
    """Return the type of a metric's value, such as `integer` or `array`. A decimal's type includes the scale."""
    if is_composed(metric):
        return str(field_type)
    return FUNCTIONS[metric.function].answer_type(field_type)


def answer_range(metric: MetricSpec, field_type: str | None) -> tuple[float, float]:
    """Return the smallest and the largest value that a metric can have."""
    if is_composed(metric):
        return -math.inf, math.inf
    return FUNCTIONS[metric.function].answer_range(field_type)


def find_decoder(metric: MetricSpec, field_type: str | None) -> Decoder | None:
    """Return the function that converts an SQL result to the metric's value, or None for no conversion."""
    return None if is_composed(metric) else FUNCTIONS[metric.function].decoder(metric, field_type)


def decoders(layout: AggregationLayout) -> dict[str, Decoder]:
    """Return the decoder of each metric that has a decoder, by the name of the metric."""
    by_metric = {metric.name: find_decoder(metric, kind) for metric, kind in layout.metrics}
    return {name: decode for name, decode in by_metric.items() if decode is not None}


def window_source(
    table: str,
    layout: AggregationLayout,
    where: str = "true",
    *,
    first: str | None = None,
    last: str | None = None,
    include_joined: bool = False,
) -> str:
    """Return a subquery that combines the stored rows of `table` into whole windows.

    Args:
        table: the window table, quoted and with its schema.
        layout: the aggregation's layout.
        where: an SQL condition on stored rows. Its time range must include all panes of the last wanted window.
        first: the SQL of the start of the first wanted window.
        last: the SQL of the start of the last wanted window.
        include_joined: whether to include the empty rows of sessions that were joined to an earlier session.

    Returns:
        A FROM item `w` with the group columns, `window_start`, `window_end` (for sessions), `_rev`, and columns with
        partial results (such as a sum). Metrics are computed from partial results.
    """
    columns = [quote(name) for name, _ in layout.group_by]
    if layout.has_sessions:
        select_list = ", ".join([*columns, "window_start", "window_end", "_rev", *layout.select_columns])
        not_joined = "" if include_joined else " AND window_end > window_start"
        return f"(SELECT {select_list} FROM {table} WHERE ({where}){not_joined}) AS w"
    if not layout.is_hopping:
        select_list = ", ".join([*columns, "window_start", "_rev", *layout.select_columns])
        return f"(SELECT {select_list} FROM {table} WHERE {where}) AS w"
    # Events that are too late for some of their windows are stored in separate rows. A row belongs only to windows that
    # end after the time in the row's column `_after`.
    newest = internal_partial("max", "rev", "bigint")
    starts = grid_sql(layout.grid).windows("p.window_start", layout.panes, first=first, last=last)
    panes_of_windows = (
        f"(SELECT {', '.join([*columns, *layout.select_columns])}, _rev AS {quote(newest.column)},"
        f" s._start AS window_start FROM {table} AS p, LATERAL ({starts}) AS s"
        f" WHERE ({where}) AND s._end > p._after) AS x"
    )
    keys = [(quote(name), name) for name, _ in layout.group_by] + [("window_start", "window_start")]
    merged = rollup_select((*layout.merge_columns, newest), panes_of_windows, keys)
    revision = f"{quote(newest.column)} AS _rev"
    select_list = ", ".join([*columns, "window_start", revision, *(quote(p.column) for p in layout.merge_columns)])
    return f"(SELECT {select_list} FROM ({merged}) AS m) AS w"


def answer_columns(layout: AggregationLayout, end: str | None = None) -> list[tuple[str, str, str]]:
    """Return the name, the type and the SQL expression of each metric.

    The SQL expressions compute the metrics from merged partial results, such as sums.

    `end` is the SQL of a window's end, by default `layout.end_sql`.
    """
    seconds = f"extract(epoch FROM {end or layout.end_sql} - window_start)::double precision"
    metrics = {metric.name: metric for metric, _ in layout.metrics}
    computed = {
        metric.name: (answer_type(metric, field_type), answer_expression(metric, field_type, seconds))
        for metric, field_type in layout.metrics
        if not is_composed(metric)
    }
    columns, completeness = [], dict(layout.completeness)
    for metric, field_type in layout.metrics:
        name = metric.name
        expression = computed[name][1] if name in computed else composed_sql(metrics, computed, name)
        if name in completeness:
            expression = f"CASE WHEN {quote(completeness_partial(name).column)} THEN {expression} END"
        columns.append((name, answer_type(metric, field_type), expression))
    return columns
