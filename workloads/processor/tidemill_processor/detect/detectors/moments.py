"""Computes a running mean and variance. Moments are [count, mean, variance], or [] before the first value."""

from __future__ import annotations

import math
from typing import Any

Moments = list[Any]


def learn(moments: Moments, value: float, memory: float = math.inf) -> Moments:
    """Add a value, and return the new moments.

    The first `memory` values have equal weights (Welford 1962). When more values follow, old values lose weight
    exponentially (Finch 2009).
    """
    count, mean, variance = moments or (0, 0.0, 0.0)
    weight = max(1 / (count + 1), 1 / memory)
    delta = value - mean
    return [count + 1, mean + weight * delta, (1 - weight) * (variance + weight * delta * delta)]


def spread(moments: Moments, level: float = 0.0) -> float:
    """Return the standard deviation, with a minimum for flat series."""
    _, mean, variance = moments
    return with_minimum(math.sqrt(max(0.0, variance)), max(abs(mean), abs(level)))


def with_minimum(deviation: float, level: float) -> float:
    """Return the greatest of `deviation`, a millionth of `level`, and 1e-9."""
    return max(deviation, abs(level) * 1e-6, 1e-9)
