"""auto: the detector that needs no tuning. How rare is the value, at once and for a while, by level and by hour?

After Lavin and Ahmad (2015, arXiv 1510.03336), who score the likelihood of recent prediction errors instead of the
errors: the same error is nothing in a restless series and much in a calm one. Their memory network is replaced by two
plain predictors, the long-run level and what is usual at this hour of the day; each predicts the value itself and its
average over about twelve windows. Each of the four errors becomes a surprise, -log10 of its tail probability
(tail.py). The score is half of their sum: 4 where all four say one in a hundred, or one pair alone one in ten thousand.
A point must look odd in more than one way, which is what keeps false alarms few.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tidemill_contract.resource.kinds.detectors import DetectorSpec
from tidemill_processor.detect.detectors import moments, rhythm, tail
from tidemill_processor.detect.detectors.reading import Reading, State, around

MEMORY = 2_000.0
"""Windows over which the level and the errors' spread fade."""
SLOW = 12.0
"""Windows that the average runs over."""
REACH = 30.0
"""Values are learnt as no further than so many standard deviations from what was expected (Huber 1964)."""
LARGEST = 1e4
"""An error's size in standard deviations, at most: with a few larger ones in its tail nothing would be rare."""
_LEAST = 10
_STEPS = 30

View = list[Any]
"""One predictor's errors: [their moments, the tail of their sizes]."""


def step(spec: DetectorSpec, state: State, at_ms: int, value: float) -> tuple[Reading | None, State]:
    """Half the sum of four surprises, or a whole pair's while the hour is not known."""
    n = state.get("n", 0)
    before = state.get("slow", value)
    rhythms = state.get("rhythms") or [rhythm.start("day"), rhythm.start("day")]
    views: list[View] = state.get("views") or [[[], []]] * 4
    usual = [rhythm.usual(known, at_ms) for known in rhythms]
    level = views[0][0][1] if n else value
    weight = max(1 / (n + 1), 1 / SLOW)

    def errors(x: float) -> list[float | None]:
        """The four errors if the value were x."""
        both = (x, before + weight * (x - before))
        return [*both, *(None if u is None else v - u for v, u in zip(both, usual, strict=True))]

    def sizes(x: float) -> list[float | None]:
        return [None if e is None else _size(view[0], e, level) for view, e in zip(views, errors(x), strict=True)]

    def score(x: float) -> float:
        found = [tail.surprise(view[1], size) for view, size in zip(views, sizes(x), strict=True) if size is not None]
        return 2 * sum(found) / len(found)

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
    rhythms = [rhythm.learn(known, at_ms, x) for known, x in zip(rhythms, (kept, slow), strict=True)]
    return reading, {"slow": slow, "rhythms": rhythms, "views": learnt}


def _learnable(views: list[View], usual: float | None, level: float, value: float) -> float:
    """The value as level, hours and spreads learn it: cut at REACH standard deviations from what is expected.

    Of the two predictors the one that expects more of such a value decides. So one value, however large, moves what is
    known no more than one of that size; a level that has shifted is followed, as each cut value widens the spread.
    """
    reach = REACH * moments.spread(views[0][0], level)
    lowest, highest = level - reach, level + reach
    hourly = views[2][0]
    if usual is not None and hourly and hourly[0] > _LEAST:
        centre, reach = usual + hourly[1], REACH * moments.spread(hourly, level)
        lowest, highest = min(lowest, centre - reach), max(highest, centre + reach)
    return max(lowest, min(highest, value))


def _read(value: float, expected: float, score: Callable[[float], float], limit: float) -> Reading:
    """The reading. Bounds, which only an anomaly has: how far from the expected value the score reaches the limit."""
    found = score(value)
    if found < limit:
        return Reading(found, expected)
    near, far = 0.0, value - expected
    for _ in range(_STEPS):
        middle = (near + far) / 2
        if score(expected + middle) >= limit:
            far = middle
        else:
            near = middle
    return around(expected, abs(near), found)


def _size(known: moments.Moments, error: float, level: float) -> float:
    if not known or known[0] <= _LEAST:
        return 0.0
    size: float = abs(error - known[1]) / moments.spread(known, level)
    return min(LARGEST, size)


def _learn(view: View, error: float, size: float) -> View:
    return [moments.learn(view[0], error, MEMORY), tail.learn(view[1], size)]


DETECTORS = {"auto": step}
