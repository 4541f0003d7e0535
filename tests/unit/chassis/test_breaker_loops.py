"""Tests of loops that ask a breaker for permission and report each outcome themselves."""

from __future__ import annotations

import asyncio
import threading

from guards import Broken, Time, UserError, make


def test_the_loop_that_has_the_trial_is_allowed_until_it_reports_an_outcome() -> None:
    time = Time()
    guard = make(time)
    for _ in range(3):
        assert guard.allow()
        guard.record_failure()
    assert not guard.allow()
    time.now += 60
    assert [guard.allow() for _ in range(3)] == [True] * 3
    others: list[bool] = []
    thread = threading.Thread(target=lambda: (others.append(guard.allow()), guard.record_success()))
    thread.start()
    thread.join(10)
    assert (others, guard.state) == ([False], "half_open")
    guard.record_success()
    assert guard.state == "closed"


def test_an_error_of_the_caller_that_a_loop_reports_is_no_failure() -> None:
    guard = make(Time(), failures=1)
    assert guard.allow()
    guard.record_failure(UserError())
    assert guard.state == "closed"
    guard.record_failure(Broken())
    assert guard.state == "open"


def test_only_one_of_two_tasks_in_a_thread_gets_the_trial() -> None:
    time = Time()
    guard = make(time, failures=1)
    guard.record_failure()
    time.now += 60

    async def ask() -> bool:
        return guard.allow()

    async def scenario() -> list[bool]:
        return list(await asyncio.gather(ask(), ask()))

    assert asyncio.run(scenario()) == [True, False]
