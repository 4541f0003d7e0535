"""Anomaly detectors, purely: a state and a window's value in, a verdict and the next state out.

A state is a small JSON object of bounded size; the same states and values give the same verdicts, wherever and after
whatever restart. A value is judged before it is learnt. docs/detectors.md has formulas, sources and measured scores.
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

__all__ = ["COOLDOWN_WINDOWS", "Reading", "State", "Verdict", "decide", "judge", "number", "observe", "severity"]

COOLDOWN_WINDOWS = 24
"""Without `cooldown`, so many windows of a group after an anomaly are not reported."""
GREATEST = 1e140
"""Larger values are taken as this: their squares, summed, must stay finite."""

Detector = Callable[[Any, State, int, float], tuple[Reading | None, State]]
"""Of a detector's own class of settings."""


def _registered() -> Mapping[str, Detector]:
    """The detectors by type: those of every module of this package that has `DETECTORS`."""
    found: dict[str, Detector] = {}
    for module in pkgutil.iter_modules(__path__):
        found |= getattr(importlib.import_module(f"{__name__}.{module.name}"), "DETECTORS", {})
    return found


_DETECTORS = _registered()


@dataclass(frozen=True)
class Verdict:
    """An anomaly: how a value compares with what was expected.

    Attributes:
        score: in the detector's unit; at least the threshold.
        severity: info, warning (score ≥ 1.5 thresholds) or critical (≥ 3).
        expected: the value that would have surprised least; None where a detector has no such idea.
        lower, upper: values within would not have been reported; None likewise.
    """

    value: float
    score: float
    severity: str
    expected: float | None
    lower: float | None
    upper: float | None

    def within(self, least: float, greatest: float) -> Verdict:
        """The same, with nothing expected that a metric cannot be: a share is never below 0."""
        expected, lower, upper = (
            None if bound is None else min(max(bound, least), greatest)
            for bound in (self.expected, self.lower, self.upper)
        )
        return replace(self, expected=expected, lower=lower, upper=upper)


def judge(spec: DetectorSpec, state: State, at_ms: int, value: float) -> tuple[Verdict | None, State]:
    """Judge one value and learn it.

    Args:
        spec: the detector.
        state: what was returned for the group's window before; {} at first.
        at_ms: start of the window, epoch ms.
        value: the metric; one that is not finite is passed over.

    Returns:
        A verdict if the value is anomalous (score ≥ threshold, after `warmup` values, outside the cooldown), else
        None; the next state. Neither changes what was given.
    """
    if not math.isfinite(value):
        return None, state
    try:
        reading, following = observe(spec, state, at_ms, value)
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError):
        # What is stored is not what this detector writes: it begins anew, and the group is watched on.
        state = {}
        reading, following = observe(spec, state, at_ms, value)
    return decide(spec, state, following, reading, at_ms, value)


def number(value: float | Decimal) -> float:
    """A metric's value as detectors take it; an integer beyond all floats is the greatest of them."""
    try:
        return float(value)
    except OverflowError:
        return math.copysign(sys.float_info.max, 1 if value > 0 else -1)


def decide(
    spec: DetectorSpec, state: State, following: State, reading: Reading | None, at_ms: int, value: float
) -> tuple[Verdict | None, State]:
    """What is reported of a reading after threshold, warm-up and cooldown; `judge` is `observe` and this."""
    n, quiet = following["n"], state.get("quiet", {}) if state.get("of") == following["of"] else {}
    if _is_quiet(spec, quiet, n, at_ms):
        return None, {**following, "quiet": quiet}
    if reading is None or n <= spec.warmup or reading.score < spec.limit:
        return None, following
    verdict = Verdict(
        value, reading.score, severity(reading.score, spec), reading.expected, reading.lower, reading.upper
    )
    return verdict, {**following, "quiet": {"n": n, "at": at_ms}}


def observe(spec: DetectorSpec, state: State, at_ms: int, value: float) -> tuple[Reading | None, State]:
    """The reading of a value whatever its score, without warm-up and cooldown; the next state."""
    of = spec.signature
    # Settings were changed: what another detector has learnt means nothing to this one.
    known = state if state.get("of") == of else {}
    reading, learnt = _DETECTORS[spec.type](spec, known, at_ms, max(-GREATEST, min(GREATEST, value)))
    if reading is not None and not math.isfinite(reading.score):
        reading = replace(reading, score=GREATEST)
    return reading, {**learnt, "of": of, "n": known.get("n", 0) + 1}


def severity(score: float, spec: DetectorSpec) -> str:
    """How bad a score is, by how far it is above the threshold."""
    excess = score / spec.limit
    return "critical" if excess >= 3 else "warning" if excess >= 1.5 else "info"


def _is_quiet(spec: DetectorSpec, quiet: State, n: int, at_ms: int) -> bool:
    if not quiet:
        return False
    if spec.cooldown is None:
        return bool(n - quiet["n"] <= COOLDOWN_WINDOWS)
    return bool(at_ms - quiet["at"] < parse_ms(spec.cooldown))
