"""The detectors `zscore`, `ewma` and `mad`: a value's distance from a centre, in units of a spread.

- zscore: mean and standard deviation of all values so far (Welford 1962).
- ewma: exponentially weighted mean and variance (Roberts 1959; Finch 2009).
- mad: median and median absolute deviation of the last values (Hampel 1974; Iglewicz and Hoaglin 1993; Tukey 1962).
"""

from __future__ import annotations

import math
import statistics

from tidemill_contract.resource.kinds.detectors import DetectorSpec, EwmaDetector, MadDetector
from tidemill_processor.detect.detectors import moments
from tidemill_processor.detect.detectors.reading import Reading, State, symmetric_reading

EWMA_WEIGHT = 0.01
MAD_SPAN = 300
_MEDIAN_TO_SIGMA = 1.4826
_MEAN_TO_SIGMA = 1.2533
CAPPED_SHARE = 0.02
"""`mad` caps this share of the deviations, starting with the largest (Winsorising). The number of capped deviations is
rounded up."""
_CAP_FACTOR = 5.0
"""The cap is this multiple of the largest deviation that is not capped."""


def zscore(spec: DetectorSpec, state: State, _at_ms: int, value: float) -> tuple[Reading | None, State]:
    """Compute the score |x - mean| / standard deviation."""
    return _by_moments(spec, state, value, math.inf)


def ewma(spec: EwmaDetector, state: State, _at_ms: int, value: float) -> tuple[Reading | None, State]:
    """Compute the score |x - weighted mean| / weighted standard deviation."""
    return _by_moments(spec, state, value, 1 / (spec.weight or EWMA_WEIGHT))


def _by_moments(spec: DetectorSpec, state: State, value: float, memory: float) -> tuple[Reading | None, State]:
    past = state.get("moments", [])
    reading = None
    if past:
        unit = moments.spread(past)
        reading = symmetric_reading(past[1], spec.effective_threshold * unit, abs(value - past[1]) / unit)
    return reading, {"moments": moments.learn(past, value, memory)}


def mad(spec: MadDetector, state: State, _at_ms: int, value: float) -> tuple[Reading | None, State]:
    """Compute the score |value - median| / spread.

    The spread is max(1.4826 · median of |x - median|, 1.2533 · winsorised mean of |x - median|).
    """
    recent = state.get("recent", [])
    reading = None
    if recent:
        centre = statistics.median(recent)
        distances = sorted(abs(x - centre) for x in recent)
        unit = max(_MEDIAN_TO_SIGMA * statistics.median(distances), _MEAN_TO_SIGMA * _mean(distances))
        unit = moments.with_minimum(unit, centre)
        reading = symmetric_reading(centre, spec.effective_threshold * unit, abs(value - centre) / unit)
    # Keep nine significant digits, so that the stored state stays small.
    values = [*recent, float(f"{value:.9g}")]
    return reading, {"recent": values[-(spec.span or MAD_SPAN) :]}


def _mean(distances: list[float]) -> float:
    uncapped = max(1, len(distances) - math.ceil(CAPPED_SHARE * len(distances)))
    cap = _CAP_FACTOR * distances[uncapped - 1]
    return (math.fsum(distances[:uncapped]) + sum(min(x, cap) for x in distances[uncapped:])) / len(distances)


DETECTORS = {"zscore": zscore, "ewma": ewma, "mad": mad}
