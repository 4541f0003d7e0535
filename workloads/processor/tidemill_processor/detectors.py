"""Anomaly detectors, purely: a state and a value in, a verdict and the next state out. States are small JSON objects.

zscore: |x - mean| / standard deviation of all values so far (Welford 1962).
ewma: the same against exponentially weighted mean and variance (Roberts 1959; West 1979), weight 0.1.
mad: |x - median| / (1.4826 · median absolute deviation) of the last 100 values (Hampel 1974).
A value is judged before it is learnt; a spread of zero is floored, so that a flat series does not fire at any wobble.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tidemill_contract.spec import DetectorSpec

State = dict[str, Any]
EWMA_WEIGHT = 0.1
MAD_WINDOW = 100
_MAD_TO_SIGMA = 1.4826


@dataclass(frozen=True)
class Verdict:
    """How a value compares with what was expected; `score` is in units of the spread."""

    value: float
    score: float
    expected: float
    lower: float
    upper: float


def judge(spec: DetectorSpec, state: State, value: float) -> tuple[Verdict | None, State]:
    """Judge one value and learn it.

    Returns:
        A verdict if the value is anomalous (score ≥ threshold after `warmup` values), else None; the next state.

    Raises:
        KeyError: the detector type is not one of these.
    """
    expect, learn = _DETECTORS[spec.type]
    verdict = None
    if state.get("n", 0) >= spec.warmup:
        centre, spread = expect(state)
        spread = max(spread, abs(centre) * 1e-6, 1e-9)
        score = abs(value - centre) / spread
        if score >= spec.threshold and math.isfinite(score):
            reach = spec.threshold * spread
            verdict = Verdict(value, score, centre, centre - reach, centre + reach)
    return verdict, learn(state, value)


def _expect_moments(state: State) -> tuple[float, float]:
    return state["mean"], math.sqrt(max(0.0, state["var"]))


def _learn_zscore(state: State, value: float) -> State:
    n = state.get("n", 0) + 1
    mean = state.get("mean", 0.0)
    delta = value - mean
    mean += delta / n
    m2 = state.get("m2", 0.0) + delta * (value - mean)
    return {"n": n, "mean": mean, "m2": m2, "var": m2 / n}


def _learn_ewma(state: State, value: float) -> State:
    if not state:
        return {"n": 1, "mean": value, "var": 0.0}
    n = state["n"] + 1
    # Until enough is seen every value weighs alike, else the first one would weigh for long.
    weight = max(EWMA_WEIGHT, 1 / n)
    delta = value - state["mean"]
    return {
        "n": n,
        "mean": state["mean"] + weight * delta,
        "var": (1 - weight) * (state["var"] + weight * delta * delta),
    }


def _expect_mad(state: State) -> tuple[float, float]:
    centre = statistics.median(state["recent"])
    return centre, _MAD_TO_SIGMA * statistics.median(abs(x - centre) for x in state["recent"])


def _learn_mad(state: State, value: float) -> State:
    return {"n": state.get("n", 0) + 1, "recent": [*state.get("recent", ())[-(MAD_WINDOW - 1) :], value]}


_DETECTORS: dict[str, tuple[Callable[[State], tuple[float, float]], Callable[[State, float], State]]] = {
    "zscore": (_expect_moments, _learn_zscore),
    "ewma": (_expect_moments, _learn_ewma),
    "mad": (_expect_mad, _learn_mad),
}
SUPPORTED_DETECTORS = frozenset(_DETECTORS)
