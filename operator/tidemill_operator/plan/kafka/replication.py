"""Compute the next step of a change of replicas from the state in Kafka.

If a topic's config lists throttled replicas, a change of its replicas is unfinished.
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
    """The replicas of a partition in Kafka, with the preferred leader first.

    A reassignment adds the brokers in `coming` and removes the brokers in `going`.
    """

    replicas: Replicas
    in_sync: frozenset[int]
    coming: frozenset[int] = frozenset()
    going: frozenset[int] = frozenset()

    @property
    def moving(self) -> bool:
        """Return whether a reassignment is under way."""
        return bool(self.coming or self.going)

    @property
    def after(self) -> Replicas:
        """Return the replicas after the reassignment."""
        return tuple(broker for broker in self.replicas if broker not in self.going)

    @property
    def before(self) -> Replicas:
        """Return the replicas after a cancelled reassignment."""
        return tuple(broker for broker in self.replicas if broker not in self.coming)


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
class Wish:
    """The requested replicas of a topic. A factor of None keeps the current factor."""

    factor: int | None
    rebalance: bool = False


@dataclass(frozen=True)
class Spread:
    """A request to spread replicas over the brokers. The brokers in `leaving` lose all replicas."""

    leaving: frozenset[int] = frozenset()

    @classmethod
    def asked(cls, text: str) -> Spread:
        """Parse a request, such as `2026-03-01` for all brokers, or `2026-03-01 without 3` to empty broker 3."""
        named = re.search(r"\bwithout\s+(\d+(?:\s*,\s*\d+)*)\s*$", text)
        return cls(frozenset(int(broker) for broker in named[1].split(",")) if named else frozenset())


def is_calm(partitions: Mapping[int, Held], wish: Wish, *, ours: bool) -> bool:
    """Return whether the replicas need no change."""
    if ours or wish.rebalance:
        return False
    return wish.factor is None or all(len(held.replicas) == wish.factor for held in partitions.values())


def next_step(
    topic: str, partitions: Mapping[int, Held], wish: Wish, brokers: Brokers, *, ours: bool, batch: int = BATCH
) -> Step:
    """Return the next step for a topic's replicas."""
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
        # Include partitions whose reported leader is right, because the report may be outdated.
        return Step(elect=tuple(sorted(partitions)) if ours else (), finish=ours)
    start = dict(list(todo.items())[: max(0, batch - len(moving))])
    done = len(partitions) - len(todo) - len(moving)
    text = f"{_what(factor, wish)}: {done} of {_count(partitions, 'partition')} done"
    text += f", {len(moving) + len(start)} under way" + _silence(moving, brokers)
    throttled = _throttled(partitions, {**{number: after[number] for number in moving}, **todo})
    return Step(start=start, throttled=throttled, change=ReplicaChange(factor, "ongoing", text))


def replicas_in_sync(partitions: Mapping[int, Held]) -> int:
    """Return the lowest number of in-sync replicas of any partition."""
    return min((len(held.in_sync & set(held.after)) for held in partitions.values()), default=0)


def _stale(moving: Mapping[int, Held], factor: int, brokers: Brokers) -> tuple[int, ...]:
    """Return the partitions whose reassignment should be cancelled.

    A reassignment is cancelled if its target has the wrong replication factor or a broker in `leaving`. A reassignment
    to a broker that does not answer is cancelled if the other brokers suffice.
    """

    def unwanted(held: Held) -> bool:
        if len(held.after) != factor or brokers.leaving & set(held.after):
            return True
        return bool(held.coming - set(brokers.racks)) and at_most({0: held.before}, brokers) >= factor

    return tuple(number for number, held in moving.items() if unwanted(held))


def _throttled(partitions: Mapping[int, Held], moves: Assignment) -> Mapping[str, str]:
    """Return the throttle configs of current and new replicas, in the form that Kafka's own tool uses."""
    senders, fetchers = [], []
    for number, wanted in sorted(moves.items()):
        there = partitions[number].before
        senders += [f"{number}:{broker}" for broker in there]
        fetchers += [f"{number}:{broker}" for broker in wanted if broker not in there]
    # Without new replicas, repeat the senders, so that the config of followers is not empty.
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
