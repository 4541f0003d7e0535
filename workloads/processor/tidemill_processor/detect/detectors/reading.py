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


def around(expected: float, reach: float, score: float) -> Reading:
    """Return a reading whose bounds are `expected` minus `reach` and `expected` plus `reach`."""
    return Reading(score, expected, expected - reach, expected + reach)
