"""Spread replicas over racks and brokers, and leaders over brokers, with as few changes as possible."""

from __future__ import annotations

import zlib
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

Replicas = tuple[int, ...]
Assignment = Mapping[int, Replicas]


@dataclass(frozen=True)
class Brokers:
    """The brokers of a cluster, with the rack of each broker that answers.

    The brokers in `leaving` lose all replicas.
    """

    racks: Mapping[int, str | None]
    leaving: frozenset[int] = frozenset()

    @property
    def hosts(self) -> frozenset[int]:
        """Return brokers for new replicas."""
        return frozenset(self.racks) - self.leaving


@dataclass
class _Layout:
    topic: str
    brokers: Brokers
    replicas: dict[int, list[int]]
    load: Counter[int] = field(default_factory=Counter)

    def rack(self, broker: int) -> str:
        # A broker with an unknown rack counts as a separate rack.
        return self.brokers.racks.get(broker) or f"broker {broker}"

    def crowd(self, partition: int, broker: int, besides: int | None = None) -> int:
        """Return how many other replicas of the partition are in the broker's rack."""
        others = (held for held in self.replicas[partition] if held not in (broker, besides))
        return sum(self.rack(held) == self.rack(broker) for held in others)

    def turn(self, broker: int) -> int:
        """Return a broker's sort key. It depends on the topic, so that topics start on different brokers."""
        return zlib.crc32(f"{self.topic}/{broker}".encode())


@dataclass
class _Choice:
    """The possible moves of the replicas of a partition.

    Attributes:
        movable: brokers whose replica of the partition can move to another broker.
        into: brokers that can get a replica of the partition.
    """

    movable: set[int]
    into: set[int]


Choices = dict[int, _Choice]


def place(topic: str, current: Assignment, factor: int, brokers: Brokers, *, rebalance: bool = False) -> Assignment:
    """Return the placement of a topic's partitions: the brokers, with the preferred leader first.

    A broker that does not answer keeps its replicas. Without `rebalance`, only as many replicas move as `factor`
    requires.

    Raises:
        ValueError: there are too few brokers.
    """
    layout = _Layout(topic, brokers, {partition: list(held) for partition, held in sorted(current.items())})
    if factor > at_most(current, brokers):
        raise ValueError(f"{topic}: no {factor} brokers")
    for held in layout.replicas.values():
        layout.load.update(held)
    for partition in layout.replicas:
        _leave(layout, partition)
    hosts = brokers.hosts
    # An added replica may be placed on any broker. If a replica is removed, a remaining replica may move to the broker
    # of the removed replica.
    choices: Choices = {}
    for partition, held in layout.replicas.items():
        before = set(held)
        _shrink(layout, partition, factor)
        fresh = _grow(layout, partition, factor)
        kept = set(held) if before > set(held) else set()
        choices[partition] = _Choice(fresh | kept, before & hosts if kept else set(hosts))
        if rebalance:
            choices[partition] = _Choice(set(held) & hosts, set(hosts))
    if rebalance:
        _part_racks(layout, choices)
    _even(layout, choices)
    changed = {p for p, held in layout.replicas.items() if rebalance or set(held) != set(current[p])}
    _spread_leaders(layout, changed)
    return {partition: tuple(held) for partition, held in layout.replicas.items()}


def at_most(current: Assignment, brokers: Brokers) -> int:
    """Return the highest possible replication factor."""
    hosts = brokers.hosts
    return min((len(hosts | (set(held) - brokers.leaving)) for held in current.values()), default=len(hosts))


def _leave(layout: _Layout, partition: int) -> None:
    for broker in [held for held in layout.replicas[partition] if held in layout.brokers.leaving]:
        layout.replicas[partition].remove(broker)
        layout.load[broker] -= 1


def _shrink(layout: _Layout, partition: int, factor: int) -> None:
    held = layout.replicas[partition]
    while len(held) > factor:
        # Remove replicas of silent brokers first, then replicas in a shared rack, and the leader last.
        gone = max(
            held,
            key=lambda b: (
                b not in layout.brokers.racks,
                layout.crowd(partition, b),
                b != held[0],
                layout.load[b],
                layout.turn(b),
            ),
        )
        held.remove(gone)
        layout.load[gone] -= 1


def _grow(layout: _Layout, partition: int, factor: int) -> set[int]:
    held = layout.replicas[partition]
    fresh: set[int] = set()
    while len(held) < factor:
        free = layout.brokers.hosts - set(held)
        new = min(free, key=lambda b: (layout.crowd(partition, b), layout.load[b], layout.turn(b)))
        held.append(new)
        layout.load[new] += 1
        fresh.add(new)
    return fresh


def _part_racks(layout: _Layout, choices: Choices) -> None:
    """Move replicas so that fewer partitions have several replicas in the same rack."""
    for partition, held in layout.replicas.items():
        for broker in sorted(choices[partition].movable, key=lambda b: (-layout.load[b], layout.turn(b))):
            free = layout.brokers.hosts - set(held)
            if not free or not layout.crowd(partition, broker):
                continue
            best = min(free, key=lambda b: (layout.crowd(partition, b, broker), layout.load[b], layout.turn(b)))
            if not layout.crowd(partition, best, broker):
                _swap(layout, choices, partition, broker, best)


def _even(layout: _Layout, choices: Choices) -> None:
    """Move replicas from the fullest to the emptiest brokers, until no move makes the distribution more even."""
    while True:
        hosts = sorted(layout.brokers.hosts, key=lambda b: (layout.load[b], layout.turn(b)))
        pairs = ((full, empty) for full in reversed(hosts) for empty in hosts)
        for full, empty in pairs:
            if layout.load[full] - layout.load[empty] < 2:
                continue
            # Prefer a partition whose preferred leader is not broker `full`.
            movers = list(_movers(layout, choices, full, empty))
            partition = min(movers, key=lambda p: layout.replicas[p][0] == full, default=None)
            if partition is not None:
                _swap(layout, choices, partition, full, empty)
                break
        else:
            return


def _movers(layout: _Layout, choices: Choices, full: int, empty: int) -> Iterator[int]:
    """Yield the partitions with a replica that can move from broker `full` to broker `empty`.

    The new rack holds no more of the partition's other replicas than the old rack.
    """
    for partition, held in layout.replicas.items():
        choice = choices[partition]
        if full not in choice.movable or empty in held or empty not in choice.into:
            continue
        if layout.crowd(partition, empty, full) <= layout.crowd(partition, full):
            yield partition


def _swap(layout: _Layout, choices: Choices, partition: int, old: int, new: int) -> None:
    held = layout.replicas[partition]
    held[held.index(old)] = new
    choices[partition].movable.remove(old)
    choices[partition].movable.add(new)
    layout.load[old] -= 1
    layout.load[new] += 1


def _spread_leaders(layout: _Layout, changed: set[int]) -> None:
    """Distribute the leaders of partitions evenly over the brokers.

    The algorithm is optimal semi-matching (Harvey and others, 2006).
    """
    leads = Counter({broker: 0 for broker in layout.brokers.hosts})
    leads.update(held[0] for held in layout.replicas.values() if held)
    while chain := _chain(layout, changed, leads):
        for partition, new in chain:
            held = layout.replicas[partition]
            leads[held[0]] -= 1
            leads[new] += 1
            at = held.index(new)
            held[0], held[at] = held[at], held[0]


def _chain(layout: _Layout, changed: set[int], leads: Counter[int]) -> Sequence[tuple[int, int]]:
    """Return the shortest chain of leader changes that makes the distribution more even.

    Each change is a pair of the partition and the new leader.
    """
    for start in sorted(leads, key=lambda b: (-leads[b], layout.turn(b))):
        reached: dict[int, tuple[int, int] | None] = {start: None}
        queue = deque([start])
        while queue:
            at = queue.popleft()
            if leads[start] - leads[at] >= 2:
                return _back(layout, reached, at)
            for partition in sorted(changed):
                held = layout.replicas[partition]
                if not held or held[0] != at:
                    continue
                for new in held[1:]:
                    if new in leads and new in layout.brokers.hosts and new not in reached:
                        reached[new] = (partition, at)
                        queue.append(new)
    return ()


def _back(layout: _Layout, reached: Mapping[int, tuple[int, int] | None], end: int) -> Sequence[tuple[int, int]]:
    handovers = []
    at = end
    while (step := reached[at]) is not None:
        partition, before = step
        handovers.append((partition, at))
        at = before
    return handovers
