"""Pure: computes the next step of a change of replicas. The only input is the state in Kafka.

A topic whose replicas the operator moves has a list of throttled replicas, which is removed last. So after a pass was
killed at any point, any operator can continue.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from tidemill_operator.plan.kafka.placement import Assignment, Brokers, Replicas, at_most, place

BATCH = 10
IN_SYNC = "min.insync.replicas"
LEADERS, FOLLOWERS = "leader.replication.throttled.replicas", "follower.replication.throttled.replicas"


@dataclass(frozen=True)
class Held:
    """The replicas of a partition as they are in Kafka.

    Attributes:
        replicas: the brokers with a replica, including added and removed ones. The preferred leader comes first.
        in_sync: the brokers whose replica is in sync.
        coming / going: the brokers that a reassignment adds / removes.
    """

    replicas: Replicas
    in_sync: frozenset[int]
    coming: frozenset[int] = frozenset()
    going: frozenset[int] = frozenset()

    @property
    def moving(self) -> bool:
        """Whether a reassignment is under way."""
        return bool(self.coming or self.going)

    @property
    def after(self) -> Replicas:
        """The replicas after the reassignment."""
        return tuple(broker for broker in self.replicas if broker not in self.going)

    @property
    def before(self) -> Replicas:
        """The replicas as they would be after a cancellation of the reassignment."""
        return tuple(broker for broker in self.replicas if broker not in self.coming)


@dataclass(frozen=True)
class ReplicaChange:
    """A change under way, for the status."""

    target: int
    state: Literal["pending", "ongoing"]
    message: str


@dataclass(frozen=True)
class Step:
    """The next actions. If all are empty, there is nothing to do.

    Attributes:
        cancel: the partitions whose reassignment to cancel.
        start: the partitions to reassign, with their new replicas.
        throttled: the topic's two configs of throttled replicas, to set before any reassignment.
        elect: the partitions for which to elect the preferred leader, once all reassignments are complete.
        finish: whether to remove the throttle, because the change is complete.
        change: the change, for the status, or None if no change is under way.
    """

    cancel: tuple[int, ...] = ()
    start: Assignment = field(default_factory=dict)
    throttled: Mapping[str, str] = field(default_factory=dict)
    elect: tuple[int, ...] = ()
    finish: bool = False
    change: ReplicaChange | None = None


@dataclass(frozen=True)
class Wish:
    """The requested replicas of a topic.

    Attributes:
        factor: the replication factor, or None to keep the current factor.
        rebalance: whether to also spread the replicas evenly.
    """

    factor: int | None
    rebalance: bool = False


@dataclass(frozen=True)
class Spread:
    """A request to spread replicas over the brokers.

    Attributes:
        leaving: the brokers from which all replicas are moved away.
    """

    leaving: frozenset[int] = frozenset()

    @classmethod
    def asked(cls, text: str) -> Spread:
        """Parse a request.

        Any new text counts as a new request. A request may end with `without 2, 3`, which names brokers to empty.

        `2026-03-01` uses all brokers. `2026-03-01 without 3` empties broker 3.
        """
        named = re.search(r"\bwithout\s+(\d+(?:\s*,\s*\d+)*)\s*$", text)
        return cls(frozenset(int(broker) for broker in named[1].split(",")) if named else frozenset())


def is_calm(partitions: Mapping[int, Held], wish: Wish, *, ours: bool) -> bool:
    """Return whether there is certainly nothing to do, as far as known without a request to Kafka."""
    if ours or wish.rebalance:
        return False
    return wish.factor is None or all(len(held.replicas) == wish.factor for held in partitions.values())


def next_step(
    topic: str, partitions: Mapping[int, Held], wish: Wish, brokers: Brokers, *, ours: bool, batch: int = BATCH
) -> Step:
    """Return the next step for a topic's replicas.

    Args:
        topic: the topic's name.
        partitions: the live partitions, with their reassignments.
        wish: the requested replicas.
        brokers: the brokers of the cluster.
        ours: whether the topic has Tidemill's throttle, which means that its change is not complete.
        batch: how many partitions may move at a time.
    """
    moving = {number: held for number, held in partitions.items() if held.moving}
    after = {number: held.after for number, held in partitions.items()}
    if wish.factor is None and not wish.rebalance and not ours:
        return Step()
    factor = wish.factor or min(len(replicas) for replicas in after.values())
    if stale := _stale(moving, factor, brokers):
        text = f"{_what(factor, wish)}: reassignment of {_count(stale, 'partition')} cancelled"
        return Step(cancel=stale, change=ReplicaChange(factor, "ongoing", text))
    if (most := at_most(after, brokers)) < factor:
        text = f"{_what(factor, wish)}: needs {factor} brokers, but only {most} can hold them"
        return Step(change=ReplicaChange(factor, "pending", text + _silence(partitions, brokers)))
    wanted = place(topic, after, factor, brokers, rebalance=wish.rebalance)
    todo = {number: wanted[number] for number in wanted if wanted[number] != after[number] and number not in moving}
    if not todo and not (moving and ours):
        # Elect for all partitions, because the broker that answered may not yet know the current leaders.
        return Step(elect=tuple(sorted(partitions)) if ours else (), finish=ours)
    start = dict(list(todo.items())[: max(0, batch - len(moving))])
    done = len(partitions) - len(todo) - len(moving)
    text = f"{_what(factor, wish)}: {done} of {_count(partitions, 'partition')} done"
    text += f", {len(moving) + len(start)} under way" + _silence(moving, brokers)
    throttled = _throttled(partitions, {**{number: after[number] for number in moving}, **todo})
    return Step(start=start, throttled=throttled, change=ReplicaChange(factor, "ongoing", text))


def replicas_in_sync(partitions: Mapping[int, Held]) -> int:
    """Return the lowest number of in-sync replicas of any partition.

    A higher min.insync.replicas would prevent writes.
    """
    return min((len(held.in_sync & set(held.after)) for held in partitions.values()), default=0)


def _stale(moving: Mapping[int, Held], factor: int, brokers: Brokers) -> tuple[int, ...]:
    """Return the partitions that are moving to an unwanted broker, or to a silent one although another is available."""

    def unwanted(held: Held) -> bool:
        if len(held.after) != factor or brokers.leaving & set(held.after):
            return True
        return bool(held.coming - set(brokers.racks)) and at_most({0: held.before}, brokers) >= factor

    return tuple(number for number, held in moving.items() if unwanted(held))


def _throttled(partitions: Mapping[int, Held], moves: Assignment) -> Mapping[str, str]:
    """Return the throttle configs in the way of Kafka's own tool: for current leaders and for new followers."""
    senders, fetchers = [], []
    for number, wanted in sorted(moves.items()):
        there = partitions[number].before
        senders += [f"{number}:{broker}" for broker in there]
        fetchers += [f"{number}:{broker}" for broker in wanted if broker not in there]
    # If no broker is added, FOLLOWERS lists the senders, so that neither list is empty. LEADERS marks the topic.
    return {LEADERS: ",".join(senders), FOLLOWERS: ",".join(fetchers or senders)}


def _what(factor: int, wish: Wish) -> str:
    replicas = f"{factor} replica{'s' if factor > 1 else ''}"
    return f"spreading {replicas} of each partition again" if wish.rebalance else f"to {replicas} of each partition"


def _silence(partitions: Mapping[int, Held], brokers: Brokers) -> str:
    silent = sorted({b for held in partitions.values() for b in held.after} - set(brokers.racks) - brokers.leaving)
    if not silent:
        return ""
    which = ", ".join(map(str, silent))
    return f"; broker{'s' if len(silent) > 1 else ''} {which} {'do' if len(silent) > 1 else 'does'} not answer"


def _count(things: Mapping[int, object] | tuple[int, ...], name: str) -> str:
    return f"{len(things)} {name}{'' if len(things) == 1 else 's'}"
