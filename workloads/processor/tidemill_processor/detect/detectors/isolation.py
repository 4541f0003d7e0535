"""The detector `isolation`: finds unusual combinations of the value, its change and its recent average.

The method is half-space trees (Tan, Ting and Liu, IJCAI 2011). A point in a region with few earlier points is unusual.
The trees are random, with a fixed seed.
"""

from __future__ import annotations

import math
import random
from functools import cache

from tidemill_contract.resource.kinds.detectors import DetectorSpec
from tidemill_processor.detect.detectors import moments, tail
from tidemill_processor.detect.detectors.reading import Reading, State

TREES = 10
DEPTH = 6
WINDOW = 250
"""The number of points in a window, as in the paper."""
AVERAGE_WINDOWS = 12.0
MEMORY = 2_000.0
_FEATURES = 3
_MIN_NODE_POINTS = WINDOW // 10
"""A tree node with fewer points is not divided further."""

Tree = tuple[tuple[int, float], ...]


@cache
def trees() -> tuple[Tree, ...]:
    """Return the trees: the feature and the split value of each inner node. Nodes are numbered as in a heap."""
    generator = random.Random(2011)  # noqa: S311
    grown = []
    for _ in range(TREES):
        centres = [generator.random() for _ in range(_FEATURES)]
        reaches = [2 * max(centre, 1 - centre) for centre in centres]
        ranges = [(centre - reach, centre + reach) for centre, reach in zip(centres, reaches, strict=True)]
        nodes: list[tuple[int, float]] = []
        bounds = [ranges]
        for number in range(2**DEPTH - 1):
            feature = generator.randrange(_FEATURES)
            low, high = bounds[number][feature]
            middle = (low + high) / 2
            nodes.append((feature, middle))
            for half in ((low, middle), (middle, high)):
                inner = list(bounds[number])
                inner[feature] = half
                bounds.append(inner)
        grown.append(tuple(nodes))
    return tuple(grown)


def step(spec: DetectorSpec, state: State, _at_ms: int, value: float) -> tuple[Reading | None, State]:
    """Score a value, and return the reading and the next state."""
    n = state.get("n", 0)
    slow, last = state.get("slow", value), state.get("last", value)
    slow += max(1 / (n + 1), 1 / AVERAGE_WINDOWS) * (value - slow)
    errors = (value, value - last, slow)
    past = state.get("moments", [[]] * _FEATURES)
    point = [
        0.5 if not m else _to_unit_interval((e - m[1]) / moments.spread(m)) for e, m in zip(errors, past, strict=True)
    ]
    leaves = [_leaf(tree, point) for tree in trees()]
    reference, present, sizes = state.get("reference"), state.get("present"), state.get("sizes", [])
    present = present or [[0] * 2**DEPTH for _ in range(TREES)]
    reading = None
    if reference:
        size = 1 / (1 + sum(_mass(counts, leaf) for counts, leaf in zip(reference, leaves, strict=True)) / TREES)
        reading = Reading(tail.surprise(sizes, size), past[0][1])
        sizes = tail.learn(sizes, size)
    present = [_increment(counts, leaf) for counts, leaf in zip(present, leaves, strict=True)]
    if (n + 1) % WINDOW == 0:
        reference, present = present, None
    return reading, {
        "slow": slow,
        "last": value,
        "moments": [moments.learn(m, error, MEMORY) for m, error in zip(past, errors, strict=True)],
        "reference": reference,
        "present": present,
        "sizes": sizes,
    }


def _increment(counts: list[int], leaf: int) -> list[int]:
    return [*counts[:leaf], counts[leaf] + 1, *counts[leaf + 1 :]]


def _to_unit_interval(deviation: float) -> float:
    """Map a deviation to a number between 0 and 1, with 0.5 for no deviation."""
    return 0.5 + math.atan(deviation / 2) / math.pi


def _leaf(tree: Tree, point: list[float]) -> int:
    node: int = 0
    for _ in range(DEPTH):
        feature, middle = tree[node]
        node = 2 * node + (2 if point[feature] >= middle else 1)
    return node - len(tree)


def _mass(counts: list[int], leaf: int) -> float:
    low, high = 0, 2**DEPTH
    mass = WINDOW
    scale = 1
    while mass > _MIN_NODE_POINTS and high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if leaf < middle else (middle, high)
        mass, scale = sum(counts[low:high]), scale * 2
    return float(mass * scale)


DETECTORS = {"isolation": step}
