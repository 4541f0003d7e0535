"""What every detector gives back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

State = dict[str, Any]


@dataclass(frozen=True)
class Reading:
    """A value's score, and the expected value and bounds where a detector has them."""

    score: float
    expected: float | None = None
    lower: float | None = None
    upper: float | None = None


def around(expected: float, reach: float, score: float) -> Reading:
    """A reading whose bounds lie `reach` on both sides of what was expected."""
    return Reading(score, expected, expected - reach, expected + reach)
