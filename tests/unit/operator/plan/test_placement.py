"""Tests of the placement of replicas: racks, brokers and leaders are spread, and as few replicas as possible move."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidemill_operator.plan.kafka.placement import Assignment, Brokers, max_replication_factor, place_replicas

Case = tuple[dict[int, tuple[int, ...]], int, Brokers]


@st.composite
def cases(draw: st.DrawFn, *, racks: bool = True, leaving: bool = True) -> Case:
    """Draw a topic on a cluster, with a possible factor. Some brokers may be silent or leaving."""
    ids = draw(st.lists(st.integers(1, 12), min_size=1, max_size=7, unique=True))
    names = st.sampled_from([None, "a", "b", "c"]) if racks else st.none()
    answering = draw(st.lists(st.sampled_from(ids), min_size=1, unique=True)) if leaving else ids
    leaving_brokers = (
        frozenset(draw(st.lists(st.sampled_from(ids), max_size=2, unique=True))) if leaving else frozenset()
    )
    brokers = Brokers({broker: draw(names) for broker in answering}, leaving_brokers)
    replicas = draw(st.integers(1, len(ids)))
    count = draw(st.integers(1, 12))
    current = {
        partition: tuple(draw(st.lists(st.sampled_from(ids), min_size=replicas, max_size=replicas, unique=True)))
        for partition in range(count)
    }
    max_factor = max_replication_factor(current, brokers)
    if max_factor == 0:
        return current, 0, brokers
    return current, draw(st.integers(1, max_factor)), brokers


def rack(brokers: Brokers, broker: int) -> str:
    return brokers.racks.get(broker) or f"broker {broker}"


def loads(assignment: Assignment, brokers: Brokers) -> Counter[int]:
    counts = Counter(dict.fromkeys(brokers.hosts, 0))
    counts.update(broker for replicas in assignment.values() for broker in replicas)
    return counts


def leaders(assignment: Assignment, brokers: Brokers) -> Counter[int]:
    counts = Counter(dict.fromkeys(brokers.hosts, 0))
    counts.update(replicas[0] for replicas in assignment.values())
    return counts


@given(case=cases(), rebalance=st.booleans())
def test_every_partition_has_its_replicas_on_brokers_that_may_hold_them(case: Case, rebalance: bool) -> None:
    """No broker holds two replicas of a partition. A leaving broker gets none. A silent broker keeps its replicas."""
    current, factor, brokers = case
    if factor == 0:
        return
    wanted = place_replicas("t", current, factor, brokers, rebalance=rebalance)
    assert set(wanted) == set(current)
    for partition, replicas in wanted.items():
        assert len(replicas) == len(set(replicas)) == factor
        assert not set(replicas) & brokers.leaving
        assert set(replicas) - set(current[partition]) <= brokers.hosts


@given(case=cases())
def test_only_missing_replicas_are_new(case: Case) -> None:
    """As many replicas are new as are missing. A partition with enough replicas stays unchanged."""
    current, factor, brokers = case
    if factor == 0:
        return
    wanted = place_replicas("t", current, factor, brokers)
    for partition, replicas in current.items():
        may_stay = [broker for broker in replicas if broker not in brokers.leaving]
        fresh = set(wanted[partition]) - set(replicas)
        assert len(fresh) == max(0, factor - len(may_stay))
        if len(replicas) == factor == len(may_stay):
            assert wanted[partition] == replicas


@given(case=cases(), rebalance=st.booleans())
def test_placing_a_placement_again_moves_nothing(case: Case, rebalance: bool) -> None:
    current, factor, brokers = case
    if factor == 0:
        return
    wanted = place_replicas("t", current, factor, brokers, rebalance=rebalance)
    assert wanted == place_replicas("t", wanted, factor, brokers, rebalance=rebalance)


@given(case=cases(racks=False, leaving=False))
def test_a_rebalance_makes_shares_equal_with_the_fewest_moves(case: Case) -> None:
    """Shares differ by at most one. Replicas move only away from brokers with too many."""
    current, factor, brokers = case
    start = place_replicas("t", current, factor, brokers)
    wanted = place_replicas("t", current, factor, brokers, rebalance=True)
    before, after = loads(start, brokers), loads(wanted, brokers)
    assert max(after.values()) - min(after.values()) <= 1
    again = place_replicas("t", start, factor, brokers, rebalance=True)
    moved = sum(len(set(again[partition]) - set(start[partition])) for partition in start)
    assert moved == sum(max(0, before[b] - loads(again, brokers)[b]) for b in before)


@given(case=cases(leaving=False))
def test_new_replicas_go_to_racks_that_have_none(case: Case) -> None:
    """Kept and new replicas use as many racks as possible."""
    current, factor, brokers = case
    racks = {rack(brokers, broker) for broker in brokers.racks}
    wanted = place_replicas("t", current, factor, brokers)
    for partition, replicas in wanted.items():
        stay = [broker for broker in replicas if broker in current[partition]]
        spread = len({rack(brokers, broker) for broker in replicas})
        assert spread == min(len(racks), len({rack(brokers, broker) for broker in stay}) + factor - len(stay))


@given(case=cases(leaving=False))
def test_a_rebalance_uses_as_many_racks_as_possible(case: Case) -> None:
    current, factor, brokers = case
    racks = {rack(brokers, broker) for broker in brokers.racks}
    for replicas in place_replicas("t", current, factor, brokers, rebalance=True).values():
        assert len({rack(brokers, broker) for broker in replicas}) == min(factor, len(racks))


@given(case=cases(racks=False, leaving=False))
def test_a_rebalance_spreads_leaders(case: Case) -> None:
    """After a rebalance no leader leads two partitions more than another replica of its partition."""
    current, factor, brokers = case
    wanted = place_replicas("t", current, factor, brokers, rebalance=True)
    leads = leaders(wanted, brokers)
    for replicas in wanted.values():
        assert all(leads[replicas[0]] - leads[other] < 2 for other in replicas[1:])
    if factor == len(brokers.hosts):
        assert max(leads.values()) - min(leads.values()) <= 1


def test_three_brokers_instead_of_one_lead_equally() -> None:
    """A topic on one broker grows to three. All brokers hold all partitions, and each leads a third."""
    wanted = place_replicas("t", {p: (1,) for p in range(6)}, 3, Brokers({1: None, 2: None, 3: None}))
    assert all(set(replicas) == {1, 2, 3} for replicas in wanted.values())
    assert leaders(wanted, Brokers({1: None})) == {1: 2, 2: 2, 3: 2}


def test_two_replicas_instead_of_three_are_spread_evenly() -> None:
    current = {0: (1, 2, 3), 1: (2, 3, 1), 2: (3, 1, 2)}
    brokers = Brokers({1: None, 2: None, 3: None})
    wanted = place_replicas("t", current, 2, brokers)
    assert set(loads(wanted, brokers).values()) == {2}
    assert [replicas[0] for replicas in wanted.values()] == [1, 2, 3]
    behind = place_replicas("t", dict.fromkeys(range(6), (1, 2, 3)), 2, brokers)
    assert set(loads(behind, brokers).values()) == {4}


def test_topics_with_one_partition_are_spread_over_brokers() -> None:
    """The order of equal brokers differs by topic."""
    brokers = Brokers(dict.fromkeys(range(1, 6)))
    first = Counter(
        place_replicas(f"topic-{n}", {0: (9,)}, 1, Brokers(brokers.racks, frozenset({9})))[0][0] for n in range(100)
    )
    assert len(first) == 5


def test_more_replicas_than_brokers_are_an_error() -> None:
    with pytest.raises(ValueError, match="no 2 brokers"):
        place_replicas("t", {0: (1,)}, 2, Brokers({1: None}))


def test_a_silent_broker_keeps_its_replicas_until_it_is_named() -> None:
    """A silent broker is expected to return. A broker that is named as leaving is emptied."""
    current = {0: (1, 3), 1: (3, 2)}
    assert place_replicas("t", current, 2, Brokers({1: None, 2: None}), rebalance=True) == current
    emptied = place_replicas("t", current, 2, Brokers({1: None, 2: None}, frozenset({3})), rebalance=True)
    assert [set(replicas) for replicas in emptied.values()] == [{1, 2}, {1, 2}]
