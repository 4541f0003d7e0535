"""The detector `changepoint`: compares the mean of the latest windows with the mean of earlier windows.

Page (1954) finds such changes by cumulative sums. This detector compares means instead.
"""

from __future__ import annotations

import math

from tidemill_contract.resource.kinds.detectors import DetectorSpec
from tidemill_processor.detect.detectors import moments, tail
from tidemill_processor.detect.detectors.reading import Reading, State

LATEST_WINDOWS = 12
"""The number of latest windows to compare."""
EARLIER_WINDOWS = 288
"""The number of earlier windows to compare: a day of five-minute windows."""


def step(_spec: DetectorSpec, state: State, _at_ms: int, value: float) -> tuple[Reading | None, State]:
    """Score a value, and return the reading and the next state."""
    distances = state.get("distances", [])
    # Keep nine significant digits, so that the stored state stays small.
    recent = [*state.get("recent", [])[-(LATEST_WINDOWS + EARLIER_WINDOWS - 1) :], float(f"{value:.9g}")]
    reading = None
    if len(recent) >= 2 * LATEST_WINDOWS:
        before = recent[:-LATEST_WINDOWS]
        earlier = math.fsum(before) / len(before)
        later = math.fsum(recent[-LATEST_WINDOWS:]) / LATEST_WINDOWS
        centre = math.fsum(recent) / len(recent)
        deviation = math.sqrt(math.fsum((x - centre) ** 2 for x in recent) / len(recent))
        distance = abs(later - earlier) / moments.with_minimum(deviation, centre)
        reading = Reading(tail.surprise(distances, distance), earlier)
        distances = tail.learn(distances, distance)
    return reading, {"recent": recent, "distances": distances}


DETECTORS = {"changepoint": step}
