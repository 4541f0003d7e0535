"""The next step of a change of replicas: batches, calling back, waiting, tidying up; each told in words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidemill_operator.plan.kafka.placement import Brokers
from tidemill_operator.plan.kafka.replication import (
    FOLLOWERS,
    LEADERS,
    Held,
    ReplicaChange,
    Spread,
    Step,
    Wish,
    is_calm,
    next_step,
    replicas_in_sync,
)

THREE = Brokers({1: None, 2: None, 3: None})


def at(*replicas: int, in_sync: tuple[int, ...] | None = None) -> Held:
    return Held(replicas, frozenset(replicas if in_sync is None else in_sync))


def moving(before: tuple[int, ...], after: tuple[int, ...]) -> Held:
    coming, going = frozenset(after) - set(before), frozenset(before) - set(after)
    return Held((*after, *sorted(going)), frozenset(before), coming, going)


def told(step: Step) -> str:
    return step.change.message if step.change else ""


def test_what_is_as_it_should_be_is_left_alone() -> None:
    """Not even the question what moves is asked; unless the spec asks for a number, any is right."""
    partitions = {0: at(1, 2), 1: at(2, 3)}
    assert is_calm(partitions, Wish(2), ours=False)
    assert is_calm(partitions, Wish(None), ours=False)
    assert not is_calm(partitions, Wish(3), ours=False)
    assert not is_calm(partitions, Wish(2), ours=True)
    assert not is_calm(partitions, Wish(2, rebalance=True), ours=False)
    assert next_step("t", partitions, Wish(None), THREE, ours=False) == Step()


def test_more_replicas_are_sent_in_batches() -> None:
    """Those to move are slowed before anything moves; the text says how far it is."""
    partitions = {number: at(1) for number in range(5)}
    step = next_step("t", partitions, Wish(2), THREE, ours=False, batch=2)
    assert list(step.start) == [0, 1]
    assert step.throttled[LEADERS] == "0:1,1:1,2:1,3:1,4:1"
    assert [entry.split(":")[0] for entry in step.throttled[FOLLOWERS].split(",")] == ["0", "1", "2", "3", "4"]
    assert step.change == ReplicaChange(
        2, "ongoing", "to 2 replicas of each partition: 0 of 5 partitions done, 2 under way"
    )
    assert not step.finish


def test_the_next_batch_starts_as_the_first_arrives() -> None:
    partitions = {0: at(1, 2), 1: moving((1,), (1, 3)), 2: at(1), 3: at(1)}
    step = next_step("t", partitions, Wish(2), THREE, ours=True, batch=2)
    assert list(step.start) == [2]
    assert told(step) == "to 2 replicas of each partition: 1 of 4 partitions done, 2 under way"


def test_nothing_is_started_while_the_batch_is_full() -> None:
    partitions = {0: moving((1,), (1, 2)), 1: at(1)}
    step = next_step("t", partitions, Wish(2), THREE, ours=True, batch=1)
    assert (step.start, step.finish) == ({}, False)


def test_all_have_arrived() -> None:
    """Preferred leaders are asked to lead, and then it ends."""
    assert next_step("t", {0: at(2, 1), 1: at(1, 2)}, Wish(2), THREE, ours=True) == Step(elect=(0, 1), finish=True)


def test_a_spec_that_goes_back_calls_back_what_moves() -> None:
    """And then takes away what had arrived already."""
    partitions = {0: at(1, 2, 3), 1: moving((1,), (1, 2, 3))}
    step = next_step("t", partitions, Wish(1), THREE, ours=True)
    assert (step.cancel, step.start) == ((1,), {})
    assert told(step) == "to 1 replica of each partition: reassignment of 1 partition cancelled"
    step = next_step("t", {0: at(1, 2, 3), 1: at(1)}, Wish(1), THREE, ours=True)
    assert [len(held) for held in step.start.values()] == [1]


def test_a_field_that_is_taken_out_goes_back_too() -> None:
    """Without a number the fewest replicas of any partition count, if the change was ours."""
    partitions = {0: at(1, 2, 3), 1: at(1)}
    step = next_step("t", partitions, Wish(None), THREE, ours=True)
    assert list(step.start) == [0]
    assert next_step("t", partitions, Wish(None), THREE, ours=False) == Step()


def test_a_broker_dies_on_the_way_and_another_can_do() -> None:
    """What goes to it is called back, and goes elsewhere at the next pass."""
    four = Brokers({1: None, 2: None, 4: None})
    assert next_step("t", {0: moving((1,), (1, 3))}, Wish(2), four, ours=True).cancel == (0,)
    step = next_step("t", {0: at(1)}, Wish(2), four, ours=True)
    assert set(step.start[0]) < {1, 2, 4}


def test_a_broker_dies_on_the_way_and_no_other_can_do() -> None:
    """It is waited for, and named."""
    two = Brokers({1: None, 2: None})
    step = next_step("t", {0: moving((1,), (1, 2, 3))}, Wish(3), two, ours=True)
    assert (step.cancel, step.start, step.finish) == ((), {}, False)
    assert told(step).endswith("0 of 1 partition done, 1 under way; broker 3 does not answer")


def test_too_few_brokers() -> None:
    """Told with what there is; nothing moves."""
    step = next_step("t", {0: at(1)}, Wish(3), Brokers({1: None, 2: None}), ours=False)
    assert step == Step(
        change=ReplicaChange(3, "pending", "to 3 replicas of each partition: needs 3 brokers, but only 2 can hold them")
    )


def test_what_others_move_is_theirs() -> None:
    """Somebody's tool moves replicas, and as many as are asked for will be there: no step, and nothing to tell."""
    assert next_step("t", {0: moving((1, 2), (1, 3))}, Wish(2), THREE, ours=False) == Step()


def test_a_rebalance_uses_a_new_broker_and_ends() -> None:
    partitions = {number: at(1, 2) for number in range(6)}
    step = next_step("t", partitions, Wish(2, rebalance=True), THREE, ours=False)
    assert any(3 in held for held in step.start.values())
    assert told(step).startswith("spreading 2 replicas of each partition again: ")
    arrived = {**partitions, **{number: at(*held) for number, held in step.start.items()}}
    assert next_step("t", arrived, Wish(2, rebalance=True), THREE, ours=True).finish


def test_leaving_brokers_are_emptied() -> None:
    step = next_step("t", {0: at(1, 3)}, Wish(2, rebalance=True), replace(THREE, leaving=frozenset({3})), ours=False)
    assert set(step.start[0]) == {1, 2}
    few = replace(THREE, leaving=frozenset({2, 3}))
    assert told(next_step("t", {0: at(1, 3)}, Wish(2, rebalance=True), few, ours=False)).endswith(
        "needs 2 brokers, but only 1 can hold them"
    )


IN_SYNC: list[tuple[Mapping[int, Held], int, str]] = [
    ({0: at(1, 2, 3), 1: at(1, 2, 3, in_sync=(1, 2))}, 2, "the partition with the fewest"),
    ({0: at(1, 2, 3), 1: moving((1,), (1, 2, 3))}, 1, "what is on its way does not count"),
    ({0: moving((1, 2), (3, 1))}, 1, "what goes counts no more"),
    ({}, 0, "nothing is nothing"),
]


@pytest.mark.parametrize(("partitions", "expected", "why"), IN_SYNC, ids=[row[2] for row in IN_SYNC])
def test_in_sync_replicas_that_can_be_demanded(partitions: Mapping[int, Held], expected: int, why: str) -> None:
    assert replicas_in_sync(partitions) == expected


ASKED: list[tuple[str, set[int]]] = [
    ("2026-03-01", set()),
    ("2026-03-01 without 3", {3}),
    ("third try, without 2,  14 ", {2, 14}),
    ("without a reason", set()),
    ("without 2 and 3", set()),
]


@pytest.mark.parametrize(("text", "leaving"), ASKED)
def test_a_request_to_spread_anew(text: str, leaving: set[int]) -> None:
    assert Spread.asked(text) == Spread(frozenset(leaving))


@given(
    start=st.lists(st.permutations([1, 2, 3, 4]).map(tuple), min_size=1, max_size=15),
    before=st.integers(1, 4),
    factor=st.integers(1, 4),
    rebalance=st.booleans(),
    batch=st.integers(1, 4),
    fates=st.lists(st.sampled_from(["arrive", "wait", "killed"]), max_size=60),
)
def test_step_after_step_comes_to_an_end(
    start: list[tuple[int, ...]], before: int, factor: int, rebalance: bool, batch: int, fates: list[str]
) -> None:
    """Whatever arrives when, and whichever pass is killed before it acts: all have their replicas, and none moves."""
    partitions: dict[int, Held] = {number: at(*brokers[:before]) for number, brokers in enumerate(start)}
    four, ours = Brokers(dict.fromkeys((1, 2, 3, 4))), False
    for fate in [*fates, *["arrive"] * 60]:
        if is_calm(partitions, Wish(factor, rebalance), ours=ours):
            break
        step = next_step("t", partitions, Wish(factor, rebalance), four, ours=ours, batch=batch)
        if fate == "killed":
            ours = ours or bool(step.start)
            continue
        assert sum(held.moving for held in partitions.values()) + len(step.start) <= max(
            batch, sum(held.moving for held in partitions.values())
        )
        if step.start:
            ours = True
            partitions |= {n: moving(partitions[n].after, wanted) for n, wanted in step.start.items()}
        if step.finish:
            ours = False
        if step.change is None:
            break
        if fate == "arrive":
            partitions = {n: at(*held.after) if held.moving else held for n, held in partitions.items()}
    assert not ours
    assert {len(held.replicas) for held in partitions.values()} == {factor}
    assert not any(held.moving for held in partitions.values())
