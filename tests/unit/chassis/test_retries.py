"""Tests of retries: which calls are retried, how long they wait, and how a deadline ends them."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from guards import Broken, Refused, Time, UserError, both, make, raising, run
from tidemill_chassis.resilience.config import BreakerOpen, Deadline, DeadlineExceeded


@both
@pytest.mark.parametrize(
    ("fails", "policy", "sleeps", "raises"),
    [
        (1, {"retries": 3}, [1], None),
        (3, {"retries": 3}, [1, 2, 4], None),
        (4, {"retries": 3}, [1, 2, 4], Broken),
        (9, {"retries": 2, "initial_seconds": 0.5}, [0.5, 1], Broken),
        (9, {"retries": 4, "factor": 3.0, "max_seconds": 5.0}, [1, 3, 5, 5], Broken),
        (9, {"retries": 0}, [], Broken),
    ],
    ids=[
        "one failure",
        "as many failures as retries",
        "one failure too many",
        "other start",
        "factor and maximum",
        "no retries",
    ],
)
def test_retries_wait_longer_each_time_up_to_a_maximum(
    mode: str, fails: int, policy: dict[str, Any], sleeps: list[float], raises: type | None
) -> None:
    time = Time()
    guard = make(time, failures=100, **policy)
    attempts = iter([raising(Broken())] * fails)

    def fn() -> Any:
        return next(attempts, lambda: "done")()

    if raises:
        with pytest.raises(raises):
            run(guard, mode, fn)
    else:
        assert run(guard, mode, fn) == "done"
    assert time.sleeps == sleeps


@both
@pytest.mark.parametrize(
    ("error", "options"),
    [(UserError(), {}), (Refused(), {}), (Broken(), {"retry": False})],
    ids=["the error is the caller's", "the error is not retryable", "retries are switched off"],
)
def test_a_call_that_must_not_be_retried_runs_once(mode: str, error: Exception, options: dict[str, Any]) -> None:
    time = Time()
    guard = make(time, retries=3, failures=100)
    calls = []

    def fn() -> Any:
        calls.append(1)
        raise error

    with pytest.raises(type(error)) as raised:
        run(guard, mode, fn, **options)
    assert (raised.value, calls, time.sleeps) == (error, [1], [])


@both
def test_a_call_is_not_retried_after_its_failures_have_opened_the_breaker(mode: str) -> None:
    time = Time()
    guard = make(time, retries=9, failures=3)
    calls = []

    def fn() -> Any:
        calls.append(1)
        raise Broken

    with pytest.raises(Broken):
        run(guard, mode, fn)
    assert (len(calls), time.sleeps, guard.state) == (3, [1, 2], "open")


@both
def test_a_call_is_not_retried_after_failures_of_other_calls_have_opened_the_breaker(mode: str) -> None:
    time = Time()
    guard = make(time, retries=9, failures=3)
    calls = []

    def fn() -> Any:
        calls.append(1)
        for _ in range(2):
            guard.record_failure()  # Other calls fail meanwhile. This call is the third failure.
        raise Broken

    with pytest.raises(Broken):
        run(guard, mode, fn)
    assert (len(calls), time.sleeps) == (1, [])

    time = Time()
    guard = make(time, retries=9, failures=3)
    sleep = time.sleep
    time.sleep = lambda seconds: (sleep(seconds), guard.record_failure(), guard.record_failure())  # type: ignore[assignment]
    guard._sleep = time.sleep
    with pytest.raises(BreakerOpen):
        run(guard, mode, raising(Broken()))
    assert time.sleeps == [1]


@both
@given(
    budget=st.floats(0.01, 40),
    cost=st.floats(0, 6),
    retries=st.integers(0, 6),
    factor=st.floats(1, 4),
    jitter=st.sampled_from([0.0, 0.7]),
)
@settings(max_examples=60, deadline=None)
def test_no_retry_begins_after_the_deadline(
    mode: str, budget: float, cost: float, retries: int, factor: float, jitter: float
) -> None:
    time = Time()
    guard = make(time, retries=retries, failures=1000, factor=factor, jitter_seconds=jitter, timeout_seconds=1e6)
    deadline = Deadline.after(budget, time)
    begun = []

    def fn() -> Any:
        begun.append(time.now)
        time.now += cost
        raise Broken

    with pytest.raises((Broken, DeadlineExceeded)):
        run(guard, mode, fn, deadline=deadline)
    assert 1 <= len(begun) <= retries + 1
    assert all(at < deadline.at for at in begun)
    assert time.now <= deadline.at + cost


@both
def test_a_wait_that_would_exceed_the_deadline_is_skipped(mode: str) -> None:
    time = Time()
    guard = make(time, retries=3, failures=100)
    with pytest.raises(Broken):
        run(guard, mode, raising(Broken()), deadline=Deadline.after(6.9, time))
    assert time.sleeps == [1, 2]  # The next wait of 4 seconds would end at 7.


@both
def test_the_function_is_not_called_after_the_deadline(mode: str) -> None:
    time = Time()
    guard = make(time, failures=1)
    called = []
    with pytest.raises(DeadlineExceeded):
        run(guard, mode, lambda: called.append(1), deadline=Deadline.after(0, time))
    assert (called, guard.state) == ([], "closed")


def test_an_attempt_that_exceeds_the_timeout_is_a_failure() -> None:
    guard = make(Time(), timeout_seconds=0.01, failures=1)
    with pytest.raises(TimeoutError):
        asyncio.run(guard.acall(lambda: asyncio.Event().wait()))
    assert guard.state == "open"


def test_an_attempt_that_exceeds_the_deadline_is_no_failure() -> None:
    time = Time()
    guard = make(time, timeout_seconds=10, failures=1)
    with pytest.raises(DeadlineExceeded):
        asyncio.run(guard.acall(lambda: asyncio.Event().wait(), deadline=Deadline.after(0.01, time)))
    assert guard.state == "closed"


@both
def test_a_call_passes_arguments_on_and_keeps_the_traceback(mode: str) -> None:
    guard = make(Time(), retries=1)
    assert guard.call(lambda a, b: a + b, 1, 2) == 3
    with pytest.raises(UserError) as raised:
        run(guard, mode, raising(UserError("where")))
    assert raised.traceback[-1].name == "fn"
