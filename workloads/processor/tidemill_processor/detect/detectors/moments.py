"""Running mean and variance, with or without forgetting. Moments are [count, mean, variance], [] before any value."""

from __future__ import annotations

import math
from typing import Any

Moments = list[Any]


def learn(moments: Moments, value: float, memory: float = math.inf) -> Moments:
    """Moments with one more value.

    The first `memory` values weigh alike (Welford 1962); then the newest weighs 1 / memory and older ones fade
    exponentially (Finch 2009, Incremental calculation of weighted mean and variance).
    """
    count, mean, variance = moments or (0, 0.0, 0.0)
    weight = max(1 / (count + 1), 1 / memory)
    delta = value - mean
    return [count + 1, mean + weight * delta, (1 - weight) * (variance + weight * delta * delta)]


def spread(moments: Moments, level: float = 0.0) -> float:
    """The standard deviation, floored so that a flat series does not fire at any wobble around its level."""
    _, mean, variance = moments
    return floored(math.sqrt(max(0.0, variance)), max(abs(mean), abs(level)))


def floored(deviation: float, level: float) -> float:
    """A spread that is never nothing: a millionth of the level at least."""
    return max(deviation, abs(level) * 1e-6, 1e-9)
