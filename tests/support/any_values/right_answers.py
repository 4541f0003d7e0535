"""Right answers of the pipeline, from exact fractions, and checks of answers against them."""

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
    """Off by at most 1e-9 of `scale`; null must be what is beyond a double, and may be where `within` is."""

    def right(got: Any) -> bool:
        if got is None:
            return within > Fraction(LARGEST) / 16
        return math.isfinite(got) and abs(Fraction(got) - exact) <= scale / 10**9 + Fraction(least)

    return right


def total(fractions: Iterable[Fraction]) -> Fraction:
    return sum(fractions, Fraction(0))


def spread(values: list[Any]) -> Fraction:
    mean = total(map(Fraction, values)) / len(values)
    return total((Fraction(value) - mean) ** 2 for value in values) / len(values)


def is_root(variance: Fraction, check: Callable[[Any], bool]) -> Callable[[Any], bool]:
    """Whether it is a standard deviation: null where the variance may be."""
    return lambda got: (
        check(None) if got is None else abs(Fraction(got) ** 2 - variance) <= variance / 10**9 + Fraction(1e-300)
    )


def expected(field: str, function: str, records: list[Record]) -> Callable[[Any], bool]:
    """What tells whether an answer is right."""
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
            variance = spread(values)
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
    """The further functions, by the model that drawn pipelines are held to."""
    assert set(got) == set(want), how
    for key, records in want.items():
        row = got[key]
        events = [dict(r.members) for r in sorted(records, key=lambda r: (r.members["ts"], r.o))]
        for members in events:  # 1 is a number, too, and zero has no sign
            members["v"] = None if members.get("v") is None else float(members["v"]) + 0.0
        start, end = (dt.datetime.fromisoformat(row[name]) for name in ("window_start", "window_end"))
        for metric in FURTHER:
            cell = metric_cell(metric, TYPES, events, (end - start) // dt.timedelta(milliseconds=1))
            value = moment(row[metric["name"]], metric)
            assert cell.fits(value), (how, key, metric, value, cell.shown, events)


def moment(value: Any, metric: dict[str, Any]) -> Any:
    """Times of answers as events have them."""
    if metric.get("field") != "at" or not isinstance(value, str):
        return value
    return (dt.datetime.fromisoformat(value) - dt.datetime(1970, 1, 1, tzinfo=dt.UTC)) // dt.timedelta(milliseconds=1)


def cut(records: Iterable[Record], group: tuple[str, ...], size: int, hop: int) -> Windows:
    found: Windows = defaultdict(list)
    for record in records:
        newest = record.members["ts"] // hop * hop
        for start in range(newest - size + hop, newest + 1, hop):
            found[(*(record.members.get(name) for name in group), rfc3339_ms(start))].append(record)
    return found


def visits(records: Iterable[Record]) -> Windows:
    """Sessions: 25 s of silence end one, and so does each second minute."""
    groups: dict[Any, list[Record]] = defaultdict(list)
    for record in records:
        groups[record.members.get("k")].append(record)
    found: Windows = defaultdict(list)
    for k, own in groups.items():
        start, end = 0, -1
        for record in sorted(own, key=lambda r: r.members["ts"]):
            time = record.members["ts"]
            if time >= end:
                start = time
            end = min(time + 25_000, (time // (2 * MINUTE) + 1) * 2 * MINUTE)
            found[k, rfc3339_ms(start)].append(record)
    return found
