"""Wait in a test: for a condition, with a deadline, instead of for a time to pass."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

# To ask Postgres once takes ten milliseconds of CPU: whoever waits for long asks four times a second, not twenty times.
_LONGEST_PAUSE_SECONDS, _GROWTH = 0.25, 1.1


class NotInTime(AssertionError):
    """A condition did not come true before its deadline."""


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
        check: is called until its value is true.
        what: describes the condition; a function is called only if the deadline has passed.
        seconds: until the deadline.
        pause_seconds: between the first two calls; it grows to a quarter of a second.
        retry_on: exceptions that mean "not yet": a server that is still away.

    Raises:
        NotInTime: the deadline has passed; the message has the last value or exception.
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
        NotInTime: the deadline has passed.
    """
    deadline = time.monotonic() + seconds
    while not (value := check()):
        if time.monotonic() > deadline:
            raise _late(what, seconds, value)
        await asyncio.sleep(0.01)


def _late(what: str | Callable[[], str], seconds: float, last: object) -> NotInTime:
    return NotInTime(f"{what if isinstance(what, str) else what()}: not within {seconds:g} s; last seen: {last!r}")
