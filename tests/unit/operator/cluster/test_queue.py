"""Tests of the queue: one pass at a time for a resource, merged requests, and growing delays after failures."""

from __future__ import annotations

import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidemill_operator.cluster.queue import Delays, Result, Schedule, WorkQueue
from tidemill_operator.keys import Key

A, B = Key("shop", "a", "uid-a"), Key("shop", "b", "uid-b")
DELAYS = Delays(drift=90.0, waiting=10.0, initial_backoff=1.0, max_backoff=60.0)


def schedule() -> Schedule[Key]:
    return Schedule(DELAYS, chance=lambda: 0.5)  # the middle of the jitter, so delays have their nominal length


def test_requests_for_one_key_become_one_pass() -> None:
    queue_schedule = schedule()
    for moment in (5.0, 1.0, 3.0):
        queue_schedule.add(A, moment)
    assert queue_schedule.next_at() == 1.0
    assert (queue_schedule.take(1.0), queue_schedule.take(9.0)) == (A, None)


def test_the_key_that_is_due_longest_is_taken_first() -> None:
    queue_schedule = schedule()
    queue_schedule.add(A, 2.0)
    queue_schedule.add(B, 1.0)
    assert (queue_schedule.take(5.0), queue_schedule.take(5.0)) == (B, A)


def test_a_key_requested_during_its_pass_is_taken_after_it() -> None:
    queue_schedule = schedule()
    queue_schedule.add(A, 0.0)
    assert queue_schedule.take(0.0) == A
    queue_schedule.add(A, 1.0)
    assert queue_schedule.take(100.0) is None
    queue_schedule.finish(A, Result.SETTLED, 2.0)
    assert queue_schedule.take(2.0) == A


@pytest.mark.parametrize(
    ("result", "expected"),
    [(Result.SETTLED, 90.0), (Result.WAITING, 10.0), (Result.FAILED, 1.0), (Result.GONE, None)],
)
def test_the_next_pass_depends_on_the_result_of_the_last(result: Result, expected: float | None) -> None:
    queue_schedule = schedule()
    queue_schedule.add(A, 0.0)
    queue_schedule.take(0.0)
    queue_schedule.finish(A, result, 0.0)
    assert queue_schedule.next_at() == expected


def fail(queue_schedule: Schedule[Key], key: Key, now: float) -> float:
    """Take a key at a moment and end its pass as failed. Return when the key is due again."""
    assert queue_schedule.take(now) == key
    queue_schedule.finish(key, Result.FAILED, now)
    due = queue_schedule.next_at()
    assert due is not None
    return due


def test_delays_after_failures_grow_up_to_a_bound() -> None:
    queue_schedule, now, waited = schedule(), 0.0, []
    queue_schedule.add(A, now)
    for _ in range(9):
        due = fail(queue_schedule, A, now)
        waited.append(due - now)
        now = due
    assert waited == [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0, 60.0, 60.0]


def test_events_do_not_shorten_the_delay_after_a_failure_but_a_change_of_the_resource_does() -> None:
    queue_schedule = schedule()
    queue_schedule.add(A, 0.0)
    due = fail(queue_schedule, A, 0.0)
    queue_schedule.add(A, 0.1)
    assert queue_schedule.next_at() == due
    queue_schedule.add(A, 0.1, reset_backoff=True)
    assert queue_schedule.next_at() == 0.1


def test_an_event_during_a_pass_that_fails_does_not_shorten_the_delay() -> None:
    """Writes of the pass are events too. Otherwise a failing pass would repeat at once."""
    queue_schedule = schedule()
    queue_schedule.add(A, 0.0)
    assert queue_schedule.take(0.0) == A
    queue_schedule.add(A, 0.0)
    queue_schedule.finish(A, Result.FAILED, 0.0)
    assert queue_schedule.next_at() == 1.0


def test_a_success_resets_the_delay_after_failures() -> None:
    queue_schedule = schedule()
    queue_schedule.add(A, 0.0)
    due = fail(queue_schedule, A, 0.0)
    assert queue_schedule.take(due) == A
    queue_schedule.finish(A, Result.SETTLED, due)
    assert queue_schedule.take(due + 90.0) == A
    queue_schedule.finish(A, Result.FAILED, 0.0)
    assert queue_schedule.next_at() == 1.0


def test_a_recreated_resource_is_another_key() -> None:
    queue_schedule = schedule()
    queue_schedule.add(A, 0.0)
    queue_schedule.take(0.0)
    queue_schedule.add(Key("shop", "a", "another"), 0.0)
    assert queue_schedule.take(0.0) == Key("shop", "a", "another")


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
def test_a_key_has_one_pass_at_a_time_and_no_request_is_lost(steps: list[tuple[str, object, bool]]) -> None:
    """The order of requests, takes and ends is drawn. Every requested key is taken in the end."""
    queue_schedule, working, now, requested = schedule(), [], 0.0, set()
    for action, argument, reset in steps:
        now += 1.0
        if action == "add":
            assert isinstance(argument, Key)
            queue_schedule.add(argument, now, reset_backoff=reset)
            requested.add(argument)
        elif action == "take":
            key = queue_schedule.take(now)
            assert key not in working
            if key:
                working.append(key)
                requested.discard(key)
        elif working:
            assert isinstance(argument, Result)
            queue_schedule.finish(working.pop(0), argument, now)
    for key in working:
        queue_schedule.finish(key, Result.GONE, now)
    while (key := queue_schedule.take(now + 10_000.0)) is not None:
        requested.discard(key)
        queue_schedule.finish(key, Result.GONE, now)
    assert requested == set()


def test_workers_do_all_keys_and_none_twice_at_a_time() -> None:
    """Passes of different keys overlap, and passes of one key never."""
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


def test_a_pass_that_raises_is_failed_and_its_worker_continues() -> None:
    passes: list[Key] = []
    enough = threading.Event()

    def work(key: Key) -> Result:
        passes.append(key)
        if key == A and passes.count(A) == 1:
            raise RuntimeError("a defect")
        if {A, B} <= set(passes) and passes.count(A) > 1:
            enough.set()
        return Result.SETTLED

    queue = WorkQueue(work, Delays(initial_backoff=0.01), workers=1)
    queue.start()
    queue.add(A)
    queue.add(B)
    assert enough.wait(20.0), passes
    queue.stop()


def test_waiting_and_new_resources_are_taken_in_turn() -> None:
    """Of hundreds of new resources, the first become ready early. Resources that never become ready delay no other."""
    keys = [Key("shop", str(number), str(number)) for number in range(6)]
    queue_schedule, begun = schedule(), keys[:3]
    for key in begun:
        queue_schedule.add(key, 0.0)
        queue_schedule.take(0.0)
        queue_schedule.finish(key, Result.WAITING, 0.0)
    for key in keys[3:]:
        queue_schedule.add(key, 1.0)  # due before the waiting keys, which are due at 10
    taken_keys = [queue_schedule.take(20.0) for _ in keys]
    assert [key in begun for key in taken_keys] == [True, False, True, False, True, False]
