"""Tests of breakers: when they open, let a trial through and close, for synchronous and asynchronous calls."""

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
def test_a_breaker_opens_after_consecutive_failures_and_then_refuses_calls(mode: str) -> None:
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
def test_a_success_resets_the_count_of_failures(mode: str) -> None:
    guard = make(Time())
    for _ in range(5):
        for _ in range(2):
            with pytest.raises(Broken):
                run(guard, mode, raising(Broken()))
        assert run(guard, mode, lambda: 7) == 7
    assert guard.state == "closed"


@both
def test_errors_of_the_caller_never_open_the_breaker(mode: str) -> None:
    guard = make(Time())
    for _ in range(20):
        with pytest.raises(UserError):
            run(guard, mode, raising(UserError()))
    assert guard.state == "closed"


@both
def test_an_error_of_the_caller_does_not_reset_the_count_of_failures(mode: str) -> None:
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


def test_a_half_open_breaker_lets_exactly_one_of_many_threads_through() -> None:
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


def test_a_half_open_breaker_lets_exactly_one_of_many_tasks_through() -> None:
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


def test_a_call_that_began_before_the_breaker_opened_does_not_change_its_state() -> None:
    """A late success does not close a half-open breaker, and a late failure does not prolong the pause."""
    time = Time()
    guard = make(time)
    old_good, old_bad = guard.admit(), guard.admit()
    break_open(guard)
    time.now += 30
    guard.record_result(old_bad, Broken())
    assert guard.retry_after_seconds == 30.0
    time.now += 30
    trial = guard.admit()
    guard.record_result(old_good)
    assert guard.state == "half_open"
    guard.record_result(old_bad, Broken())
    assert guard.state == "half_open"
    guard.record_result(trial)
    assert guard.state == "closed"


def test_another_trial_is_allowed_if_the_first_has_no_outcome_within_the_timeout() -> None:
    time = Time()
    guard = make(time)
    break_open(guard)
    time.now += 60
    lost = guard.admit()
    with pytest.raises(BreakerOpen):
        guard.admit()
    time.now += guard.timeout_seconds
    second = guard.admit()
    guard.record_result(lost)
    assert guard.state == "half_open"
    guard.record_result(second)
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
def test_pauses_grow_during_an_outage_up_to_the_maximum(
    first: float | None, longest: float, pauses: list[float]
) -> None:
    time = Time()
    guard = make(time, failures=1, first_pause_seconds=first, open_seconds=longest)
    for _ in range(2):  # The second outage starts with the first pause again.
        break_open(guard)
        for pause in pauses:
            assert guard.retry_after_seconds == pytest.approx(pause)
            time.now += pause
            with pytest.raises(Broken):
                guard.call(raising(Broken()))
        time.now += 60
        assert guard.call(lambda: 1) == 1
        assert guard.state == "closed"


def probe(guard: Guard, mode: str, fn: Callable[[], Any]) -> Any:
    if mode == "sync":
        return guard.probe(fn)

    async def afn() -> Any:
        return fn()

    return asyncio.run(guard.aprobe(afn))


@both
def test_a_successful_probe_closes_an_open_breaker_and_a_failed_probe_prolongs_no_pause(mode: str) -> None:
    time = Time()
    guard = make(time)
    break_open(guard)
    time.now += 20
    with pytest.raises(Broken):
        probe(guard, mode, raising(Broken()))
    assert (guard.state, guard.retry_after_seconds) == ("open", 40.0)
    assert probe(guard, mode, lambda: 7) == 7
    assert guard.state == "closed"
    for _ in range(guard.policy.failures):  # While the breaker is closed, a probe counts like a call.
        with pytest.raises(Broken):
            probe(guard, mode, raising(Broken()))
    assert guard.state == "open"


def test_a_probe_of_an_open_breakers_dependency_times_out() -> None:
    guard = make(Time(), timeout_seconds=0.05)
    break_open(guard)
    with pytest.raises(TimeoutError):
        asyncio.run(guard.aprobe(lambda: asyncio.sleep(60)))
    assert guard.state == "open"


def test_an_answer_to_a_request_from_before_the_outage_does_not_close_the_breaker() -> None:
    time = Time()
    guard = make(time)
    before = time.now
    time.now += 1
    break_open(guard)
    guard.record_recovery(before)
    assert guard.state == "open"
    time.now += 60
    trial = guard.admit()
    guard.record_recovery(time.now)
    assert guard.state == "closed"
    guard.record_result(trial, Broken())
    assert guard.call(lambda: 1) == 1, "the failed trial belongs to the outage that has ended"


def test_a_cancelled_trial_is_no_failure_and_allows_another_trial() -> None:
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


def test_failures_in_many_threads_open_the_breaker_exactly_once() -> None:
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
def test_random_outcomes_lead_to_the_same_states_as_a_model_of_a_breaker(steps: list[str]) -> None:
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


def test_states_transitions_and_retries_are_exported_as_metrics() -> None:
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
    guard.record_success()
    assert _sample("tidemill_breaker_state", name=guard.name) == 0
    for state in ("open", "half_open", "closed"):
        assert _sample("tidemill_breaker_transitions_total", name=guard.name, state=state) == 1


def test_the_metric_stays_open_while_trials_of_an_outage_fail() -> None:
    time = Time()
    guard = make(time, failures=1, first_pause_seconds=1.0)
    break_open(guard)
    for number in range(4):
        time.now += 60
        ticket = guard.admit()
        assert guard.state == "half_open"
        assert _sample("tidemill_breaker_state", name=guard.name) == (2 if number else 1)
        guard.record_result(ticket, Broken())
        assert _sample("tidemill_breaker_state", name=guard.name) == 2
    guard.record_recovery(time.now)
    assert _sample("tidemill_breaker_state", name=guard.name) == 0
