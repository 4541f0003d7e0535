"""Functions that wait for a condition with a deadline, instead of for a fixed time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

# A query of Postgres takes ten milliseconds of CPU, so a long wait checks only four times a second.
_LONGEST_PAUSE_SECONDS, _GROWTH = 0.25, 1.1


class NotInTime(AssertionError):
    """A condition was not true before its deadline."""


def eventually(
    check: Callable[[], T | None],
    *,
    what: str | Callable[[], str],
    seconds: float = 90.0,
    pause_seconds: float = 0.05,
    retry_on: tuple[type[Exception], ...] = (),
) -> T:
    """Return the first true value of `check`.

    Args:
        check: called until its value is true.
        what: the condition in words. A function is called only after the deadline.
        seconds: the time until the deadline.
        pause_seconds: the pause between the first two calls. Pauses grow to a quarter of a second.
        retry_on: exceptions that mean "not yet", for example of a server that does not answer yet.

    Raises:
        NotInTime: if the deadline passes. The message has the last value or exception.
    """
    deadline, pause = time.monotonic() + seconds, pause_seconds
    while True:
        last: T | Exception | None
        try:
            last = value = check()
        except retry_on as error:
            last = error
        else:
            if value:
                return value
        if time.monotonic() > deadline:
            raise _late(what, seconds, last)
        time.sleep(pause)
        pause = min(pause * _GROWTH, max(pause_seconds, _LONGEST_PAUSE_SECONDS))


async def eventually_async(check: Callable[[], object], *, what: str, seconds: float = 30.0) -> None:
    """Let the event loop run until `check` is true.

    Raises:
        NotInTime: if the deadline passes.
    """
    deadline = time.monotonic() + seconds
    while not (value := check()):
        if time.monotonic() > deadline:
            raise _late(what, seconds, value)
        await asyncio.sleep(0.01)


def _late(what: str | Callable[[], str], seconds: float, last: object) -> NotInTime:
    return NotInTime(f"{what if isinstance(what, str) else what()}: not within {seconds:g} s; last seen: {last!r}")
