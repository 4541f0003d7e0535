"""Estimates how rare the size of a prediction error is.

The method is from Weissman (1978), with Hill's estimator (1975).

A tail is [n, sizes]. n is the number of all error sizes. `sizes` has the k largest error sizes in ascending order.
Let u be the smallest of these, and ξ the mean of ln(size / u). For x > u, P(size > x) ≈ k/n · (x/u)^(-1/ξ).
"""

from __future__ import annotations

import bisect
import math
from typing import Any

Tail = list[Any]
MAX_SIZES = 50
SHARE = 20
"""A tail keeps the n / SHARE largest sizes, but at least MIN_SIZES and at most MAX_SIZES."""
MIN_SIZES = 5
MEMORY = 8_000
"""When n reaches this number, n and the number of kept sizes are halved."""
MAX_SURPRISE = 12.0
_MIN_INDEX = 0.02
_MIN_SIZE = 1e-6


def surprise(tail: Tail, size: float) -> float:
    """Return -log10(p), but at most 12. p is the probability of an error of at least `size`."""
    n, sizes = tail or (0, [])
    if n < SHARE or len(sizes) < MIN_SIZES or size <= max(sizes[0], _MIN_SIZE):
        return 0.0
    smallest = sizes[0]
    index = max(_MIN_INDEX, sum(math.log(k / smallest) for k in sizes) / len(sizes))
    return min(MAX_SURPRISE, math.log10(n / len(sizes)) + math.log10(size / smallest) / index)


def learn(tail: Tail, size: float) -> Tail:
    """Add the size of a prediction error, and return the new tail."""
    n, sizes = tail or (0, [])
    n += 1
    limit = max(MIN_SIZES, min(MAX_SIZES, n // SHARE))
    if len(sizes) < limit or size > sizes[0]:
        # Keep six significant digits, so that the stored state stays small.
        sizes = list(sizes)
        bisect.insort(sizes, max(float(f"{size:.6g}"), _MIN_SIZE))
        sizes = sizes[-limit:]
    if n >= MEMORY:
        # Remove half of the kept sizes. The greatest size is always removed.
        n, sizes = n // 2, sizes[::2][: len(sizes) // 2]
    return [n, sizes]
