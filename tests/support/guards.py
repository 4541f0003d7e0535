"""Guards of a dependency with a clock that the test moves, and calls of them in sync and async code."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable
from typing import Any

import pytest

from tidemill_chassis.resilience.guard import Guard, Policy

NAMES = (f"test_guard_{n}" for n in itertools.count())


class Broken(Exception):
    """A failure of the dependency that may be retried."""


class Refused(Exception):
    """A failure of the dependency that must not be retried."""


class UserError(Exception):
    """An error of the caller, which is no failure of the dependency."""


class Time:
    """A clock that advances only when the test sets it, or when code sleeps with it."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.sleeps: list[float] = []

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.sleeps.append(seconds)
        self.now += seconds

    async def asleep(self, seconds: float) -> None:
        self.sleep(seconds)


def make(time: Time, **changes: Any) -> Guard:
    """Return a guard with three failures before it opens and no retries; `changes` are members of its policy."""
    policy: dict[str, Any] = {
        "failures": 3,
        "open_seconds": 60.0,
        "timeout_seconds": 10.0,
        "retries": 0,
        "initial_seconds": 1.0,
        "factor": 2.0,
        "max_seconds": 30.0,
        "jitter_seconds": 0.0,
        "is_failure": lambda error: isinstance(error, (Broken, Refused, TimeoutError)),
        "is_retryable": lambda error: isinstance(error, Broken),
    }
    return Guard(next(NAMES), Policy(**(policy | changes)), clock=time, sleep=time.sleep, async_sleep=time.asleep)


def raising(error: BaseException) -> Callable[[], Any]:
    """Return a function that raises an error."""

    def fn() -> Any:
        raise error

    return fn


def break_open(guard: Guard) -> None:
    """Let calls fail until the guard is open."""
    for _ in range(guard.policy.failures):
        with pytest.raises(Broken):
            guard.call(raising(Broken()), retry=False)
    assert guard.state == "open"


def run(guard: Guard, mode: str, fn: Callable[[], Any], **options: Any) -> Any:
    """Call a function through the guard, in `sync` or `async` mode. Both modes must behave alike."""
    if mode == "sync":
        return guard.call(fn, **options)

    async def afn() -> Any:
        return fn()

    return asyncio.run(guard.acall(afn, **options))


both = pytest.mark.parametrize("mode", ["sync", "async"])
