"""auto: the detector without tuning. It scores how rare a value and its recent average are.

The method follows Lavin and Ahmad (2015, arXiv 1510.03336). They score the likelihood of recent prediction errors, not
the errors themselves, because the same error is common in a noisy series and unusual in a calm one. Two simple
predictors replace the paper's memory network: the long-run level, and the usual value at this hour of the day. Each
predicts the value and the average of about twelve windows, which gives four errors. The surprise of an error is -log10
of its tail probability (tail.py). The score is half the sum of the four surprises. For example, it is 4 if each error
has a probability of 1 in 100, or if two have a probability of 1 in 10,000 and the other two are common. So a value must
be unusual in more than one way, which keeps false alarms rare.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tidemill_contract.resource.kinds.detectors import DetectorSpec
from tidemill_processor.detect.detectors import moments, rhythm, tail
from tidemill_processor.detect.detectors.reading import Reading, State, around

MEMORY = 2_000.0
"""The number of windows after which old values and errors no longer affect the level and the spreads much."""
SLOW = 12.0
"""The number of windows in the recent average."""
REACH = 30.0
"""Before a value is learnt, it is limited to this many standard deviations from the expected value (Huber 1964)."""
LARGEST = 1e4
"""The limit for errors, in standard deviations. A few larger errors in the tail would make every other error look
common."""
_LEAST = 10
_STEPS = 30

View = list[Any]
"""The errors of one predictor: [moments of the errors, tail of the sizes of errors]."""


def step(spec: DetectorSpec, state: State, at_ms: int, value: float) -> tuple[Reading | None, State]:
    """Return half the sum of the four surprises as the score.

    While the usual value of this hour is unknown, the score is the sum of the level's two surprises.
    """
    n = state.get("n", 0)
    before = state.get("slow", value)
    rhythms = state.get("rhythms") or [rhythm.start("day"), rhythm.start("day")]
    views: list[View] = state.get("views") or [[[], []]] * 4
    usual = [rhythm.usual(known, at_ms) for known in rhythms]
    level = views[0][0][1] if n else value
    weight = max(1 / (n + 1), 1 / SLOW)

    def errors(x: float) -> list[float | None]:
        """Return the four errors for a value x."""
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
    """Return the value to learn: the given one, limited to REACH standard deviations from the expected value.

    On each side, the wider of the two predictors' limits applies. This limits the effect of a single huge value. A
    shift of the level is still learnt, because each limited value widens the spread.
    """
    reach = REACH * moments.spread(views[0][0], level)
    lowest, highest = level - reach, level + reach
    hourly = views[2][0]
    if usual is not None and hourly and hourly[0] > _LEAST:
        centre, reach = usual + hourly[1], REACH * moments.spread(hourly, level)
        lowest, highest = min(lowest, centre - reach), max(highest, centre + reach)
    return max(lowest, min(highest, value))


def _read(value: float, expected: float, score: Callable[[float], float], limit: float) -> Reading:
    """Return the reading.

    Only the reading of an anomaly has bounds. A value at a bound has a score equal to the limit.
    """
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
