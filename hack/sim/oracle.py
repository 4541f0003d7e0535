"""Computes the fewest possible replica-hours for a known load, as a bound for policies.

The oracle starts replicas before they are needed, uses them fully, and loses no time by changes. Its lag never grows,
so it serves better than any policy. It ignores stuck partitions and slow databases.
"""

from __future__ import annotations

import math
from itertools import groupby

from sim.run import POLL_SECONDS
from sim.shapes import Shape
from sim.world import STEP_SECONDS, Setup
from tidemill_operator.scaling.need import assign_partitions


def fewest_hours(shape: Shape, changes: int, setup: Setup | None = None) -> float:
    """Return the fewest replica-hours with a maximum number of changes, from one replica on.

    The result is infinite if the load needs more changes. The computation is exact: it is dynamic programming over
    spans in which the same number of replicas is needed.
    """
    setup = setup or Setup()
    numbers = range(1, setup.partitions + 1)
    # The fewest hours that end with each number of replicas, by the number of changes.
    fewest = [[math.inf] * len(numbers) for _ in range(changes + 1)]
    fewest[0][0] = 0.0
    for needed, polls in groupby(_needed(shape, setup)):
        hours = sum(1 for _ in polls) * POLL_SECONDS / 3600
        before = [math.inf, *(min(row) for row in fewest)]
        fewest = [
            [
                min(stay, change) + number * hours if number >= needed else math.inf
                for number, stay in zip(numbers, row, strict=True)
            ]
            for row, change in zip(fewest, before, strict=False)
        ]
    return min(min(row) for row in fewest)


def _needed(shape: Shape, setup: Setup) -> list[int]:
    """Return the fewest replicas that keep up with the load, for the interval of each poll."""
    total, partitions = sum(shape.weights), setup.partitions
    fullest = [
        max(sum(share) / total for share in assign_partitions(shape.weights, n)) for n in range(1, partitions + 1)
    ]
    polls, steps = int(shape.seconds / POLL_SECONDS), round(POLL_SECONDS / STEP_SECONDS)
    needed = []
    for poll in range(polls):
        highest = max(shape.rate(poll * POLL_SECONDS + step * STEP_SECONDS) for step in range(steps))
        carried = (n for n, part in enumerate(fullest, start=1) if highest * part <= setup.capacity)
        needed.append(next(carried, partitions))
    return needed
