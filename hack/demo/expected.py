"""Recomputes every window of every aggregation in one batch from the raw rows.

The module shares no code with the platform: it reads the YAML and uses polars. It only knows functions whose value is
exact or within float error. `topk` is exact for fields with few values.
"""

from __future__ import annotations

import contextlib
import re
from collections import Counter
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

import polars as pl

_CALENDAR = ("w", "mo", "q", "y")
_UNITS = {"ms": 1, "s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
_TYPES: Mapping[str, pl.DataType] = {
    "string": pl.String(),
    "integer": pl.Int64(),
    "number": pl.Float64(),
    "boolean": pl.Boolean(),
    "timestamp": pl.Datetime("ms", "UTC"),
}


def milliseconds(duration: str) -> int:
    """Parse a duration, e.g. `90s` → 90000."""
    matched = re.fullmatch(r"(\d+)(ms|s|m|h|d)", duration)
    if matched is None:
        raise ValueError(f"{duration!r} is not a duration; write it like 90s (units: ms, s, m, h, d)")
    return int(matched[1]) * _UNITS[matched[2]]


def transform(spec: Mapping[str, Any], raw: pl.DataFrame) -> pl.DataFrame:
    """Return the raw rows with declared types and derived columns, without rows that the filter drops."""
    fields = spec["source"]["fields"]
    frame = raw.select(pl.col(field["name"]).cast(_TYPES[field["type"]]) for field in fields)
    transform = spec.get("transform", {})
    for derive in transform.get("derive", ()):
        value = pl.sql_expr(derive["expression"]).alias(derive["name"])
        frame = frame.with_columns(value)
        if frame.schema[derive["name"]].is_float():
            finite = pl.when(pl.col(derive["name"]).is_finite()).then(pl.col(derive["name"]))
            frame = frame.with_columns(finite.alias(derive["name"]))
    if "filter" in transform:
        frame = frame.filter(pl.sql_expr(transform["filter"]))
    return frame


def expected_windows(spec: Mapping[str, Any], aggregation: Mapping[str, Any], raw: pl.DataFrame) -> pl.DataFrame:
    """Return all windows of one aggregation.

    Returns:
        The group columns, `window_start`, `window_end` (Datetime) and the metrics. A `first` or `last` is the list of
        all values at the earliest or latest event time, because the raw rows do not contain the order in Kafka.
    """
    time = spec["source"]["eventTime"]["field"]
    window = aggregation["window"]
    if window["type"] == "session":
        return _sessions(spec, aggregation, raw)
    frame = transform(spec, raw).with_columns(_ms=pl.col(time).dt.epoch("ms"))
    groups = list(aggregation.get("groupBy", ()))
    metrics = [_metric(metric, frame.schema) for metric in aggregation["metrics"] if "expression" not in metric]
    if "zone" in window or window["size"].endswith(_CALENDAR):
        copies, start, end = _by_calendar(window, frame.with_columns(_at=pl.col(time)))
    else:
        copies, start, end = _by_length(window, frame)
    windows = _with_topk(aggregation, pl.concat(copies).group_by([*groups, "_start"]).agg(metrics))
    ends = end.alias("window_end")
    names = [metric["name"] for metric in aggregation["metrics"]]
    return windows.select(*groups, start.alias("window_start"), ends, *names)


def _by_length(window: Mapping[str, Any], frame: pl.DataFrame) -> tuple[list[pl.DataFrame], pl.Expr, pl.Expr]:
    """Return a copy of each row for each of its windows, and the expressions of a window's start and end."""
    size, offset = milliseconds(window["size"]), milliseconds(window.get("offset", "0s"))
    hop = milliseconds(window["hop"]) if window["type"] == "hopping" else size
    newest = pl.col("_ms") - (pl.col("_ms") - offset) % hop
    copies = [frame.with_columns(_start=newest - step * hop) for step in range(size // hop)]
    start = pl.from_epoch("_start", time_unit="ms").dt.replace_time_zone("UTC")
    return copies, start, start + timedelta(milliseconds=size)


def _by_calendar(window: Mapping[str, Any], frame: pl.DataFrame) -> tuple[list[pl.DataFrame], pl.Expr, pl.Expr]:
    """Do the same as `_by_length` for calendar windows. `_start` is the start in the local time of the zone."""
    offset, zone = timedelta(milliseconds=milliseconds(window.get("offset", "0s"))), window.get("zone", "UTC")
    size, hop = window["size"], window.get("hop", window["size"])
    local = pl.col("_at").dt.convert_time_zone(zone).dt.replace_time_zone(None)
    newest = (local - offset).dt.truncate(hop)
    (amount, unit), (whole, _) = _units(hop), _units(size)
    backs = [f"-{step * amount}{unit}" for step in range(whole // amount)]
    copies = [frame.with_columns(_start=newest.dt.offset_by(back) + offset) for back in backs]

    def moment(wall: pl.Expr) -> pl.Expr:
        instant = wall.dt.replace_time_zone(zone, ambiguous="earliest", non_existent="raise")
        return instant.dt.convert_time_zone("UTC").dt.cast_time_unit("ms")

    return copies, moment(pl.col("_start")), moment(pl.col("_start").dt.offset_by(size))


def _units(length: str) -> tuple[int, str]:
    """Return a length in days or in months, e.g. `1w` → 7, d."""
    number, unit = re.fullmatch(r"(\d+)([a-z]+)", length).groups()  # type: ignore[union-attr]
    factor, base = {"d": (1, "d"), "w": (7, "d"), "mo": (1, "mo"), "q": (3, "mo"), "y": (12, "mo")}[unit]
    return int(number) * factor, base


def _sessions(spec: Mapping[str, Any], aggregation: Mapping[str, Any], raw: pl.DataFrame) -> pl.DataFrame:
    """Return the session windows: events of a group less than `gap` apart, cut at multiples of `maxLength`."""
    window = aggregation["window"]
    gap, longest = milliseconds(window["gap"]), milliseconds(window.get("maxLength", "1d"))
    frame = transform(spec, raw).with_columns(_ms=pl.col(spec["source"]["eventTime"]["field"]).dt.epoch("ms"))
    groups = list(aggregation.get("groupBy", ()))
    cells = [*groups, pl.col("_ms") // longest]
    frame = frame.sort("_ms").with_columns(_fresh=(pl.col("_ms").diff().over(cells) >= gap).fill_null(value=True))
    frame = frame.with_columns(_session=pl.col("_fresh").cum_sum().over(groups or pl.lit(0)))
    cut = (pl.col("_ms").max() // longest + 1) * longest
    edges = [pl.col("_ms").min().alias("_start"), pl.min_horizontal(pl.col("_ms").max() + gap, cut).alias("_end")]
    metrics = [_metric(metric, frame.schema) for metric in aggregation["metrics"] if "expression" not in metric]
    windows = _with_topk(aggregation, frame.group_by([*groups, "_session"]).agg([*edges, *metrics]))
    start, end = (pl.from_epoch(edge, time_unit="ms").dt.replace_time_zone("UTC") for edge in ("_start", "_end"))
    names = [metric["name"] for metric in aggregation["metrics"]]
    return windows.select(*groups, start.alias("window_start"), end.alias("window_end"), *names)


def _with_topk(aggregation: Mapping[str, Any], windows: pl.DataFrame) -> pl.DataFrame:
    """Return the windows with the `topk` values and counts: the most frequent first, equal counts by value."""
    for metric in aggregation["metrics"]:
        if metric.get("function") == "topk":
            name, k = metric["name"], metric.get("k", 10)
            rows = []
            for values in windows[name].to_list():
                counts = sorted((-count, value) for value, count in Counter(values).items())[:k]
                rows.append([{"value": value, "count": -count, "error": 0} for count, value in counts] or None)
            members = {"value": windows.schema[name].inner, "count": pl.Int64(), "error": pl.Int64()}  # type: ignore[attr-defined]
            windows = windows.with_columns(pl.Series(name, rows, dtype=pl.List(pl.Struct(members))))
    return _with_expressions(aggregation, windows)


def _with_expressions(aggregation: Mapping[str, Any], windows: pl.DataFrame) -> pl.DataFrame:
    """Return the windows with the metrics that are expressions over other metrics, whatever their order."""
    waiting = {metric["name"]: metric["expression"] for metric in aggregation["metrics"] if "expression" in metric}
    while waiting:
        before = len(waiting)
        for name, expression in list(waiting.items()):
            with contextlib.suppress(pl.exceptions.ColumnNotFoundError):
                windows = windows.with_columns(pl.sql_expr(expression).alias(name))
                if windows.schema[name].is_float():
                    windows = windows.with_columns(pl.when(pl.col(name).is_finite()).then(pl.col(name)).alias(name))
                del waiting[name]
        if len(waiting) == before:
            raise ValueError(f"metrics.*.expression: {', '.join(waiting)} need unknown metrics")
    return windows


def _metric(metric: Mapping[str, Any], schema: pl.Schema) -> pl.Expr:
    name, function, field = metric["name"], metric["function"], metric.get("field")
    where = pl.sql_expr(metric["where"]).fill_null(value=False) if "where" in metric else None
    if field is None:
        return (pl.len() if where is None else where.sum()).cast(pl.Int64).alias(name)
    column = pl.col(field)
    if schema[field] == pl.Boolean and function not in ("count", "first", "last", "topk"):
        column = column.cast(pl.Int64)
    if where is not None:
        column = pl.when(where).then(column)
    return _value(function, column).alias(name)


def _value(function: str, column: pl.Expr) -> pl.Expr:
    has_values = column.count() > 0
    match function:
        case "count":
            return column.count().cast(pl.Int64)
        case "sum":
            return pl.when(has_values).then(column.sum())
        case "avg":
            return column.mean()
        case "min":
            return column.min()
        case "max":
            return column.max()
        case "variance":
            return column.var(ddof=0)
        case "stddev":
            return column.std(ddof=0)
        case "first" | "last":
            times = pl.col("_ms").filter(column.is_not_null())
            at = times.min() if function == "first" else times.max()
            return column.filter(column.is_not_null() & (pl.col("_ms") == at)).unique()
        case "topk":
            return column.drop_nulls()
    raise ValueError(f"function {function!r} cannot be recomputed; add it to hack/demo/expected.py")
