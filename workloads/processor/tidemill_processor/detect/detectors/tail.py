"""How rare a size is among those seen: the upper tail of a stream, from its largest values.

Weissman (1978) with Hill's estimator (1975): of n sizes the k largest are kept; beyond the smallest of them, u,
P(size > x) ≈ k/n · (x/u)^(-1/ξ), ξ the mean of ln(kept / u). A tail is [n, kept in ascending order].
"""

from __future__ import annotations

import bisect
import math
from typing import Any

Tail = list[Any]
KEPT = 50
SHARE = 20
"""One of so many sizes is kept, until there are KEPT of them, but not fewer than LEAST."""
LEAST = 5
MEMORY = 8_000
"""After so many sizes half of what is known is forgotten."""
RAREST = 12.0
_THINNEST = 0.02
_NOTHING = 1e-6


def surprise(tail: Tail, size: float) -> float:
    """-log10 of the probability of so large a size, at most 12; 0 for a usual one."""
    n, kept = tail or (0, [])
    if n < SHARE or len(kept) < LEAST or size <= max(kept[0], _NOTHING):
        return 0.0
    least = kept[0]
    index = max(_THINNEST, sum(math.log(k / least) for k in kept) / len(kept))
    return min(RAREST, math.log10(n / len(kept)) + math.log10(size / least) / index)


def learn(tail: Tail, size: float) -> Tail:
    """The tail with one more size."""
    n, kept = tail or (0, [])
    n += 1
    room = max(LEAST, min(KEPT, n // SHARE))
    if len(kept) < room or size > kept[0]:
        # Six digits are more than enough to compare by, and keep the state small.
        kept = list(kept)
        bisect.insort(kept, max(float(f"{size:.6g}"), _NOTHING))
        kept = kept[-room:]
    if n >= MEMORY:
        # Every second size stands for half as many; the greatest goes, or it would be remembered for ever.
        n, kept = n // 2, kept[::2][: len(kept) // 2]
    return [n, kept]
