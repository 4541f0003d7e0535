"""Guards of a dependency for tests: with a clock of their own, called in both ways."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable
from typing import Any

import pytest

from tidemill_chassis.resilience.guard import Guard, Policy

NAMES = (f"test_guard_{n}" for n in itertools.count())


class Broken(Exception):
    """The dependency is to blame; repeating helps."""


class Refused(Exception):
    """The dependency is to blame; repeating does not help."""


class UserError(Exception):
    """The caller is to blame."""


class Time:
    """A clock that moves only when told, or when somebody sleeps by it."""

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
    def fn() -> Any:
        raise error

    return fn


def break_open(guard: Guard) -> None:
    for _ in range(guard.policy.failures):
        with pytest.raises(Broken):
            guard.call(raising(Broken()), retry=False)
    assert guard.state == "open"


def run(guard: Guard, mode: str, fn: Callable[[], Any], **options: Any) -> Any:
    """Make one call, synchronously or not: both ways have to behave the same."""
    if mode == "sync":
        return guard.call(fn, **options)

    async def afn() -> Any:
        return fn()

    return asyncio.run(guard.acall(afn, **options))


both = pytest.mark.parametrize("mode", ["sync", "async"])
