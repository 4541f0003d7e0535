"""When a breaker opens, lets a trial through and closes again; each way of calling has to behave the same."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import REGISTRY

from guards import Broken, Time, UserError, both, break_open, make, raising, run
from tidemill_chassis.resilience.config import BreakerOpen
from tidemill_chassis.resilience.guard import Guard


@both
def test_opens_after_consecutive_failures_and_refuses_at_once(mode: str) -> None:
    time = Time()
    guard = make(time)
    called = []
    for _ in range(3):
        assert guard.state == "closed"
        with pytest.raises(Broken):
            run(guard, mode, raising(Broken()))
    assert guard.state == "open"
    with pytest.raises(BreakerOpen) as refused:
        run(guard, mode, lambda: called.append(1))
    assert (refused.value.name, refused.value.retry_after_seconds, called) == (guard.name, 60.0, [])
    time.now += 20
    assert guard.retry_after_seconds == 40.0


@both
def test_a_success_forgets_earlier_failures(mode: str) -> None:
    guard = make(Time())
    for _ in range(5):
        for _ in range(2):
            with pytest.raises(Broken):
                run(guard, mode, raising(Broken()))
        assert run(guard, mode, lambda: 7) == 7
    assert guard.state == "closed"


@both
def test_user_errors_never_open_it(mode: str) -> None:
    guard = make(Time())
    for _ in range(20):
        with pytest.raises(UserError):
            run(guard, mode, raising(UserError()))
    assert guard.state == "closed"


@both
def test_a_user_error_between_failures_proves_nothing(mode: str) -> None:
    guard = make(Time())
    for error in (Broken(), Broken(), UserError(), Broken()):
        with pytest.raises(type(error)):
            run(guard, mode, raising(error))
    assert guard.state == "open"


@both
@pytest.mark.parametrize(
    ("outcome", "after"),
    [
        (lambda: 1, "closed"),
        (raising(Broken()), "open"),
        (raising(UserError()), "half_open"),
    ],
    ids=["answered: closes", "failed: opens again", "the caller's mistake: another trial"],
)
def test_the_trials_outcome_decides_the_breakers_state(mode: str, outcome: Callable[[], Any], after: str) -> None:
    time = Time()
    guard = make(time)
    break_open(guard)
    time.now += 59.9
    with pytest.raises(BreakerOpen):
        run(guard, mode, lambda: 1)
    time.now += 0.1
    with contextlib.suppress(Broken, UserError):
        run(guard, mode, outcome)
    assert guard.state == after
    if after == "open":
        assert guard.retry_after_seconds == 60.0
    else:
        assert run(guard, mode, lambda: 5) == 5
        assert guard.state == "closed"


def test_half_open_lets_exactly_one_of_many_threads_through() -> None:
    time = Time()
    guard = make(time)
    break_open(guard)
    time.now += 60
    entered, release = threading.Event(), threading.Event()
    calls, refusals = [], []

    def slow() -> None:
        calls.append(1)
        entered.set()
        assert release.wait(10)

    trial = threading.Thread(target=guard.call, args=(slow,))
    trial.start()
    assert entered.wait(10)

    def other() -> None:
        try:
            guard.call(lambda: calls.append(2))
        except BreakerOpen as refused:
            refusals.append(refused)

    others = [threading.Thread(target=other) for _ in range(8)]
    for thread in others:
        thread.start()
    for thread in others:
        thread.join(10)
    assert (calls, len(refusals), guard.state) == ([1], 8, "half_open")
    assert all(refused.retry_after_seconds > 0 for refused in refusals)
    release.set()
    trial.join(10)
    assert guard.state == "closed"


def test_half_open_lets_exactly_one_of_many_tasks_through() -> None:
    time = Time()
    guard = make(time)
    break_open(guard)
    time.now += 60

    async def scenario() -> list[Any]:
        gate = asyncio.Event()

        async def slow() -> str:
            await gate.wait()
            return "trial"

        tasks = [asyncio.create_task(guard.acall(slow)) for _ in range(10)]
        await asyncio.sleep(0)
        gate.set()
        return list(await asyncio.gather(*tasks, return_exceptions=True))

    results = asyncio.run(scenario())
    assert results[0] == "trial"
    assert [type(result) for result in results[1:]] == [BreakerOpen] * 9
    assert guard.state == "closed"


def test_a_call_begun_before_the_breaker_opened_decides_nothing() -> None:
    """Slow answers from before the outage neither close a half-open breaker nor prolong the pause of an open one."""
    time = Time()
    guard = make(time)
    old_good, old_bad = guard.admit(), guard.admit()
    break_open(guard)
    time.now += 30
    guard.settle(old_bad, Broken())
    assert guard.retry_after_seconds == 30.0
    time.now += 30
    trial = guard.admit()
    guard.settle(old_good)
    assert guard.state == "half_open"
    guard.settle(old_bad, Broken())
    assert guard.state == "half_open"
    guard.settle(trial)
    assert guard.state == "closed"


def test_a_lost_trial_is_given_up_after_the_timeout() -> None:
    time = Time()
    guard = make(time)
    break_open(guard)
    time.now += 60
    lost = guard.admit()
    with pytest.raises(BreakerOpen):
        guard.admit()
    time.now += guard.timeout_seconds
    second = guard.admit()
    guard.settle(lost)
    assert guard.state == "half_open"
    guard.settle(second)
    assert guard.state == "closed"


@pytest.mark.parametrize(
    ("first", "longest", "pauses"),
    [
        (2.0, 60.0, [2, 5, 10, 20, 50, 60, 60]),
        (2.0, 30.0, [2, 5, 10, 20, 30, 30]),
        (0.5, 3.0, [0.5, 1.25, 2.5, 3, 3]),
        (9.0, 3.0, [3, 3]),
        (None, 60.0, [60, 60]),
    ],
)
def test_pauses_of_one_outage_grow_up_to_the_longest(first: float | None, longest: float, pauses: list[float]) -> None:
    time = Time()
    guard = make(time, failures=1, first_pause_seconds=first, open_seconds=longest)
    for _ in range(2):  # the next outage begins anew
        break_open(guard)
        for pause in pauses:
            assert guard.retry_after_seconds == pytest.approx(pause)
            time.now += pause
            with pytest.raises(Broken):
                guard.call(raising(Broken()))
        time.now += 60
        assert guard.call(lambda: 1) == 1
        assert guard.state == "closed"


def look(guard: Guard, mode: str, fn: Callable[[], Any]) -> Any:
    if mode == "sync":
        return guard.look(fn)

    async def afn() -> Any:
        return fn()

    return asyncio.run(guard.alook(afn))


@both
def test_a_look_closes_an_open_breaker_and_its_failure_prolongs_nothing(mode: str) -> None:
    time = Time()
    guard = make(time)
    break_open(guard)
    time.now += 20
    with pytest.raises(Broken):
        look(guard, mode, raising(Broken()))
    assert (guard.state, guard.retry_after_seconds) == ("open", 40.0)
    assert look(guard, mode, lambda: 7) == 7
    assert guard.state == "closed"
    for _ in range(guard.policy.failures):  # of a closed one a look is a call
        with pytest.raises(Broken):
            look(guard, mode, raising(Broken()))
    assert guard.state == "open"


def test_a_look_ends_soon_while_the_breaker_is_open() -> None:
    guard = make(Time(), timeout_seconds=0.05)
    break_open(guard)
    with pytest.raises(TimeoutError):
        asyncio.run(guard.alook(lambda: asyncio.sleep(60)))
    assert guard.state == "open"


def test_an_answer_to_what_was_asked_before_the_outage_ends_nothing() -> None:
    time = Time()
    guard = make(time)
    before = time.now
    time.now += 1
    break_open(guard)
    guard.recovered(before)
    assert guard.state == "open"
    time.now += 60
    trial = guard.admit()
    guard.recovered(time.now)
    assert guard.state == "closed"
    guard.settle(trial, Broken())
    assert guard.call(lambda: 1) == 1, "the trial under way is of an outage that is over"


def test_cancellation_is_no_failure_and_frees_the_trial() -> None:
    time = Time()
    guard = make(time, failures=1)
    break_open(guard)
    time.now += 60

    async def scenario() -> None:
        task = asyncio.create_task(guard.acall(asyncio.Event().wait))
        await asyncio.sleep(0)
        assert guard.state == "half_open"
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(scenario())
    assert guard.state == "half_open"
    assert guard.call(lambda: 3) == 3
    assert guard.state == "closed"


def test_a_hundred_threads_see_a_consistent_breaker() -> None:
    """Whatever the interleaving: after enough failures in a row it is open, and exactly one trial comes of it."""
    time = Time()
    guard = make(time, failures=50)
    barrier = threading.Barrier(20)

    def work() -> None:
        barrier.wait(10)
        for _ in range(50):
            try:
                guard.call(raising(Broken()), retry=False)
            except (Broken, BreakerOpen):
                continue

    threads = [threading.Thread(target=work) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert guard.state == "open"
    assert _sample("tidemill_breaker_transitions_total", name=guard.name, state="open") == 1


@given(st.lists(st.sampled_from(["good", "bad", "user", "wait 30", "wait 60"]), max_size=60))
@settings(max_examples=200, deadline=None)
def test_the_breaker_is_the_textbooks(steps: list[str]) -> None:
    time = Time()
    guard = make(time, failures=3)
    state, count, opened = "closed", 0, 0.0
    for step in steps:
        if step.startswith("wait"):
            time.now += float(step.split()[1])
            continue
        if state == "open" and time.now - opened < 60:
            with pytest.raises(BreakerOpen):
                guard.call(lambda: 1)
            continue
        if state == "open":
            state = "half_open"
        outcome = {"good": lambda: 1, "bad": raising(Broken()), "user": raising(UserError())}[step]
        with contextlib.suppress(Broken, UserError):
            guard.call(outcome)
        if step == "good":
            state, count = "closed", 0
        elif step == "bad":
            count += 1
            if state == "half_open" or count >= 3:
                state, count, opened = "open", 0, time.now
        assert guard.state == state


def _sample(metric: str, **labels: str) -> float | None:
    return REGISTRY.get_sample_value(metric, labels)


def test_states_and_retries_are_metrics() -> None:
    time = Time()
    guard = make(time, retries=1, failures=2)
    assert _sample("tidemill_breaker_state", name=guard.name) == 0
    with pytest.raises(Broken):
        guard.call(raising(Broken()))
    assert _sample("tidemill_breaker_state", name=guard.name) == 2
    assert _sample("tidemill_retries_total", name=guard.name) == 1
    time.now += 60
    assert guard.allow()
    assert _sample("tidemill_breaker_state", name=guard.name) == 1
    guard.success()
    assert _sample("tidemill_breaker_state", name=guard.name) == 0
    for state in ("open", "half_open", "closed"):
        assert _sample("tidemill_breaker_transitions_total", name=guard.name, state=state) == 1


def test_a_breaker_that_alternates_between_open_and_half_open_is_shown_as_open() -> None:
    time = Time()
    guard = make(time, failures=1, first_pause_seconds=1.0)
    break_open(guard)
    for number in range(4):
        time.now += 60
        ticket = guard.admit()
        assert guard.state == "half_open"
        assert _sample("tidemill_breaker_state", name=guard.name) == (2 if number else 1)
        guard.settle(ticket, Broken())
        assert _sample("tidemill_breaker_state", name=guard.name) == 2
    guard.recovered(time.now)
    assert _sample("tidemill_breaker_state", name=guard.name) == 0
