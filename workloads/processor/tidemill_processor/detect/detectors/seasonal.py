"""The detector `seasonal` measures the distance from the usual value at this hour.

The hour is an hour of the day or week.
"""

from __future__ import annotations

from tidemill_contract.resource.kinds.detectors import SeasonalDetector
from tidemill_processor.detect.detectors import moments, rhythm
from tidemill_processor.detect.detectors.reading import Reading, State, around

MEMORY = 2_000.0
"""After this many windows, old distances hardly affect the spread."""
_LEAST = 10


def step(spec: SeasonalDetector, state: State, at_ms: int, value: float) -> tuple[Reading | None, State]:
    """Compute the score |r - mean of r| / standard deviation of r.

    Here r is the value minus the usual value of the hour.
    """
    learnt = state.get("rhythm") or rhythm.start(spec.period or "day")
    distances = state.get("distances", [])
    usual = rhythm.usual(learnt, at_ms)
    reading = None
    if usual is not None:
        distance = value - usual
        if distances and distances[0] >= _LEAST:
            unit = moments.spread(distances, usual)
            expected = usual + distances[1]
            reading = around(expected, spec.limit * unit, abs(value - expected) / unit)
        distances = moments.learn(distances, distance, MEMORY)
    return reading, {"rhythm": rhythm.learn(learnt, at_ms, value), "distances": distances}


DETECTORS = {"seasonal": step}
