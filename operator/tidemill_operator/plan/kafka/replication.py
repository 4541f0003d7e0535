"""Compute the next step of a change of replicas from the state in Kafka.

If a topic's config lists throttled replicas, a change of its replicas is unfinished.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from tidemill_operator.plan.kafka.placement import Assignment, Brokers, Replicas, max_replication_factor, place_replicas

BATCH = 10
IN_SYNC = "min.insync.replicas"
THROTTLED_LEADERS, THROTTLED_FOLLOWERS = (
    "leader.replication.throttled.replicas",
    "follower.replication.throttled.replicas",
)


@dataclass(frozen=True)
class PartitionReplicas:
    """The replicas of a partition in Kafka, with the preferred leader first.

    A reassignment adds the brokers in `adding` and removes the brokers in `removing`.
    """

    replicas: Replicas
    in_sync: frozenset[int]
    adding: frozenset[int] = frozenset()
    removing: frozenset[int] = frozenset()

    @property
    def moving(self) -> bool:
        """Return whether a reassignment is under way."""
        return bool(self.adding or self.removing)

    @property
    def after(self) -> Replicas:
        """Return the replicas after the reassignment."""
        return tuple(broker for broker in self.replicas if broker not in self.removing)

    @property
    def before(self) -> Replicas:
        """Return the replicas after a cancelled reassignment."""
        return tuple(broker for broker in self.replicas if broker not in self.adding)


@dataclass(frozen=True)
class ReplicaChange:
    """An unfinished change of replicas."""

    target: int
    state: Literal["pending", "ongoing"]
    message: str


@dataclass(frozen=True)
class Step:
    """The next actions of a change to a topic's replicas."""

    cancel: tuple[int, ...] = ()
    start: Assignment = field(default_factory=dict)
    throttled: Mapping[str, str] = field(default_factory=dict)
    elect: tuple[int, ...] = ()
    finish: bool = False
    change: ReplicaChange | None = None


@dataclass(frozen=True)
class ReplicaRequest:
    """The requested replicas of a topic. A factor of None keeps the current factor."""

    factor: int | None
    rebalance: bool = False


@dataclass(frozen=True)
class Spread:
    """A request to spread replicas over the brokers. The brokers in `leaving` lose all replicas."""

    leaving: frozenset[int] = frozenset()

    @classmethod
    def parse(cls, text: str) -> Spread:
        """Parse a request, such as `2026-03-01` for all brokers, or `2026-03-01 without 3` to empty broker 3."""
        named = re.search(r"\bwithout\s+(\d+(?:\s*,\s*\d+)*)\s*$", text)
        return cls(frozenset(int(broker) for broker in named[1].split(",")) if named else frozenset())


def is_settled(partitions: Mapping[int, PartitionReplicas], request: ReplicaRequest, *, started_by_us: bool) -> bool:
    """Return whether the replicas need no change."""
    if started_by_us or request.rebalance:
        return False
    return request.factor is None or all(len(partition.replicas) == request.factor for partition in partitions.values())


def next_step(
    topic: str,
    partitions: Mapping[int, PartitionReplicas],
    request: ReplicaRequest,
    brokers: Brokers,
    *,
    started_by_us: bool,
    batch: int = BATCH,
) -> Step:
    """Return the next step for a topic's replicas."""
    moving = {number: partition for number, partition in partitions.items() if partition.moving}
    after = {number: partition.after for number, partition in partitions.items()}
    if request.factor is None and not request.rebalance and not started_by_us:
        return Step()
    factor = request.factor or min(len(replicas) for replicas in after.values())
    if outdated := _outdated_moves(moving, factor, brokers):
        text = f"{_goal(factor, request)}: reassignment of {_count(outdated, 'partition')} cancelled"
        return Step(cancel=outdated, change=ReplicaChange(factor, "ongoing", text))
    if (possible := max_replication_factor(after, brokers)) < factor:
        text = f"{_goal(factor, request)}: needs {factor} brokers, but only {possible} can hold them"
        return Step(change=ReplicaChange(factor, "pending", text + _silent_brokers_text(partitions, brokers)))
    wanted = place_replicas(topic, after, factor, brokers, rebalance=request.rebalance)
    todo = {number: wanted[number] for number in wanted if wanted[number] != after[number] and number not in moving}
    if not todo and not (moving and started_by_us):
        # Include partitions whose reported leader is right, because the report may be outdated.
        return Step(elect=tuple(sorted(partitions)) if started_by_us else (), finish=started_by_us)
    start = dict(list(todo.items())[: max(0, batch - len(moving))])
    done = len(partitions) - len(todo) - len(moving)
    text = f"{_goal(factor, request)}: {done} of {_count(partitions, 'partition')} done"
    text += f", {len(moving) + len(start)} under way" + _silent_brokers_text(moving, brokers)
    throttled = _throttled(partitions, {**{number: after[number] for number in moving}, **todo})
    return Step(start=start, throttled=throttled, change=ReplicaChange(factor, "ongoing", text))


def replicas_in_sync(partitions: Mapping[int, PartitionReplicas]) -> int:
    """Return the lowest number of in-sync replicas of any partition."""
    return min((len(partition.in_sync & set(partition.after)) for partition in partitions.values()), default=0)


def _outdated_moves(moving: Mapping[int, PartitionReplicas], factor: int, brokers: Brokers) -> tuple[int, ...]:
    """Return the partitions whose reassignment should be cancelled.

    A reassignment is cancelled if its target has the wrong replication factor or a broker in `leaving`. A reassignment
    to a broker that does not answer is cancelled if the other brokers suffice.
    """

    def unwanted(partition: PartitionReplicas) -> bool:
        if len(partition.after) != factor or brokers.leaving & set(partition.after):
            return True
        unreachable = partition.adding - set(brokers.racks)
        return bool(unreachable) and max_replication_factor({0: partition.before}, brokers) >= factor

    return tuple(number for number, partition in moving.items() if unwanted(partition))


def _throttled(partitions: Mapping[int, PartitionReplicas], moves: Assignment) -> Mapping[str, str]:
    """Return the throttle configs of current and new replicas, in the form that Kafka's own tool uses."""
    senders, fetchers = [], []
    for number, replicas in sorted(moves.items()):
        current = partitions[number].before
        senders += [f"{number}:{broker}" for broker in current]
        fetchers += [f"{number}:{broker}" for broker in replicas if broker not in current]
    # Without new replicas, repeat the senders, so that the config of followers is not empty.
    return {THROTTLED_LEADERS: ",".join(senders), THROTTLED_FOLLOWERS: ",".join(fetchers or senders)}


def _goal(factor: int, request: ReplicaRequest) -> str:
    replicas = f"{factor} replica{'s' if factor > 1 else ''}"
    return f"spreading {replicas} of each partition again" if request.rebalance else f"to {replicas} of each partition"


def _silent_brokers_text(partitions: Mapping[int, PartitionReplicas], brokers: Brokers) -> str:
    used = {broker for partition in partitions.values() for broker in partition.after}
    silent = sorted(used - set(brokers.racks) - brokers.leaving)
    if not silent:
        return ""
    listed = ", ".join(map(str, silent))
    return f"; broker{'s' if len(silent) > 1 else ''} {listed} {'do' if len(silent) > 1 else 'does'} not answer"


def _count(things: Mapping[int, object] | tuple[int, ...], name: str) -> str:
    return f"{len(things)} {name}{'' if len(things) == 1 else 's'}"
