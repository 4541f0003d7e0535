"""Pure: the next step of a change of replicas, told from what Kafka says and nothing else.

Nothing is remembered but in Kafka: a topic whose replicas we move carries the list of throttled replicas, and that is
taken off last. So a pass that is killed anywhere is continued by the next one, whoever makes it.
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
    """A partition as it is.

    Attributes:
        replicas: brokers, the preferred leader first; those that are coming and going included.
        in_sync: brokers whose replica has all that is acknowledged.
        coming / going: as far as replicas are moving.
    """

    replicas: Replicas
    in_sync: frozenset[int]
    coming: frozenset[int] = frozenset()
    going: frozenset[int] = frozenset()

    @property
    def moving(self) -> bool:
        """Whether replicas are under way."""
        return bool(self.coming or self.going)

    @property
    def after(self) -> Replicas:
        """What will be when what moves has arrived."""
        return tuple(broker for broker in self.replicas if broker not in self.going)

    @property
    def before(self) -> Replicas:
        """What would be if what moves were called back."""
        return tuple(broker for broker in self.replicas if broker not in self.coming)


@dataclass(frozen=True)
class Change:
    """A change that is not complete; for the status."""

    target: int
    state: Literal["pending", "ongoing"]
    message: str


@dataclass(frozen=True)
class Step:
    """What is to be done now. Empty: nothing.

    Attributes:
        cancel: partitions whose replicas are called back.
        start: partitions whose replicas are sent to where they are to be.
        throttled: the two configs of the topic that say which replicas are slowed; set before anything moves.
        elect: partitions whose preferred leaders are to lead, once all is done.
        finish: all is done: the throttle goes.
        change: what is told; None: no change is under way.
    """

    cancel: tuple[int, ...] = ()
    start: Assignment = field(default_factory=dict)
    throttled: Mapping[str, str] = field(default_factory=dict)
    elect: tuple[int, ...] = ()
    finish: bool = False
    change: Change | None = None


@dataclass(frozen=True)
class Wish:
    """What is asked of a topic's replicas.

    Attributes:
        factor: how many; None: as many as there are.
        rebalance: whether they are also to be spread anew.
    """

    factor: int | None
    rebalance: bool = False


@dataclass(frozen=True)
class Spread:
    """Replicas are to be spread anew over the brokers there are.

    Attributes:
        leaving: brokers that shall hold nothing afterwards.
    """

    leaving: frozenset[int] = frozenset()

    @classmethod
    def asked(cls, text: str) -> Spread:
        """Of a request as people write it: anything that is new, and at its end `without 2, 3` for brokers that leave.

        `2026-03-01` → all brokers; `2026-03-01 without 3` → broker 3 is emptied.
        """
        named = re.search(r"\bwithout\s+(\d+(?:\s*,\s*\d+)*)\s*$", text)
        return cls(frozenset(int(broker) for broker in named[1].split(",")) if named else frozenset())


def is_calm(partitions: Mapping[int, Held], wish: Wish, *, ours: bool) -> bool:
    """Whether nothing is to be done that can be told without asking what moves."""
    if ours or wish.rebalance:
        return False
    return wish.factor is None or all(len(held.replicas) == wish.factor for held in partitions.values())


def next_step(
    topic: str, partitions: Mapping[int, Held], wish: Wish, brokers: Brokers, *, ours: bool, batch: int = BATCH
) -> Step:
    """What to do now for a topic's replicas.

    Args:
        topic: its name.
        partitions: as they are, with what moves.
        wish: what is asked for.
        brokers: of the cluster.
        ours: whether the topic carries our mark, i.e. a change of ours is not complete.
        batch: partitions that move at once.
    """
    moving = {number: held for number, held in partitions.items() if held.moving}
    after = {number: held.after for number, held in partitions.items()}
    if wish.factor is None and not wish.rebalance and not ours:
        return Step()
    factor = wish.factor or min(len(replicas) for replicas in after.values())
    if stale := _stale(moving, factor, brokers):
        text = f"{_what(factor, wish)}: {_count(stale, 'partition')} called back"
        return Step(cancel=stale, change=Change(factor, "ongoing", text))
    if (most := at_most(after, brokers)) < factor:
        text = f"{_what(factor, wish)}: needs {factor} brokers, and {most} can hold them"
        return Step(change=Change(factor, "pending", text + _silence(partitions, brokers)))
    wanted = place(topic, after, factor, brokers, rebalance=wish.rebalance)
    todo = {number: wanted[number] for number in wanted if wanted[number] != after[number] and number not in moving}
    if not todo and not (moving and ours):
        # All of them: who leads was told by a broker that may not know yet that the last replica has arrived.
        return Step(elect=tuple(sorted(partitions)) if ours else (), finish=ours)
    start = dict(list(todo.items())[: max(0, batch - len(moving))])
    done = len(partitions) - len(todo) - len(moving)
    text = f"{_what(factor, wish)}: {done} of {_count(partitions, 'partition')} done"
    text += f", {len(moving) + len(start)} under way" + _silence(moving, brokers)
    throttled = _throttled(partitions, {**{number: after[number] for number in moving}, **todo})
    return Step(start=start, throttled=throttled, change=Change(factor, "ongoing", text))


def replicas_in_sync(partitions: Mapping[int, Held]) -> int:
    """How many in-sync replicas can be demanded without refusing writes: of the partition that has the fewest."""
    return min((len(held.in_sync & set(held.after)) for held in partitions.values()), default=0)


def _stale(moving: Mapping[int, Held], factor: int, brokers: Brokers) -> tuple[int, ...]:
    """Partitions on their way to where they are not wanted, or to a broker that is silent while another could do."""

    def unwanted(held: Held) -> bool:
        if len(held.after) != factor or brokers.leaving & set(held.after):
            return True
        return bool(held.coming - set(brokers.racks)) and at_most({0: held.before}, brokers) >= factor

    return tuple(number for number, held in moving.items() if unwanted(held))


def _throttled(partitions: Mapping[int, Held], moves: Assignment) -> Mapping[str, str]:
    """Kafka's own tool does it so: the replicas there are send slowly, those to come fetch slowly."""
    senders, fetchers = [], []
    for number, wanted in sorted(moves.items()):
        there = partitions[number].before
        senders += [f"{number}:{broker}" for broker in there]
        fetchers += [f"{number}:{broker}" for broker in wanted if broker not in there]
    # An empty list would be no mark.
    return {LEADERS: ",".join(senders), FOLLOWERS: ",".join(fetchers or senders)}


def _what(factor: int, wish: Wish) -> str:
    replicas = f"{factor} replica{'s' if factor > 1 else ''}"
    return f"spreading {replicas} of each partition anew" if wish.rebalance else f"to {replicas} of each partition"


def _silence(partitions: Mapping[int, Held], brokers: Brokers) -> str:
    silent = sorted({b for held in partitions.values() for b in held.after} - set(brokers.racks) - brokers.leaving)
    if not silent:
        return ""
    which = ", ".join(map(str, silent))
    return f"; broker{'s' if len(silent) > 1 else ''} {which} {'do' if len(silent) > 1 else 'does'} not answer"


def _count(things: Mapping[int, object] | tuple[int, ...], name: str) -> str:
    return f"{len(things)} {name}{'' if len(things) == 1 else 's'}"
