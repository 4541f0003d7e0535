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

    def others_in_rack(self, partition: int, broker: int, ignored: int | None = None) -> int:
        """Return how many other replicas of the partition are in the broker's rack."""
        others = (other for other in self.replicas[partition] if other not in (broker, ignored))
        return sum(self.rack(other) == self.rack(broker) for other in others)

    def tie_break(self, broker: int) -> int:
        """Return a broker's sort key. It depends on the topic, so that topics start on different brokers."""
        return zlib.crc32(f"{self.topic}/{broker}".encode())


@dataclass
class _Choice:
    """The possible moves of the replicas of a partition.

    Attributes:
        movable: brokers whose replica of the partition can move to another broker.
        targets: brokers that can get a replica of the partition.
    """

    movable: set[int]
    targets: set[int]


Choices = dict[int, _Choice]


def place_replicas(
    topic: str, current: Assignment, factor: int, brokers: Brokers, *, rebalance: bool = False
) -> Assignment:
    """Return the placement of a topic's partitions: the brokers, with the preferred leader first.

    A broker that does not answer keeps its replicas. Without `rebalance`, only as many replicas move as `factor`
    requires.

    Raises:
        ValueError: there are too few brokers.
    """
    layout = _Layout(topic, brokers, {partition: list(replicas) for partition, replicas in sorted(current.items())})
    if factor > max_replication_factor(current, brokers):
        raise ValueError(f"{topic}: no {factor} brokers")
    for replicas in layout.replicas.values():
        layout.load.update(replicas)
    for partition in layout.replicas:
        _remove_leaving(layout, partition)
    hosts = brokers.hosts
    # An added replica may be placed on any broker. If a replica is removed, a remaining replica may move to the broker
    # of the removed replica.
    choices: Choices = {}
    for partition, replicas in layout.replicas.items():
        before = set(replicas)
        _remove_replicas(layout, partition, factor)
        added = _add_replicas(layout, partition, factor)
        remaining = set(replicas) if before > set(replicas) else set()
        choices[partition] = _Choice(added | remaining, before & hosts if remaining else set(hosts))
        if rebalance:
            choices[partition] = _Choice(set(replicas) & hosts, set(hosts))
    if rebalance:
        _separate_racks(layout, choices)
    _balance_load(layout, choices)
    changed = {p for p, replicas in layout.replicas.items() if rebalance or set(replicas) != set(current[p])}
    _spread_leaders(layout, changed)
    return {partition: tuple(replicas) for partition, replicas in layout.replicas.items()}


def max_replication_factor(current: Assignment, brokers: Brokers) -> int:
    """Return the highest possible replication factor."""
    hosts = brokers.hosts
    return min((len(hosts | (set(replicas) - brokers.leaving)) for replicas in current.values()), default=len(hosts))


def _remove_leaving(layout: _Layout, partition: int) -> None:
    for broker in [replica for replica in layout.replicas[partition] if replica in layout.brokers.leaving]:
        layout.replicas[partition].remove(broker)
        layout.load[broker] -= 1


def _remove_replicas(layout: _Layout, partition: int, factor: int) -> None:
    replicas = layout.replicas[partition]
    while len(replicas) > factor:
        # Remove replicas of silent brokers first, then replicas in a shared rack, and the leader last.
        removed = max(
            replicas,
            key=lambda b: (
                b not in layout.brokers.racks,
                layout.others_in_rack(partition, b),
                b != replicas[0],
                layout.load[b],
                layout.tie_break(b),
            ),
        )
        replicas.remove(removed)
        layout.load[removed] -= 1


def _add_replicas(layout: _Layout, partition: int, factor: int) -> set[int]:
    replicas = layout.replicas[partition]
    added: set[int] = set()
    while len(replicas) < factor:
        free = layout.brokers.hosts - set(replicas)
        new = min(free, key=lambda b: (layout.others_in_rack(partition, b), layout.load[b], layout.tie_break(b)))
        replicas.append(new)
        layout.load[new] += 1
        added.add(new)
    return added


def _separate_racks(layout: _Layout, choices: Choices) -> None:
    """Move replicas so that fewer partitions have several replicas in the same rack."""
    for partition, replicas in layout.replicas.items():
        for broker in sorted(choices[partition].movable, key=lambda b: (-layout.load[b], layout.tie_break(b))):
            free = layout.brokers.hosts - set(replicas)
            if not free or not layout.others_in_rack(partition, broker):
                continue
            best = min(
                free, key=lambda b: (layout.others_in_rack(partition, b, broker), layout.load[b], layout.tie_break(b))
            )
            if not layout.others_in_rack(partition, best, broker):
                _swap(layout, choices, partition, broker, best)


def _balance_load(layout: _Layout, choices: Choices) -> None:
    """Move replicas from the fullest to the emptiest brokers, until no move makes the distribution more even."""
    while True:
        hosts = sorted(layout.brokers.hosts, key=lambda b: (layout.load[b], layout.tie_break(b)))
        pairs = ((full, empty) for full in reversed(hosts) for empty in hosts)
        for full, empty in pairs:
            if layout.load[full] - layout.load[empty] < 2:
                continue
            # Prefer a partition whose preferred leader is not broker `full`.
            movers = list(_movable_partitions(layout, choices, full, empty))
            partition = min(movers, key=lambda p: layout.replicas[p][0] == full, default=None)
            if partition is not None:
                _swap(layout, choices, partition, full, empty)
                break
        else:
            return


def _movable_partitions(layout: _Layout, choices: Choices, full: int, empty: int) -> Iterator[int]:
    """Yield the partitions with a replica that can move from broker `full` to broker `empty`.

    The new rack holds no more of the partition's other replicas than the old rack.
    """
    for partition, replicas in layout.replicas.items():
        choice = choices[partition]
        if full not in choice.movable or empty in replicas or empty not in choice.targets:
            continue
        if layout.others_in_rack(partition, empty, full) <= layout.others_in_rack(partition, full):
            yield partition


def _swap(layout: _Layout, choices: Choices, partition: int, old: int, new: int) -> None:
    replicas = layout.replicas[partition]
    replicas[replicas.index(old)] = new
    choices[partition].movable.remove(old)
    choices[partition].movable.add(new)
    layout.load[old] -= 1
    layout.load[new] += 1


def _spread_leaders(layout: _Layout, changed: set[int]) -> None:
    """Distribute the leaders of partitions evenly over the brokers.

    The algorithm is optimal semi-matching (Harvey and others, 2006).
    """
    leads = Counter({broker: 0 for broker in layout.brokers.hosts})
    leads.update(replicas[0] for replicas in layout.replicas.values() if replicas)
    while chain := _leader_changes(layout, changed, leads):
        for partition, new in chain:
            replicas = layout.replicas[partition]
            leads[replicas[0]] -= 1
            leads[new] += 1
            at = replicas.index(new)
            replicas[0], replicas[at] = replicas[at], replicas[0]


def _leader_changes(layout: _Layout, changed: set[int], leads: Counter[int]) -> Sequence[tuple[int, int]]:
    """Return the shortest chain of leader changes that makes the distribution more even.

    Each change is a pair of the partition and the new leader.
    """
    for start in sorted(leads, key=lambda b: (-leads[b], layout.tie_break(b))):
        reached: dict[int, tuple[int, int] | None] = {start: None}
        queue = deque([start])
        while queue:
            at = queue.popleft()
            if leads[start] - leads[at] >= 2:
                return _path_to(layout, reached, at)
            for partition in sorted(changed):
                replicas = layout.replicas[partition]
                if not replicas or replicas[0] != at:
                    continue
                for new in replicas[1:]:
                    if new in leads and new in layout.brokers.hosts and new not in reached:
                        reached[new] = (partition, at)
                        queue.append(new)
    return ()


def _path_to(layout: _Layout, reached: Mapping[int, tuple[int, int] | None], end: int) -> Sequence[tuple[int, int]]:
    handovers = []
    at = end
    while (step := reached[at]) is not None:
        partition, before = step
        handovers.append((partition, at))
        at = before
    return handovers
