"""The detector `auto`: scores a value by the rarity of the value and of the recent average.

The detector needs no tuning. The method follows Lavin and Ahmad (2015, arXiv 1510.03336). The score is
2 · mean(-log10 p). Here p is the probability of an equal or larger prediction error (see tail.py).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tidemill_contract.resource.kinds.detectors import DetectorSpec
from tidemill_processor.detect.detectors import moments, rhythm, tail
from tidemill_processor.detect.detectors.reading import Reading, State, around

MEMORY = 2_000.0
"""After this many windows, old values hardly affect the level and the spreads."""
SLOW = 12.0
"""The number of windows in the recent average."""
REACH = 30.0
"""A learnt value is limited to this many standard deviations from the expected value (Huber 1964)."""
LARGEST = 1e4
"""Prediction errors are limited to this many standard deviations."""
_LEAST = 10
_STEPS = 30

View = list[Any]
"""Statistics of one predictor's errors: [moments (see moments.py), tail (see tail.py)]."""


def step(spec: DetectorSpec, state: State, at_ms: int, value: float) -> tuple[Reading | None, State]:
    """Score a value, and return the reading and the next state."""
    n = state.get("n", 0)
    before = state.get("slow", value)
    rhythms = state.get("rhythms") or [rhythm.start("day"), rhythm.start("day")]
    views: list[View] = state.get("views") or [[[], []]] * 4
    usual = [rhythm.usual(r, at_ms) for r in rhythms]
    level = views[0][0][1] if n else value
    weight = max(1 / (n + 1), 1 / SLOW)

    def errors(x: float) -> list[float | None]:
        both = (x, before + weight * (x - before))
        return [*both, *(None if u is None else v - u for v, u in zip(both, usual, strict=True))]

    def sizes(x: float) -> list[float | None]:
        return [None if e is None else _size(view[0], e, level) for view, e in zip(views, errors(x), strict=True)]

    def score(x: float) -> float:
        surprises = [
            tail.surprise(view[1], size) for view, size in zip(views, sizes(x), strict=True) if size is not None
        ]
        return 2 * sum(surprises) / len(surprises)

    reading = None
    if n >= _LEAST:
        hourly = views[2][0]
        expected = level if usual[0] is None or not hourly else usual[0] + hourly[1]
        reading = _read(value, expected, score, spec.limit)
    kept = _learnable(views, usual[0], level, value) if n >= _LEAST else value
    learnt = [
        view if error is None or size is None else _learn(view, error, size)
        for view, error, size in zip(views, errors(kept), sizes(value), strict=True)
    ]
    slow = before + weight * (kept - before)
    rhythms = [rhythm.learn(r, at_ms, x) for r, x in zip(rhythms, (kept, slow), strict=True)]
    return reading, {"slow": slow, "rhythms": rhythms, "views": learnt}


def _learnable(views: list[View], usual: float | None, level: float, value: float) -> float:
    """Return the value to learn, limited to REACH standard deviations from the expected value."""
    reach = REACH * moments.spread(views[0][0], level)
    lowest, highest = level - reach, level + reach
    hourly = views[2][0]
    if usual is not None and hourly and hourly[0] > _LEAST:
        centre, reach = usual + hourly[1], REACH * moments.spread(hourly, level)
        lowest, highest = min(lowest, centre - reach), max(highest, centre + reach)
    return max(lowest, min(highest, value))


def _read(value: float, expected: float, score: Callable[[float], float], limit: float) -> Reading:
    value_score = score(value)
    if value_score < limit:
        return Reading(value_score, expected)
    near, far = 0.0, value - expected
    for _ in range(_STEPS):
        middle = (near + far) / 2
        if score(expected + middle) >= limit:
            far = middle
        else:
            near = middle
    return around(expected, abs(near), value_score)


def _size(past: moments.Moments, error: float, level: float) -> float:
    if not past or past[0] <= _LEAST:
        return 0.0
    size: float = abs(error - past[1]) / moments.spread(past, level)
    return min(LARGEST, size)


def _learn(view: View, error: float, size: float) -> View:
    return [moments.learn(view[0], error, MEMORY), tail.learn(view[1], size)]


DETECTORS = {"auto": step}
