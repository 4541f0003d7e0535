"""The detector `auto`: scores a value by the rarity of the value and of the recent average.

The detector needs no tuning. The method follows Lavin and Ahmad (2015, arXiv 1510.03336). The score is
2 · mean(-log10 p). Here p is the probability of an equal or larger prediction error (see tail.py).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tidemill_contract.resource.kinds.detectors import DetectorSpec
from tidemill_processor.detect.detectors import hourly_profile, moments, tail
from tidemill_processor.detect.detectors.reading import Reading, State, symmetric_reading

MEMORY = 2_000.0
"""After this many windows, old values hardly affect the level and the spreads."""
AVERAGE_WINDOWS = 12.0
"""The number of windows in the recent average."""
MAX_LEARNT_DEVIATIONS = 30.0
"""A learnt value is limited to this many standard deviations from the expected value (Huber 1964)."""
MAX_ERROR_DEVIATIONS = 1e4
"""Prediction errors are limited to this many standard deviations."""
_MIN_WINDOWS = 10
_STEPS = 30

ErrorStats = list[Any]
"""Statistics of one predictor's errors: [moments (see moments.py), tail (see tail.py)]."""


def step(spec: DetectorSpec, state: State, at_ms: int, value: float) -> tuple[Reading | None, State]:
    """Score a value, and return the reading and the next state."""
    n = state.get("n", 0)
    before = state.get("slow", value)
    profiles = state.get("rhythms") or [hourly_profile.empty("day"), hourly_profile.empty("day")]
    views: list[ErrorStats] = state.get("views") or [[[], []]] * 4
    usual = [hourly_profile.usual_value(profile, at_ms) for profile in profiles]
    level = views[0][0][1] if n else value
    weight = max(1 / (n + 1), 1 / AVERAGE_WINDOWS)

    def errors(x: float) -> list[float | None]:
        inputs = (x, before + weight * (x - before))
        return [*inputs, *(None if u is None else v - u for v, u in zip(inputs, usual, strict=True))]

    def sizes(x: float) -> list[float | None]:
        return [None if e is None else _size(view[0], e, level) for view, e in zip(views, errors(x), strict=True)]

    def score(x: float) -> float:
        surprises = [
            tail.surprise(view[1], size) for view, size in zip(views, sizes(x), strict=True) if size is not None
        ]
        return 2 * sum(surprises) / len(surprises)

    reading = None
    if n >= _MIN_WINDOWS:
        hourly = views[2][0]
        expected = level if usual[0] is None or not hourly else usual[0] + hourly[1]
        reading = _read(value, expected, score, spec.effective_threshold)
    learnable = _learnable(views, usual[0], level, value) if n >= _MIN_WINDOWS else value
    learnt = [
        view if error is None or size is None else _learn(view, error, size)
        for view, error, size in zip(views, errors(learnable), sizes(value), strict=True)
    ]
    slow = before + weight * (learnable - before)
    profiles = [hourly_profile.learn(profile, at_ms, x) for profile, x in zip(profiles, (learnable, slow), strict=True)]
    return reading, {"slow": slow, "rhythms": profiles, "views": learnt}


def _learnable(views: list[ErrorStats], usual: float | None, level: float, value: float) -> float:
    """Return the value to learn, at most MAX_LEARNT_DEVIATIONS standard deviations from the expected value."""
    max_distance = MAX_LEARNT_DEVIATIONS * moments.spread(views[0][0], level)
    lowest, highest = level - max_distance, level + max_distance
    hourly = views[2][0]
    if usual is not None and hourly and hourly[0] > _MIN_WINDOWS:
        centre, max_distance = usual + hourly[1], MAX_LEARNT_DEVIATIONS * moments.spread(hourly, level)
        lowest, highest = min(lowest, centre - max_distance), max(highest, centre + max_distance)
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
    return symmetric_reading(expected, abs(near), value_score)


def _size(past: moments.Moments, error: float, level: float) -> float:
    if not past or past[0] <= _MIN_WINDOWS:
        return 0.0
    size: float = abs(error - past[1]) / moments.spread(past, level)
    return min(MAX_ERROR_DEVIATIONS, size)


def _learn(view: ErrorStats, error: float, size: float) -> ErrorStats:
    return [moments.learn(view[0], error, MEMORY), tail.learn(view[1], size)]


DETECTORS = {"auto": step}
