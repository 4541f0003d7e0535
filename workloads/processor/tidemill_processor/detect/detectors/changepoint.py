"""changepoint: a level that has shifted, told by the mean of the last windows against the mean of those before.

The distance of the two means in standard deviations of all these values (the two-sample statistic that CUSUM charts
and their like go back to: Page 1954); how rare so large a distance is in this series (tail.py) is the score.
"""

from __future__ import annotations

import math

from tidemill_contract.resource.kinds.detectors import DetectorSpec
from tidemill_processor.detect.detectors import moments, tail
from tidemill_processor.detect.detectors.reading import Reading, State

LATEST = 12
"""Windows that may have another level."""
BEFORE = 288
"""Windows that they are compared with: a day of five-minute windows."""


def step(_spec: DetectorSpec, state: State, _at_ms: int, value: float) -> tuple[Reading | None, State]:
    """-log10 of the tail probability of the distance; the expected value is the earlier mean."""
    distances = state.get("distances", [])
    # Nine digits are more than enough to compare by, and keep the state small.
    recent = [*state.get("recent", [])[-(LATEST + BEFORE - 1) :], float(f"{value:.9g}")]
    reading = None
    if len(recent) >= 2 * LATEST:
        before = recent[:-LATEST]
        earlier = math.fsum(before) / len(before)
        later = math.fsum(recent[-LATEST:]) / LATEST
        centre = math.fsum(recent) / len(recent)
        deviation = math.sqrt(math.fsum((x - centre) ** 2 for x in recent) / len(recent))
        distance = abs(later - earlier) / moments.floored(deviation, centre)
        reading = Reading(tail.surprise(distances, distance), earlier)
        distances = tail.learn(distances, distance)
    return reading, {"recent": recent, "distances": distances}


DETECTORS = {"changepoint": step}
