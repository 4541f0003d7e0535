"""Anomaly detectors. A detector is a pure function.

The function maps a state and a value to a verdict and the next state. A state is a JSON object
of limited size. docs/detectors.md has formulas, sources and measured scores.
"""

from __future__ import annotations

import importlib
import math
import pkgutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Any

from tidemill_contract.duration import parse_ms
from tidemill_contract.resource.kinds.detectors import DetectorSpec
from tidemill_processor.detect.detectors.reading import Reading, State

__all__ = ["COOLDOWN_WINDOWS", "Reading", "State", "Verdict", "as_float", "decide", "judge", "observe", "severity"]

COOLDOWN_WINDOWS = 24
"""The default cooldown of a group after an anomaly, in windows or events."""
MAX_MAGNITUDE = 1e140
"""Greater values are replaced with this value, so that sums of squares stay finite."""

Detector = Callable[[Any, State, int, float], tuple[Reading | None, State]]
"""A function with the parameters settings, state, time (epoch ms) and value.

The function returns a reading and the next state.
"""


def _load_detectors() -> Mapping[str, Detector]:
    detectors: dict[str, Detector] = {}
    for module in pkgutil.iter_modules(__path__):
        detectors |= getattr(importlib.import_module(f"{__name__}.{module.name}"), "DETECTORS", {})
    return detectors


_DETECTORS = _load_detectors()


@dataclass(frozen=True)
class Verdict:
    """The verdict on an anomalous value.

    Attributes:
        score: the score in the detector's unit, which is at least the threshold.
        severity: info, warning (at least 1.5 thresholds) or critical (at least 3 thresholds).
        expected: the value that the detector expected, or None if unknown.
        lower: the lowest value that is not anomalous, or None if unknown.
        upper: the highest value that is not anomalous, or None if unknown.
    """

    value: float
    score: float
    severity: str
    expected: float | None
    lower: float | None
    upper: float | None

    def clamped(self, least: float, greatest: float) -> Verdict:
        """Return a copy with the expected value and bounds clamped to [`least`, `greatest`]."""
        expected, lower, upper = (
            None if bound is None else min(max(bound, least), greatest)
            for bound in (self.expected, self.lower, self.upper)
        )
        return replace(self, expected=expected, lower=lower, upper=upper)


def judge(spec: DetectorSpec, state: State, at_ms: int, value: float) -> tuple[Verdict | None, State]:
    """Judge one value, and update the state.

    Args:
        spec: the detector's settings.
        state: the state after the group's previous value, or an empty state at first.
        at_ms: the start of the window or the event time, in epoch ms.
        value: the value of the metric or field. A value that is not finite is skipped.

    Returns:
        A verdict (None if the value is not anomalous) and the next state.
    """
    if not math.isfinite(value):
        return None, state
    try:
        reading, next_state = observe(spec, state, at_ms, value)
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError):
        # The state is invalid, so start again with an empty state.
        state = {}
        reading, next_state = observe(spec, state, at_ms, value)
    return decide(spec, state, next_state, reading, at_ms, value)


def as_float(value: float | Decimal | str) -> float:
    """Return a metric's value as a finite float. Decimals may be given as text."""
    try:
        return float(value)
    except OverflowError:
        return math.copysign(sys.float_info.max, 1 if Decimal(value) > 0 else -1)


def decide(
    spec: DetectorSpec, state: State, next_state: State, reading: Reading | None, at_ms: int, value: float
) -> tuple[Verdict | None, State]:
    """Decide by threshold, warm-up and cooldown whether a value is anomalous. Return the verdict and the next state."""
    n, quiet = next_state["n"], state.get("quiet", {}) if state.get("of") == next_state["of"] else {}
    if _is_quiet(spec, quiet, n, at_ms):
        return None, {**next_state, "quiet": quiet}
    if reading is None or n <= spec.warmup or reading.score < spec.effective_threshold:
        return None, next_state
    verdict = Verdict(
        value, reading.score, severity(reading.score, spec), reading.expected, reading.lower, reading.upper
    )
    return verdict, {**next_state, "quiet": {"n": n, "at": at_ms}}


def observe(spec: DetectorSpec, state: State, at_ms: int, value: float) -> tuple[Reading | None, State]:
    """Compute the score of a value, without judging the value. Return a `Reading` and the next state."""
    of = spec.signature
    previous = state if state.get("of") == of else {}
    reading, learnt = _DETECTORS[spec.type](spec, previous, at_ms, max(-MAX_MAGNITUDE, min(MAX_MAGNITUDE, value)))
    if reading is not None and not math.isfinite(reading.score):
        reading = replace(reading, score=MAX_MAGNITUDE)
    return reading, {**learnt, "of": of, "n": previous.get("n", 0) + 1}


def severity(score: float, spec: DetectorSpec) -> str:
    """Return the severity of a score by its ratio to the threshold."""
    excess = score / spec.effective_threshold
    return "critical" if excess >= 3 else "warning" if excess >= 1.5 else "info"


def _is_quiet(spec: DetectorSpec, quiet: State, n: int, at_ms: int) -> bool:
    if not quiet:
        return False
    if spec.cooldown is None:
        return bool(n - quiet["n"] <= COOLDOWN_WINDOWS)
    return bool(at_ms - quiet["at"] < parse_ms(spec.cooldown))
