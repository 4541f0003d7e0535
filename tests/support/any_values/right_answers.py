"""The right answers of the pipeline, computed with exact fractions, and checks of answers against them."""

from __future__ import annotations

import datetime as dt
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from fractions import Fraction
from typing import Any

from any_values.pipeline import FUNCTIONS, FURTHER, LARGEST, MINUTE, TINIEST, TYPES, Q, Record, Windows
from oracle.cells import metric_cell
from tidemill_contract.times import rfc3339_ms


def approximately(exact: Fraction, scale: Fraction, *, within: Fraction, least: float) -> Callable[[Any], bool]:
    """Return a check of a number that is not exact.

    Args:
        exact: the right answer.
        scale: the answer may differ from `exact` by 1e-9 of this.
        within: bounds the intermediate results; the answer may be null if this comes near the largest double.
        least: the answer may differ from `exact` by this in any case.
    """

    def right(got: Any) -> bool:
        if got is None:
            return within > Fraction(LARGEST) / 16
        return math.isfinite(got) and abs(Fraction(got) - exact) <= scale / 10**9 + Fraction(least)

    return right


def total(fractions: Iterable[Fraction]) -> Fraction:
    return sum(fractions, Fraction(0))


def variance_of(values: list[Any]) -> Fraction:
    mean = total(map(Fraction, values)) / len(values)
    return total((Fraction(value) - mean) ** 2 for value in values) / len(values)


def is_root(variance: Fraction, check: Callable[[Any], bool]) -> Callable[[Any], bool]:
    """Return a check of a standard deviation; it may be null where `check` allows a null variance."""
    return lambda got: (
        check(None) if got is None else abs(Fraction(got) ** 2 - variance) <= variance / 10**9 + Fraction(1e-300)
    )


def expected(field: str, function: str, records: list[Record]) -> Callable[[Any], bool]:
    """Return a check of the answer of a function of a field over these records, oldest first."""
    values = [r.members[field] for r in records if r.members.get(field) is not None]
    if function == "count":
        return lambda got: got == len(values)
    if not values:
        return lambda got: got is None
    shown: Callable[[Any], Any] = rfc3339_ms if field == "at" else lambda value: value
    size = total(abs(Fraction(value)) for value in values) if field in "vib" else Fraction(0)
    match function:
        case "sum" if field != "v":
            return lambda got: got == sum(values)
        case "sum":
            return approximately(total(map(Fraction, values)), size, within=size, least=0)
        case "avg":
            mean = total(map(Fraction, values)) / len(values)
            scale = abs(mean) if field != "v" else size / len(values)
            return approximately(mean, scale, within=size, least=TINIEST)
        case "variance" | "stddev":
            variance = variance_of(values)
            check = approximately(variance, variance, within=16 * len(values) * variance, least=1e-300)
            return check if function == "variance" else is_root(variance, check)
        case "quantile":
            return lambda got: got == sorted(values)[math.ceil(Q * len(values)) - 1]
        case "distinct":
            return lambda got: got == len(set(values))
        case "topk":
            counts = sorted((-count, value) for value, count in Counter(values).items())
            return lambda got: got == [{"value": shown(v), "count": -n, "error": 0} for n, v in counts[:10]]
        case "min" | "max":
            return lambda got: got == shown({"min": min, "max": max}[function](values))
        case _:
            return lambda got: got == shown(values[0 if function == "first" else -1])


def compare(got: dict[Any, dict[str, Any]], want: Windows, how: str) -> None:
    """Assert that the metrics of `FUNCTIONS` are right in each window; `how` names the query."""
    assert set(got) == set(want), how
    for key, records in want.items():
        row, ordered = got[key], sorted(records, key=lambda r: (r.members["ts"], r.o))
        assert row["n"] == len(ordered), (how, key)
        for field, functions in FUNCTIONS.items():
            for function in functions:
                value = row[f"{field}_{function}"]
                shown = [r.members.get(field) for r in ordered]
                assert expected(field, function, ordered)(value), (how, key, field, function, value, shown)


def compare_further(got: dict[Any, dict[str, Any]], want: Windows, how: str) -> None:
    """Assert that the metrics of `FURTHER` are right in each window, by the model of the fuzz."""
    assert set(got) == set(want), how
    for key, records in want.items():
        row = got[key]
        events = [dict(r.members) for r in sorted(records, key=lambda r: (r.members["ts"], r.o))]
        for members in events:  # the field is a number: an integer becomes a double, and zero has no sign
            members["v"] = None if members.get("v") is None else float(members["v"]) + 0.0
        start, end = (dt.datetime.fromisoformat(row[name]) for name in ("window_start", "window_end"))
        for metric in FURTHER:
            cell = metric_cell(metric, TYPES, events, (end - start) // dt.timedelta(milliseconds=1))
            value = as_milliseconds(row[metric["name"]], metric)
            assert cell.fits(value), (how, key, metric, value, cell.shown, events)


def as_milliseconds(value: Any, metric: dict[str, Any]) -> Any:
    """Return the answer of a metric; a time becomes milliseconds, as events have it."""
    if metric.get("field") != "at" or not isinstance(value, str):
        return value
    return (dt.datetime.fromisoformat(value) - dt.datetime(1970, 1, 1, tzinfo=dt.UTC)) // dt.timedelta(milliseconds=1)


def cut(records: Iterable[Record], group: tuple[str, ...], size: int, hop: int) -> Windows:
    """Return the records of each group and window; `size` and `hop` are milliseconds."""
    windows: Windows = defaultdict(list)
    for record in records:
        newest = record.members["ts"] // hop * hop
        for start in range(newest - size + hop, newest + 1, hop):
            windows[(*(record.members.get(name) for name in group), rfc3339_ms(start))].append(record)
    return windows


def visits(records: Iterable[Record]) -> Windows:
    """Return the records of each session: 25 s without an event end a session, and so does each even minute."""
    groups: dict[Any, list[Record]] = defaultdict(list)
    for record in records:
        groups[record.members.get("k")].append(record)
    windows: Windows = defaultdict(list)
    for k, own in groups.items():
        start, end = 0, -1
        for record in sorted(own, key=lambda r: r.members["ts"]):
            time = record.members["ts"]
            if time >= end:
                start = time
            end = min(time + 25_000, (time // (2 * MINUTE) + 1) * 2 * MINUTE)
            windows[k, rfc3339_ms(start)].append(record)
    return windows
