"""A model of the platform: partitions with events, replicas that process them, and a database with a limit.

The model counts fractions of events (a fluid model), and advances in fixed steps. It contains these effects:

- A new replica works only after its start.
- Each change of the consumer group stops all replicas for a moment, because range assignment is eager.
- Each partition is read by one replica.
- Postgres accepts a limited number of events per second.

It does not contain the warm-up of replicas, retries and disks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tidemill_operator.scaling import PartitionFigures, ScalingFigures

STEP_SECONDS = 2.5


@dataclass(frozen=True)
class Setup:
    """The parameters of the model.

    Attributes:
        partitions: The number of the topic's partitions.
        capacity: The number of events that one replica processes per second.
        start_seconds: The time from a decision for a new replica until the replica works.
        pause_seconds: The time for which no replica works after members have joined or left the group.
    """

    partitions: int = 12
    capacity: float = 20_000.0
    start_seconds: float = 20.0
    pause_seconds: float = 5.0


class Simulation:
    """The simulated platform, in which a policy's replicas process a shape's events."""

    def __init__(self, setup: Setup, weights: Sequence[float], *, replicas: int = 1) -> None:
        self.setup = setup
        total = sum(weights)
        self._weights = [weight / total for weight in weights]
        self._end = [0.0] * setup.partitions
        self._consumed = [0.0] * setup.partitions
        self.now = 0.0
        self.joined = replicas
        self._starting: list[float] = []
        self._paused_until = -1.0
        self.rebalances = 0
        self._limited_steps = self._steps = 0
        self._busy_sum = 0.0

    @property
    def replicas(self) -> int:
        """The number of replicas that cost, including replicas that are starting."""
        return self.joined + len(self._starting)

    @property
    def lag(self) -> float:
        """The number of events that are not processed yet."""
        return sum(self._end) - sum(self._consumed)

    def scale(self, replicas: int) -> None:
        """Set the number of replicas. If it is lower, starting replicas are removed first."""
        while self.replicas > replicas and self._starting:
            self._starting.pop()
        if replicas < self.joined:
            self.joined = replicas
            self._rebalance()
        self._starting += [self.now + self.setup.start_seconds] * (replicas - self.replicas)

    def _rebalance(self) -> None:
        self.rebalances += 1
        self._paused_until = self.now + self.setup.pause_seconds

    def step(self, rate: float, *, database: float, stuck: frozenset[int] = frozenset()) -> None:
        """Advance by one step.

        Args:
            rate: The number of events that arrive per second.
            database: The number of events that Postgres accepts per second.
            stuck: The partitions that no replica reads.
        """
        for partition, weight in enumerate(self._weights):
            self._end[partition] += rate * weight * STEP_SECONDS
        started = [at for at in self._starting if at <= self.now]
        if started:
            self._starting = [at for at in self._starting if at > self.now]
            self.joined += len(started)
            self._rebalance()
        self._steps += 1
        if self.now >= self._paused_until and self.joined:
            self._work(database, stuck)
        self.now += STEP_SECONDS

    def _work(self, database: float, stuck: frozenset[int]) -> None:
        done, fullest = self._processable(stuck)
        total, allowed = sum(done), database * STEP_SECONDS
        share = min(1.0, allowed / total) if total else 1.0
        self._limited_steps += share < 1.0
        self._busy_sum += fullest if share == 1.0 else 1.0
        for partition, events in enumerate(done):
            self._consumed[partition] += events * share

    def _processable(self, stuck: frozenset[int]) -> tuple[list[float], float]:
        """Return the events of each partition that replicas can process now, and the use of the busiest replica."""
        most, partitions = self.setup.capacity * STEP_SECONDS, self.setup.partitions
        done, fullest, first = [0.0] * partitions, 0.0, 0
        small, larger = divmod(partitions, self.joined)
        for replica in range(min(self.joined, partitions)):
            behind = first + small + (replica < larger)
            waiting = [0.0 if p in stuck else self._end[p] - self._consumed[p] for p in range(first, behind)]
            total = sum(waiting)
            share = 1.0 if total <= most else most / total
            fullest = max(fullest, min(1.0, total / most))
            done[first:behind] = [events * share for events in waiting]
            first = behind
        return done, fullest

    def figures(self) -> ScalingFigures:
        """Return the current figures, as Tidemill would read them."""
        partitions = {
            p: PartitionFigures(0, int(self._end[p]), int(self._consumed[p]), int(self._consumed[p]))
            for p in range(self.setup.partitions)
        }
        limited = self._steps > 0 and self._limited_steps * 2 > self._steps
        return ScalingFigures(
            partitions,
            ready=self.joined,
            rebalancing=self.now < self._paused_until,
            rolling_out=bool(self._starting),
            database_saturated=limited,
        )

    def busy(self) -> float:
        """Return the mean use of the busiest replica since the last poll, from 0 to 1."""
        return self._busy_sum / self._steps if self._steps else 0.0

    def reset_averages(self) -> None:
        """Reset the averages after a poll."""
        self._limited_steps, self._steps, self._busy_sum = 0, 0, 0.0
