"""Polls of a pipeline whose replicas are scaled, without a clock and without servers."""

from __future__ import annotations

from dataclasses import dataclass, field

from tidemill_operator.scaling import Decision, PartitionFigures, ScalingFigures, Settings, State, decide
from tidemill_operator.scaling.need import assign_partitions

NOW = 1_000_000.0
WATCHED = State(polled_at=NOW - 15, watched_since=NOW - 3600)


def figures(*lags: int, ready: int = 1, **more: object) -> ScalingFigures:
    """Return figures of partitions with these lags, with a million consumed events each."""
    parts = {p: PartitionFigures(0, 1_000_000 + lag, 1_000_000, 1_000_000) for p, lag in enumerate(lags)}
    return ScalingFigures(parts, ready, **more)  # type: ignore[arg-type]


def known_speed() -> State:
    """Return the state of a pipeline whose replicas process 1,000 events/s each."""
    return State(rate_per_replica=1000.0)


def decision_of(settings: Settings, seen: ScalingFigures | None, *, current: int, state: State = WATCHED) -> Decision:
    """Return the decision of a single poll."""
    decision, _ = decide(settings, state, seen, current=current, now=NOW)
    return decision


@dataclass
class Stream:
    """A pipeline that is polled.

    Each replica processes `speed` events/s, and partitions get equal shares of the events.
    """

    settings: Settings = field(default_factory=Settings)
    partitions: int = 4
    speed: float = 1000.0
    current: int = 1
    now: float = NOW
    state: State = field(default_factory=State)
    ends: list[float] = field(default_factory=list)
    consumed: list[float] = field(default_factory=list)

    def poll(
        self, rate: float = 0.0, *, seconds: float = 15.0, missing: bool = False, still: tuple[int, ...] = ()
    ) -> Decision:
        """Let seconds pass at a rate of arrivals, and return the decision. Partitions in `still` consume nothing."""
        self.ends = self.ends or [0.0] * self.partitions
        self.consumed = self.consumed or [0.0] * self.partitions
        for block in assign_partitions(range(self.partitions), max(1, self.current)):
            share = self.speed * seconds / len(block) if self.current else 0.0
            for p in block:
                self.ends[p] += rate * seconds / self.partitions
                self.consumed[p] += 0.0 if p in still else min(self.ends[p] - self.consumed[p], share)
        self.now += seconds
        parts = {
            p: PartitionFigures(0, int(self.ends[p]), int(self.consumed[p]), int(self.consumed[p]))
            for p in range(self.partitions)
        }
        seen = None if missing else ScalingFigures(parts, self.current)
        decision, self.state = decide(self.settings, self.state, seen, current=self.current, now=self.now)
        self.current = decision.replicas
        return decision

    def polls(self, number: int, rate: float = 0.0) -> list[Decision]:
        return [self.poll(rate) for _ in range(number)]
