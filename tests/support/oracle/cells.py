"""The expected value of a metric, computed from a window's events with exact arithmetic.

Counts, sums of integers, extremes, first, last and lists must be exact. Values that the platform computes in doubles
may differ by 1e-9 of the exact value. Sketches must be exact for few values, and within their stated errors for more.
"""

from __future__ import annotations

import datetime as dt
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from typing import Any

from oracle.expressions import compiled
from tidemill_contract.expressions.compiler import column_names
from tidemill_contract.expressions.syntax import parse

RELATIVE = Fraction(1, 10**9)
_EPS = Fraction(1, 2**52)
_EXACT_QUANTILES, _EXACT_DISTINCT, _EXACT_TOPK = 400, 190, 350
_LARGEST = Fraction(1.7976931348623157e308)
_TINIEST = Fraction(5e-324)
COMPUTED = "computed from the other metrics of the row"
ZERO_OF_NOTHING = ("count", "sum", "distinct", "rate")
"""Functions that are zero in a window that `fill=zero` adds."""
_COLUMNS: Mapping[str, tuple[str, ...]] = {
    "avg": ("n", "sum"), "variance": ("n", "spread"), "stddev": ("n", "spread"), "median": ("quantile",),
    "rate": ("sum",), "count": ("n",),
}  # fmt: skip

Fits = Callable[[Any], bool]


@dataclass(frozen=True)
class Cell:
    """An expected value.

    Attributes:
        shown: the expected value in words, for messages.
        fits: returns True if a value of a JSON answer is right.
    """

    shown: str
    fits: Fits


def null() -> Cell:
    """Return a cell that only null fits."""
    return Cell("null", lambda answer: answer is None)


def exact(value: Any) -> Cell:
    """Return a cell that only this value of this type fits. Times may be written in any form."""
    if value is None:
        return null()
    if isinstance(value, dt.datetime):
        return Cell(value.isoformat(), lambda answer: _time(answer) == value)
    if isinstance(value, float):
        return Cell(repr(value), lambda answer: _is_number(answer) and repr(float(answer)) == repr(value))
    return Cell(repr(value), lambda answer: type(answer) is type(value) and answer == value)


def near(value: Fraction, *, slack: Fraction = Fraction(0)) -> Cell:
    """Return a cell that doubles within 1e-9 of the value fit, with `slack` added.

    Null fits instead if the value is too large for a double, and null also fits if it is near the largest double.
    """
    limit = RELATIVE * abs(value) + slack
    if _is_beyond(value):
        return null()
    shown = max(-_LARGEST, min(_LARGEST, value))
    cell = Cell(
        f"{float(shown)!r} ± {float(limit):.2g}",
        lambda answer: _is_number(answer) and math.isfinite(answer) and abs(Fraction(answer) - value) <= limit,
    )
    return cell if abs(value) * (1 + RELATIVE) <= _LARGEST else _or_null(cell)


def _is_beyond(value: Fraction) -> bool:
    """Return True if the value, less 1e-9 of it, is larger than every double."""
    return abs(value) * (1 - RELATIVE) > _LARGEST


def one_of(check: Fits, shown: str) -> Cell:
    """Return a cell with a check."""
    return Cell(shown, check)


def _or_null(cell: Cell) -> Cell:
    return one_of(lambda answer: answer is None or cell.fits(answer), f"{cell.shown}, or null")


def _is_number(answer: Any) -> bool:
    return isinstance(answer, int | float) and not isinstance(answer, bool)


def _time(answer: Any) -> dt.datetime | None:
    try:
        return dt.datetime.fromisoformat(answer)
    except (TypeError, ValueError):
        return None


def columns_of(metric: Mapping[str, Any]) -> list[str]:
    """Return the stored columns of a metric.

    The metric is null for a window that has events from before one of its columns was stored.
    """
    function, name, by = metric["function"], metric.get("field"), metric.get("by")
    if function == "expression":
        return []
    where = f" where {parse(metric['where'])}" if "where" in metric else ""
    if name is None:
        return [f"count{where}"]
    argument = name if by is None and "bounds" not in metric else f"{name} {by} {metric.get('bounds')}"
    return [f"{kind} {argument}{where}" for kind in _COLUMNS.get(function, (function,))]


def operands_of(metrics: Sequence[Mapping[str, Any]], name: str) -> list[Mapping[str, Any]]:
    """Return the metrics with a function from which a metric is computed, or the metric itself if it has one."""
    (metric,) = (candidate for candidate in metrics if candidate["name"] == name)
    if metric["function"] != "expression":
        return [metric]
    names = sorted(column_names(metric["expression"]))
    return [operand for operand_name in names for operand in operands_of(metrics, operand_name)]


def kind_of(metric: Mapping[str, Any], types: Mapping[str, str]) -> str:
    """Return the type of a metric's answers, or `array` for metrics that are no single value in SQL."""
    kind = types.get(str(metric.get("field")), "")
    match metric["function"]:
        case "count":
            return "integer"
        case "sum":
            return "number" if kind == "number" else "integer"
        case "avg" | "rate" | "variance" | "stddev":
            return "number"
        case "min" | "max" | "first" | "last" | "min_by" | "max_by":
            return kind
    return "array"


def computed_cell(
    metrics: Sequence[Mapping[str, Any]], name: str, types: Mapping[str, str], row: Mapping[str, Any]
) -> Cell:
    """Return the cell of a metric by expression, computed from the other metrics in the same row of the answer."""
    kinds: dict[str, str] = {}
    values: dict[str, Any] = {}
    for metric in metrics:
        current = metric["name"]
        if metric["function"] != "expression":
            kinds[current], values[current] = kind_of(metric, types), row.get(current)
            if kinds[current] == "number" and values[current] is not None:
                values[current] = float(values[current])
        else:
            kinds[current], compute = compiled(metric["expression"], kinds)
            values[current] = compute(values)
        if current == name:
            break
    expected = values[name]
    large = any(isinstance(value, int) and abs(value) >= 2**31 for value in [*values.values(), row[name]])
    if large and "integer" in kinds.values():
        return one_of(lambda _: True, "any value: integers beyond those of this model")
    if isinstance(expected, float):
        return near(Fraction(expected), slack=_TINIEST)
    return exact(expected)


def metric_cell(
    metric: Mapping[str, Any], types: Mapping[str, str], events: Sequence[Mapping[str, Any]], length_ms: int
) -> Cell:
    """Return the cell of a metric in a window.

    Args:
        metric: the metric in the spec.
        types: the types of fields.
        events: the events of the window, by event time, partition and offset. Each has its values by field, or None.
        length_ms: the length of the window in milliseconds.
    """
    function, name = metric["function"], metric.get("field")
    if "where" in metric:
        condition = compiled(metric["where"], types)[1]
        events = [event for event in events if condition(event) is True]
    if name is None:
        share = Fraction(1000, length_ms) if function == "rate" else None
        return exact(len(events)) if share is None else near(len(events) * share)
    kind = types[name]
    known = [event[name] for event in events if event.get(name) is not None]
    if function == "count":
        return exact(len(known))
    if not known:
        return null()
    if function in ("min_by", "max_by"):
        return _best(name, metric["by"], events, least=function == "min_by")
    if function in ("min", "max", "first", "last"):
        ordered = sorted(known) if function in ("min", "max") else known
        return exact(ordered[0] if function in ("min", "first") else ordered[-1])
    if function == "distinct":
        return _distinct(len(set(known)))
    if function == "topk":
        return _topk(known, metric.get("k", 10))
    numbers = [Fraction(value) for value in known]
    if function in ("quantile", "median"):
        return _quantile(known, metric.get("q", 0.5))
    if function in ("variance", "stddev"):
        return _spread(numbers, root=function == "stddev")
    if function == "histogram":
        return _histogram(numbers, metric["bounds"])
    if function == "rate":
        return _sum(numbers, kind, share=Fraction(1000, length_ms))
    return _sum(numbers, kind, share=Fraction(1, len(numbers)) if function == "avg" else None)


def _best(name: str, by: str, events: Sequence[Mapping[str, Any]], *, least: bool) -> Cell:
    candidates = [event for event in events if event.get(name) is not None and event.get(by) is not None]
    if not candidates:
        return null()
    edge = (min if least else max)(event[by] for event in candidates)
    return exact(next(event[name] for event in candidates if event[by] == edge))


def _histogram(numbers: Sequence[Fraction], bounds: Sequence[float]) -> Cell:
    expected = []
    for low, high in pairwise([None, *bounds, None]):
        count = sum((low is None or n >= low) and (high is None or n < high) for n in numbers)
        expected.append({"from": low, "to": high, "count": count})
    return one_of(lambda answer: answer == expected, str(expected))


def _sum(numbers: Sequence[Fraction], kind: str, *, share: Fraction | None) -> Cell:
    """Return the cell of the sum, or of a share of it, which is a double."""
    total = sum(numbers, Fraction(0))
    if kind != "number" and share is None:
        return exact(int(total))
    size = sum((abs(number) for number in numbers), Fraction(0))
    # Summands that cancel out still leave their rounding errors.
    slack = _EPS * len(numbers) * size if kind == "number" else Fraction(0)
    if kind == "number" and _is_beyond(total):
        return null()
    share = share or Fraction(1)
    cell = near(total * share, slack=slack * share + _TINIEST)
    return cell if kind != "number" or size < _LARGEST / 16 else _or_null(cell)


def _spread(numbers: Sequence[Fraction], *, root: bool) -> Cell:
    mean = sum(numbers, Fraction(0)) / len(numbers)
    variance = sum(((number - mean) ** 2 for number in numbers), Fraction(0)) / len(numbers)
    if not variance:
        return Cell("0.0", lambda answer: _is_number(answer) and answer == 0)
    largest = max(abs(number) for number in numbers)
    cell = near(variance, slack=(64 * _EPS * largest) ** 2)
    if not root:
        return cell
    if _is_beyond(variance):
        return null()
    deviation = near(Fraction(math.sqrt(min(variance, _LARGEST))), slack=64 * _EPS * largest)
    return _or_null(deviation) if cell.fits(None) else deviation


def _quantile(values: Sequence[Any], q: float) -> Cell:
    ordered = sorted(values)
    places = {math.ceil(q * len(ordered)), math.ceil(Fraction(q) * len(ordered))}
    if len(ordered) <= _EXACT_QUANTILES:
        low = high = 0
    else:
        low = high = len(ordered) // 100 + 1
    lowest = ordered[max(0, min(places) - 1 - low)]
    highest = ordered[min(len(ordered) - 1, max(places) - 1 + high)]
    return one_of(
        lambda answer: _is_number(answer) and Fraction(lowest) <= Fraction(answer) <= Fraction(highest),
        f"{lowest!r}" if lowest == highest else f"{lowest!r} to {highest!r}",
    )


def _distinct(number: int) -> Cell:
    if number <= _EXACT_DISTINCT:
        return exact(number)
    slack = number * 0.03 + 1
    return one_of(lambda answer: isinstance(answer, int) and abs(answer - number) <= slack, f"about {number}")


def _topk(values: Sequence[Any], k: int) -> Cell:
    counts = sorted((-count, value) for value, count in Counter(values).items())
    if len(counts) > _EXACT_TOPK:
        return one_of(lambda answer: isinstance(answer, list) and len(answer) <= k, f"at most {k} values")
    expected = [(exact(value), -count) for count, value in counts[:k]]

    def fits(answer: Any) -> bool:
        return (
            isinstance(answer, list)
            and len(answer) == len(expected)
            and all(
                cell.fits(item["value"]) and item["count"] == count and item["error"] == 0
                for (cell, count), item in zip(expected, answer, strict=True)
            )
        )

    return Cell(str([(cell.shown, count) for cell, count in expected]), fits)
