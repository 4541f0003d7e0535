"""The queue: one pass at a time for each resource, wishes merged, failures with a growing delay."""

from __future__ import annotations

import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidemill_operator.cluster.queue import Delays, Result, Schedule, WorkQueue
from tidemill_operator.keys import Key

A, B = Key("shop", "a", "uid-a"), Key("shop", "b", "uid-b")
DELAYS = Delays(drift=90.0, waiting=10.0, first=1.0, most=60.0)


def schedule() -> Schedule[Key]:
    return Schedule(DELAYS, chance=lambda: 0.5)  # in the middle: delays as they are named


def test_wishes_for_one_key_become_one_look() -> None:
    found = schedule()
    for moment in (5.0, 1.0, 3.0):
        found.add(A, moment)
    assert found.next_at() == 1.0
    assert (found.take(1.0), found.take(9.0)) == (A, None)


def test_the_longest_due_comes_first() -> None:
    found = schedule()
    found.add(A, 2.0)
    found.add(B, 1.0)
    assert (found.take(5.0), found.take(5.0)) == (B, A)


def test_a_key_in_work_is_not_taken_again_but_looked_at_afterwards() -> None:
    found = schedule()
    found.add(A, 0.0)
    assert found.take(0.0) == A
    found.add(A, 1.0)
    assert found.take(100.0) is None
    found.done(A, Result.SETTLED, 2.0)
    assert found.take(2.0) == A


@pytest.mark.parametrize(
    ("result", "expected"),
    [(Result.SETTLED, 90.0), (Result.WAITING, 10.0), (Result.FAILED, 1.0), (Result.GONE, None)],
)
def test_the_next_look_depends_on_how_a_pass_ended(result: Result, expected: float | None) -> None:
    found = schedule()
    found.add(A, 0.0)
    found.take(0.0)
    found.done(A, result, 0.0)
    assert found.next_at() == expected


def fail(found: Schedule[Key], key: Key, now: float) -> float:
    """Let a key fail at a moment; when it is due again."""
    assert found.take(now) == key
    found.done(key, Result.FAILED, now)
    due = found.next_at()
    assert due is not None
    return due


def test_failures_wait_longer_each_time_up_to_a_bound() -> None:
    found, now, waited = schedule(), 0.0, []
    found.add(A, now)
    for _ in range(9):
        due = fail(found, A, now)
        waited.append(due - now)
        now = due
    assert waited == [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0, 60.0, 60.0]


def test_events_do_not_shorten_the_delay_after_a_failure_but_a_change_of_the_resource_does() -> None:
    found = schedule()
    found.add(A, 0.0)
    due = fail(found, A, 0.0)
    found.add(A, 0.1)
    assert found.next_at() == due
    found.add(A, 0.1, fresh=True)
    assert found.next_at() == 0.1


def test_an_event_during_a_pass_that_fails_does_not_shorten_the_delay() -> None:
    """The pass's own writes are events: they would make it fail again and again at once."""
    found = schedule()
    found.add(A, 0.0)
    assert found.take(0.0) == A
    found.add(A, 0.0)
    found.done(A, Result.FAILED, 0.0)
    assert found.next_at() == 1.0


def test_after_a_success_failures_are_counted_anew() -> None:
    found = schedule()
    found.add(A, 0.0)
    due = fail(found, A, 0.0)
    assert found.take(due) == A
    found.done(A, Result.SETTLED, due)
    assert found.take(due + 90.0) == A
    found.done(A, Result.FAILED, 0.0)
    assert found.next_at() == 1.0


def test_one_made_anew_under_the_same_name_is_another_key() -> None:
    found = schedule()
    found.add(A, 0.0)
    found.take(0.0)
    found.add(Key("shop", "a", "another"), 0.0)
    assert found.take(0.0) == Key("shop", "a", "another")


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("add"), st.sampled_from([A, B]), st.booleans()),
            st.tuples(st.just("take"), st.just(A), st.booleans()),
            st.tuples(st.just("done"), st.sampled_from(list(Result)), st.booleans()),
        ),
        max_size=60,
    )
)
def test_a_key_is_never_in_work_twice_and_no_wish_is_lost(steps: list[tuple[str, object, bool]]) -> None:
    """Whatever the order of wishes, takes and ends: single-flight, and what was wished for is looked at in the end."""
    found, working, now, wished = schedule(), [], 0.0, set()
    for what, argument, fresh in steps:
        now += 1.0
        if what == "add":
            assert isinstance(argument, Key)
            found.add(argument, now, fresh=fresh)
            wished.add(argument)
        elif what == "take":
            key = found.take(now)
            assert key not in working
            if key:
                working.append(key)
                wished.discard(key)
        elif working:
            assert isinstance(argument, Result)
            found.done(working.pop(0), argument, now)
    for key in working:
        found.done(key, Result.GONE, now)
    while (key := found.take(now + 10_000.0)) is not None:
        wished.discard(key)
        found.done(key, Result.GONE, now)
    assert wished == set()


def test_workers_do_all_and_none_twice_at_a_time() -> None:
    """With threads: passes of different keys overlap, those of one key never."""
    active: set[Key] = set()
    done: dict[Key, int] = {}
    most, guard = 0, threading.Lock()
    finished = threading.Event()

    def work(key: Key) -> Result:
        nonlocal most
        with guard:
            assert key not in active
            active.add(key)
            most = max(most, len(active))
        time.sleep(0.01)
        with guard:
            active.discard(key)
            done[key] = done.get(key, 0) + 1
            if len(done) == 20 and not (finished.is_set()):
                finished.set()
        return Result.SETTLED

    queue = WorkQueue(work, DELAYS, workers=4)
    queue.start()
    keys = [Key("shop", str(number), str(number)) for number in range(20)]
    for key in keys * 3:
        queue.add(key)
    assert finished.wait(20.0)
    queue.stop()
    assert set(done) == set(keys)
    assert most > 1


def test_a_pass_that_raises_counts_as_failed_and_the_worker_lives_on() -> None:
    seen: list[Key] = []
    enough = threading.Event()

    def work(key: Key) -> Result:
        seen.append(key)
        if key == A and seen.count(A) == 1:
            raise RuntimeError("a defect")
        if {A, B} <= set(seen) and seen.count(A) > 1:
            enough.set()
        return Result.SETTLED

    queue = WorkQueue(work, Delays(first=0.01), workers=1)
    queue.start()
    queue.add(A)
    queue.add(B)
    assert enough.wait(20.0), seen
    queue.stop()


def test_what_is_on_its_way_and_what_is_new_are_taken_in_turn() -> None:
    """Of hundreds made at once the first are ready early, and those that never come hold up nobody."""
    keys = [Key("shop", str(number), str(number)) for number in range(6)]
    found, begun = schedule(), keys[:3]
    for key in begun:
        found.add(key, 0.0)
        found.take(0.0)
        found.done(key, Result.WAITING, 0.0)
    for key in keys[3:]:
        found.add(key, 1.0)  # due before the others, which are at 10
    taken = [found.take(20.0) for _ in keys]
    assert [key in begun for key in taken] == [True, False, True, False, True, False]
