"""How rare a size is in a stream: an estimate of the upper tail of the distribution, from the largest sizes.

Weissman (1978) with Hill's estimator (1975): of n sizes, the k largest are kept. For x above the smallest of them, u,
P(size > x) ≈ k/n · (x/u)^(-1/ξ), where ξ is the mean of ln(kept / u). A tail is [n, kept in ascending order].
"""

from __future__ import annotations

import bisect
import math
from typing import Any

Tail = list[Any]
KEPT = 50
SHARE = 20
"""One of this many sizes is kept: at least LEAST, at most KEPT."""
LEAST = 5
MEMORY = 8_000
"""After this many sizes, half of them are forgotten."""
RAREST = 12.0
_THINNEST = 0.02
_NOTHING = 1e-6


def surprise(tail: Tail, size: float) -> float:
    """Return -log10 of the probability of a size this large or larger, at most 12; 0 for a usual size."""
    n, kept = tail or (0, [])
    if n < SHARE or len(kept) < LEAST or size <= max(kept[0], _NOTHING):
        return 0.0
    least = kept[0]
    index = max(_THINNEST, sum(math.log(k / least) for k in kept) / len(kept))
    return min(RAREST, math.log10(n / len(kept)) + math.log10(size / least) / index)


def learn(tail: Tail, size: float) -> Tail:
    """Return the tail with one more size."""
    n, kept = tail or (0, [])
    n += 1
    room = max(LEAST, min(KEPT, n // SHARE))
    if len(kept) < room or size > kept[0]:
        # Six digits are precise enough, and keep the state small.
        kept = list(kept)
        bisect.insort(kept, max(float(f"{size:.6g}"), _NOTHING))
        kept = kept[-room:]
    if n >= MEMORY:
        # Every second size is kept, which halves both numbers. The greatest is dropped, so that none stays for ever.
        n, kept = n // 2, kept[::2][: len(kept) // 2]
    return [n, kept]
