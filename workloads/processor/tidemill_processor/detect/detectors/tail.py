"""Estimates how rare the size of a prediction error is.

The method is from Weissman (1978), with Hill's estimator (1975).

A tail is [n, kept]. n is the number of all error sizes. kept has the k largest error sizes in ascending order.
Let u be the smallest kept size, and ξ the mean of ln(kept size / u). For x > u, P(size > x) ≈ k/n · (x/u)^(-1/ξ).
"""

from __future__ import annotations

import bisect
import math
from typing import Any

Tail = list[Any]
KEPT = 50
SHARE = 20
"""A tail keeps the n / SHARE largest sizes, but at least LEAST and at most KEPT."""
LEAST = 5
MEMORY = 8_000
"""When n reaches this number, n and the number of kept sizes are halved."""
RAREST = 12.0
_THINNEST = 0.02
_NOTHING = 1e-6


def surprise(tail: Tail, size: float) -> float:
    """Return -log10(p), but at most 12. p is the probability of an error of at least `size`."""
    n, kept = tail or (0, [])
    if n < SHARE or len(kept) < LEAST or size <= max(kept[0], _NOTHING):
        return 0.0
    least = kept[0]
    index = max(_THINNEST, sum(math.log(k / least) for k in kept) / len(kept))
    return min(RAREST, math.log10(n / len(kept)) + math.log10(size / least) / index)


def learn(tail: Tail, size: float) -> Tail:
    """Add the size of a prediction error, and return the new tail."""
    n, kept = tail or (0, [])
    n += 1
    room = max(LEAST, min(KEPT, n // SHARE))
    if len(kept) < room or size > kept[0]:
        # Keep six significant digits, so that the stored state stays small.
        kept = list(kept)
        bisect.insort(kept, max(float(f"{size:.6g}"), _NOTHING))
        kept = kept[-room:]
    if n >= MEMORY:
        # Remove half of the kept sizes. The greatest size is always removed.
        n, kept = n // 2, kept[::2][: len(kept) // 2]
    return [n, kept]
