"""The result that every detector returns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

State = dict[str, Any]


@dataclass(frozen=True)
class Reading:
    """A value's score, with the expected value and bounds if the detector computes them."""

    score: float
    expected: float | None = None
    lower: float | None = None
    upper: float | None = None


def symmetric_reading(expected: float, half_width: float, score: float) -> Reading:
    """Return a reading whose bounds are `expected` minus `half_width` and `expected` plus `half_width`."""
    return Reading(score, expected, expected - half_width, expected + half_width)
