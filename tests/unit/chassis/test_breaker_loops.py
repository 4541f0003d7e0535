"""Tests of loops that ask a breaker for permission and report each outcome themselves."""

from __future__ import annotations

import asyncio
import threading

from guards import Broken, Time, UserError, make


def test_a_loop_may_ask_again_until_it_has_told() -> None:
    time = Time()
    guard = make(time)
    for _ in range(3):
        assert guard.allow()
        guard.failure()
    assert not guard.allow()
    time.now += 60
    assert [guard.allow() for _ in range(3)] == [True] * 3
    others: list[bool] = []
    thread = threading.Thread(target=lambda: (others.append(guard.allow()), guard.success()))
    thread.start()
    thread.join(10)
    assert (others, guard.state) == ([False], "half_open")
    guard.success()
    assert guard.state == "closed"


def test_a_loops_error_is_judged_when_given() -> None:
    guard = make(Time(), failures=1)
    assert guard.allow()
    guard.failure(UserError())
    assert guard.state == "closed"
    guard.failure(Broken())
    assert guard.state == "open"


def test_two_tasks_of_one_thread_are_two_loops() -> None:
    time = Time()
    guard = make(time, failures=1)
    guard.failure()
    time.now += 60

    async def ask() -> bool:
        return guard.allow()

    async def scenario() -> list[bool]:
        return list(await asyncio.gather(ask(), ask()))

    assert asyncio.run(scenario()) == [True, False]
