"""Runs one policy on one shape, and measures its costs and its service."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

from sim.policies import Policy, View
from sim.shapes import Shape
from sim.world import STEP_SECONDS, Setup, Simulation

POLL_SECONDS = 15.0
# The allowed total lag in events. The service of a policy is the time above this lag.
ALLOWED_LAG = 100_000.0
_FLAP_SECONDS = 600.0


@dataclass(frozen=True)
class Point:
    """The state at a poll."""

    at: float
    rate: float
    lag: float
    replicas: int
    reason: str


@dataclass(frozen=True)
class Result:
    """The result of a policy on a shape.

    Attributes:
        replica_hours: The hours of all replicas, including replicas that are starting.
        over_seconds: The time above the allowed lag.
        recover_seconds: The longest uninterrupted time above the allowed lag.
        changes: The number of changes of the number of replicas.
        rebalances: The number of rebalances of the consumer group.
        overshoot: The highest number of replicas, minus the number that the highest rate needs at full use.
        flaps: The number of changes that reverse a change made less than ten minutes before.
    """

    shape: str
    policy: str
    replica_hours: float
    mean_lag: float
    max_lag: float
    over_seconds: float
    recover_seconds: float
    changes: int
    rebalances: int
    overshoot: int
    flaps: int
    trace: tuple[Point, ...]

    def summary(self) -> dict[str, Any]:
        """Return all members except the trace."""
        record = asdict(self)
        del record["trace"]
        return record


def run(shape: Shape, policy: Policy, setup: Setup | None = None) -> Result:
    """Run a policy on a shape, beginning with one replica."""
    setup = setup or Setup()
    world = Simulation(setup, shape.weights)
    trace: list[Point] = []
    hours = lag_sum = lag_max = over = stretch = longest = peak = 0.0
    polls = round(POLL_SECONDS / STEP_SECONDS)
    steps = int(shape.seconds / STEP_SECONDS)
    for step in range(steps):
        t = step * STEP_SECONDS
        rate = shape.rate(t)
        if step % polls == 0:
            figures = None if shape.missing(t) else world.figures()
            view = View(t, world.replicas, setup.partitions, figures, world.busy())
            replicas, reason = policy.decide(view)
            trace.append(Point(t, rate, world.lag, replicas, reason))
            world.scale(replicas)
            world.reset_averages()
        world.step(rate, database=shape.database(t), stuck=shape.stuck(t))
        lag = world.lag
        hours += world.replicas * STEP_SECONDS / 3600
        lag_sum, lag_max, peak = lag_sum + lag, max(lag_max, lag), max(peak, rate)
        stretch = stretch + STEP_SECONDS if lag > ALLOWED_LAG else 0.0
        over, longest = over + (STEP_SECONDS if lag > ALLOWED_LAG else 0.0), max(longest, stretch)
    return Result(
        shape=shape.name,
        policy=policy.name,
        replica_hours=round(hours, 2),
        mean_lag=round(lag_sum / steps),
        max_lag=round(lag_max),
        over_seconds=over,
        recover_seconds=longest,
        changes=sum(a.replicas != b.replicas for a, b in pairwise(trace)),
        rebalances=world.rebalances,
        overshoot=max(0, max(point.replicas for point in trace) - math.ceil(peak / setup.capacity)),
        flaps=_flaps(trace),
        trace=tuple(trace),
    )


def _flaps(trace: Sequence[Point]) -> int:
    turns = [(b.at, b.replicas > a.replicas) for a, b in pairwise(trace) if a.replicas != b.replicas]
    return sum(up != down and later - at < _FLAP_SECONDS for (at, up), (later, down) in pairwise(turns))
