"""Anomaly detectors. Pure: each maps a state and a window's value to a verdict and the next state.

A state is a small JSON object of bounded size. Equal states and values always give equal verdicts, also after a
restart. A value is judged before it is learnt. docs/detectors.md has formulas, sources and measured scores.
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
"""Default of `cooldown`: after an anomaly, this many windows of the group are not reported."""
GREATEST = 1e140
"""Larger values are replaced by this one, so that sums of squares stay finite."""

Detector = Callable[[Any, State, int, float], tuple[Reading | None, State]]
"""Takes settings (of the detector's own class), state, time (epoch ms) and value; returns a reading and the next state.
"""


def _registered() -> Mapping[str, Detector]:
    """Return the detectors by type, from all modules of this package that define `DETECTORS`."""
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
        expected: the least surprising value; None: the detector computes none.
        lower, upper: a value between them would not have been reported; None: the detector computes none.
    """

    value: float
    score: float
    severity: str
    expected: float | None
    lower: float | None
    upper: float | None

    def within(self, least: float, greatest: float) -> Verdict:
        """Return it with expected value and bounds limited to a metric's range, e.g. a share is never below 0."""
        expected, lower, upper = (
            None if bound is None else min(max(bound, least), greatest)
            for bound in (self.expected, self.lower, self.upper)
        )
        return replace(self, expected=expected, lower=lower, upper=upper)


def judge(spec: DetectorSpec, state: State, at_ms: int, value: float) -> tuple[Verdict | None, State]:
    """Judge one value and learn it.

    Args:
        spec: the detector.
        state: the state that was returned for the group's previous window; {} at first.
        at_ms: start of the window, epoch ms.
        value: of the metric; a value that is not finite is skipped.

    Returns:
        A verdict if the value is anomalous (score ≥ threshold, after `warmup` values, outside the cooldown), else
        None; the next state. The given state is not modified.
    """
    if not math.isfinite(value):
        return None, state
    try:
        reading, following = observe(spec, state, at_ms, value)
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError):
        # This detector cannot have written the stored state. It starts again with an empty one.
        state = {}
        reading, following = observe(spec, state, at_ms, value)
    return decide(spec, state, following, reading, at_ms, value)


def number(value: float | Decimal | str) -> float:
    """Return a metric's value as a float; an integer that is too large becomes the greatest float.

    A decimal is a text.
    """
    try:
        return float(value)
    except OverflowError:
        return math.copysign(sys.float_info.max, 1 if Decimal(value) > 0 else -1)


def decide(
    spec: DetectorSpec, state: State, following: State, reading: Reading | None, at_ms: int, value: float
) -> tuple[Verdict | None, State]:
    """Apply threshold, warm-up and cooldown to a reading of `observe`. Returns verdict and next state."""
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
    """Return the reading of a value, regardless of threshold, warm-up and cooldown, and the next state."""
    of = spec.signature
    # After a change of settings, the state of the former detector does not apply.
    known = state if state.get("of") == of else {}
    reading, learnt = _DETECTORS[spec.type](spec, known, at_ms, max(-GREATEST, min(GREATEST, value)))
    if reading is not None and not math.isfinite(reading.score):
        reading = replace(reading, score=GREATEST)
    return reading, {**learnt, "of": of, "n": known.get("n", 0) + 1}


def severity(score: float, spec: DetectorSpec) -> str:
    """Return the severity of a score: info, warning or critical, by its ratio to the threshold."""
    excess = score / spec.limit
    return "critical" if excess >= 3 else "warning" if excess >= 1.5 else "info"


def _is_quiet(spec: DetectorSpec, quiet: State, n: int, at_ms: int) -> bool:
    if not quiet:
        return False
    if spec.cooldown is None:
        return bool(n - quiet["n"] <= COOLDOWN_WINDOWS)
    return bool(at_ms - quiet["at"] < parse_ms(spec.cooldown))
