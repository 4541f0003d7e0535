"""The detector `seasonal` measures the distance from the usual value at this hour.

The hour is an hour of the day or week.
"""

from __future__ import annotations

from tidemill_contract.resource.kinds.detectors import SeasonalDetector
from tidemill_processor.detect.detectors import hourly_profile, moments
from tidemill_processor.detect.detectors.reading import Reading, State, symmetric_reading

MEMORY = 2_000.0
"""After this many windows, old distances hardly affect the spread."""
_MIN_DISTANCES = 10


def step(spec: SeasonalDetector, state: State, at_ms: int, value: float) -> tuple[Reading | None, State]:
    """Compute the score |r - mean of r| / standard deviation of r.

    Here r is the value minus the usual value of the hour.
    """
    profile = state.get("rhythm") or hourly_profile.empty(spec.period or "day")
    distances = state.get("distances", [])
    usual = hourly_profile.usual_value(profile, at_ms)
    reading = None
    if usual is not None:
        distance = value - usual
        if distances and distances[0] >= _MIN_DISTANCES:
            unit = moments.spread(distances, usual)
            expected = usual + distances[1]
            reading = symmetric_reading(expected, spec.effective_threshold * unit, abs(value - expected) / unit)
        distances = moments.learn(distances, distance, MEMORY)
    return reading, {"rhythm": hourly_profile.learn(profile, at_ms, value), "distances": distances}


DETECTORS = {"seasonal": step}
