"""Tests of the next step of a change of replicas: batches, cancelled moves, waiting, and the message of the step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidemill_operator.plan.kafka.placement import Brokers
from tidemill_operator.plan.kafka.replication import (
    THROTTLED_FOLLOWERS,
    THROTTLED_LEADERS,
    PartitionReplicas,
    ReplicaChange,
    ReplicaRequest,
    Spread,
    Step,
    is_settled,
    next_step,
    replicas_in_sync,
)

THREE = Brokers({1: None, 2: None, 3: None})


def at(*replicas: int, in_sync: tuple[int, ...] | None = None) -> PartitionReplicas:
    return PartitionReplicas(replicas, frozenset(replicas if in_sync is None else in_sync))


def moving(before: tuple[int, ...], after: tuple[int, ...]) -> PartitionReplicas:
    adding, removing = frozenset(after) - set(before), frozenset(before) - set(after)
    return PartitionReplicas((*after, *sorted(removing)), frozenset(before), adding, removing)


def message_of(step: Step) -> str:
    return step.change.message if step.change else ""


def test_partitions_with_the_wished_replicas_need_no_step() -> None:
    """Without a wished number, any number is right. Kafka is not asked which partitions move."""
    partitions = {0: at(1, 2), 1: at(2, 3)}
    assert is_settled(partitions, ReplicaRequest(2), started_by_us=False)
    assert is_settled(partitions, ReplicaRequest(None), started_by_us=False)
    assert not is_settled(partitions, ReplicaRequest(3), started_by_us=False)
    assert not is_settled(partitions, ReplicaRequest(2), started_by_us=True)
    assert not is_settled(partitions, ReplicaRequest(2, rebalance=True), started_by_us=False)
    assert next_step("t", partitions, ReplicaRequest(None), THREE, started_by_us=False) == Step()


def test_replicas_are_added_in_batches() -> None:
    """Moving partitions are throttled before anything moves, and the message has the progress."""
    partitions = {number: at(1) for number in range(5)}
    step = next_step("t", partitions, ReplicaRequest(2), THREE, started_by_us=False, batch=2)
    assert list(step.start) == [0, 1]
    assert step.throttled[THROTTLED_LEADERS] == "0:1,1:1,2:1,3:1,4:1"
    assert [entry.split(":")[0] for entry in step.throttled[THROTTLED_FOLLOWERS].split(",")] == [
        "0",
        "1",
        "2",
        "3",
        "4",
    ]
    assert step.change == ReplicaChange(
        2, "ongoing", "to 2 replicas of each partition: 0 of 5 partitions done, 2 under way"
    )
    assert not step.finish


def test_a_further_move_starts_when_one_ends() -> None:
    partitions = {0: at(1, 2), 1: moving((1,), (1, 3)), 2: at(1), 3: at(1)}
    step = next_step("t", partitions, ReplicaRequest(2), THREE, started_by_us=True, batch=2)
    assert list(step.start) == [2]
    assert message_of(step) == "to 2 replicas of each partition: 1 of 4 partitions done, 2 under way"


def test_no_move_starts_while_the_batch_is_full() -> None:
    partitions = {0: moving((1,), (1, 2)), 1: at(1)}
    step = next_step("t", partitions, ReplicaRequest(2), THREE, started_by_us=True, batch=1)
    assert (step.start, step.finish) == ({}, False)


def test_a_change_ends_when_all_replicas_exist() -> None:
    """Preferred leaders are elected, and then the change ends."""
    assert next_step("t", {0: at(2, 1), 1: at(1, 2)}, ReplicaRequest(2), THREE, started_by_us=True) == Step(
        elect=(0, 1), finish=True
    )


def test_a_smaller_factor_cancels_moves_that_are_under_way() -> None:
    """Replicas that arrived already are removed afterwards."""
    partitions = {0: at(1, 2, 3), 1: moving((1,), (1, 2, 3))}
    step = next_step("t", partitions, ReplicaRequest(1), THREE, started_by_us=True)
    assert (step.cancel, step.start) == ((1,), {})
    assert message_of(step) == "to 1 replica of each partition: reassignment of 1 partition cancelled"
    step = next_step("t", {0: at(1, 2, 3), 1: at(1)}, ReplicaRequest(1), THREE, started_by_us=True)
    assert [len(replicas) for replicas in step.start.values()] == [1]


def test_a_removed_factor_cancels_the_change() -> None:
    """An unfinished change ends at the smallest number of replicas of any partition."""
    partitions = {0: at(1, 2, 3), 1: at(1)}
    step = next_step("t", partitions, ReplicaRequest(None), THREE, started_by_us=True)
    assert list(step.start) == [0]
    assert next_step("t", partitions, ReplicaRequest(None), THREE, started_by_us=False) == Step()


def test_another_broker_replaces_one_that_dies_during_a_move() -> None:
    """Moves to the dead broker are cancelled, and the next pass chooses another broker."""
    four = Brokers({1: None, 2: None, 4: None})
    assert next_step("t", {0: moving((1,), (1, 3))}, ReplicaRequest(2), four, started_by_us=True).cancel == (0,)
    step = next_step("t", {0: at(1)}, ReplicaRequest(2), four, started_by_us=True)
    assert set(step.start[0]) < {1, 2, 4}


def test_a_move_waits_for_a_dead_broker_that_no_other_can_replace() -> None:
    """The message names the broker."""
    two = Brokers({1: None, 2: None})
    step = next_step("t", {0: moving((1,), (1, 2, 3))}, ReplicaRequest(3), two, started_by_us=True)
    assert (step.cancel, step.start, step.finish) == ((), {}, False)
    assert message_of(step).endswith("0 of 1 partition done, 1 under way; broker 3 does not answer")


def test_nothing_moves_with_too_few_brokers() -> None:
    """The message has the number of brokers, and nothing moves."""
    step = next_step("t", {0: at(1)}, ReplicaRequest(3), Brokers({1: None, 2: None}), started_by_us=False)
    assert step == Step(
        change=ReplicaChange(3, "pending", "to 3 replicas of each partition: needs 3 brokers, but only 2 can hold them")
    )


def test_moves_of_others_are_left_alone() -> None:
    """A tool of others moves replicas to the wished number. There is no step and no message."""
    assert next_step("t", {0: moving((1, 2), (1, 3))}, ReplicaRequest(2), THREE, started_by_us=False) == Step()


def test_a_rebalance_uses_a_new_broker_and_ends() -> None:
    partitions = {number: at(1, 2) for number in range(6)}
    step = next_step("t", partitions, ReplicaRequest(2, rebalance=True), THREE, started_by_us=False)
    assert any(3 in replicas for replicas in step.start.values())
    assert message_of(step).startswith("spreading 2 replicas of each partition again: ")
    arrived = {**partitions, **{number: at(*replicas) for number, replicas in step.start.items()}}
    assert next_step("t", arrived, ReplicaRequest(2, rebalance=True), THREE, started_by_us=True).finish


def test_leaving_brokers_are_emptied() -> None:
    step = next_step(
        "t",
        {0: at(1, 3)},
        ReplicaRequest(2, rebalance=True),
        replace(THREE, leaving=frozenset({3})),
        started_by_us=False,
    )
    assert set(step.start[0]) == {1, 2}
    few = replace(THREE, leaving=frozenset({2, 3}))
    assert message_of(
        next_step("t", {0: at(1, 3)}, ReplicaRequest(2, rebalance=True), few, started_by_us=False)
    ).endswith("needs 2 brokers, but only 1 can hold them")


IN_SYNC: list[tuple[Mapping[int, PartitionReplicas], int, str]] = [
    ({0: at(1, 2, 3), 1: at(1, 2, 3, in_sync=(1, 2))}, 2, "the partition with the fewest counts"),
    ({0: at(1, 2, 3), 1: moving((1,), (1, 2, 3))}, 1, "a replica that is being added does not count"),
    ({0: moving((1, 2), (3, 1))}, 1, "a replica that is being removed does not count"),
    ({}, 0, "no partitions"),
]


@pytest.mark.parametrize(("partitions", "expected", "why"), IN_SYNC, ids=[row[2] for row in IN_SYNC])
def test_min_insync_replicas_is_the_smallest_number_in_sync(
    partitions: Mapping[int, PartitionReplicas], expected: int, why: str
) -> None:
    assert replicas_in_sync(partitions) == expected


ASKED: list[tuple[str, set[int]]] = [
    ("2026-03-01", set()),
    ("2026-03-01 without 3", {3}),
    ("third try, without 2,  14 ", {2, 14}),
    ("without a reason", set()),
    ("without 2 and 3", set()),
]


@pytest.mark.parametrize(("text", "leaving"), ASKED)
def test_the_request_to_spread_names_leaving_brokers(text: str, leaving: set[int]) -> None:
    assert Spread.parse(text) == Spread(frozenset(leaving))


@given(
    start=st.lists(st.permutations([1, 2, 3, 4]).map(tuple), min_size=1, max_size=15),
    before=st.integers(1, 4),
    factor=st.integers(1, 4),
    rebalance=st.booleans(),
    batch=st.integers(1, 4),
    fates=st.lists(st.sampled_from(["arrive", "wait", "killed"]), max_size=60),
)
def test_repeated_steps_end_with_the_requested_replicas(
    start: list[tuple[int, ...]], before: int, factor: int, rebalance: bool, batch: int, fates: list[str]
) -> None:
    """Moves end in any order, and any pass may be killed. In the end all replicas exist, and none moves."""
    partitions: dict[int, PartitionReplicas] = {number: at(*brokers[:before]) for number, brokers in enumerate(start)}
    four, started = Brokers(dict.fromkeys((1, 2, 3, 4))), False
    for fate in [*fates, *["arrive"] * 60]:
        if is_settled(partitions, ReplicaRequest(factor, rebalance), started_by_us=started):
            break
        step = next_step("t", partitions, ReplicaRequest(factor, rebalance), four, started_by_us=started, batch=batch)
        if fate == "killed":
            started = started or bool(step.start)
            continue
        assert sum(partition.moving for partition in partitions.values()) + len(step.start) <= max(
            batch, sum(partition.moving for partition in partitions.values())
        )
        if step.start:
            started = True
            partitions |= {n: moving(partitions[n].after, wanted) for n, wanted in step.start.items()}
        if step.finish:
            started = False
        if step.change is None:
            break
        if fate == "arrive":
            partitions = {
                n: at(*partition.after) if partition.moving else partition for n, partition in partitions.items()
            }
    assert not started
    assert {len(partition.replicas) for partition in partitions.values()} == {factor}
    assert not any(partition.moving for partition in partitions.values())
