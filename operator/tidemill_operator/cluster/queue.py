"""The queue of passes, with one pass at a time for each key."""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from enum import Enum
from typing import Generic, TypeVar

log = logging.getLogger(__name__)
K = TypeVar("K", bound=Hashable)


class Result(Enum):
    """The result of a pass."""

    SETTLED = "settled"
    """No change is under way. Either everything is as specified, or a user has to act."""
    WAITING = "waiting"
    """A change is under way, such as the start of pods."""
    FAILED = "failed"
    """A server does not answer, or refuses a request."""
    GONE = "gone"
    """The resource no longer exists."""


@dataclass(frozen=True)
class Delays:
    """Seconds until the next pass.

    Attributes:
        drift: the delay if no change is under way, varied by up to 10 %.
        waiting: the delay while a change is under way.
        initial_backoff: the delay after the first failure, doubled by each further failure.
        max_backoff: the longest delay after failures.
    """

    drift: float = 90.0
    waiting: float = 10.0
    initial_backoff: float = 1.0
    max_backoff: float = 60.0

    def after(self, result: Result, failures: int, *, chance: float) -> float:
        """Return the delay after a pass."""
        match result:
            case Result.FAILED:
                return min(self.max_backoff, self.initial_backoff * 2.0 ** min(failures - 1, 16)) * (0.9 + 0.2 * chance)
            case Result.WAITING:
                return self.waiting
            case _:
                return self.drift * (0.9 + 0.2 * chance)


class Schedule(Generic[K]):
    """Stores the time of the next pass for each key."""

    def __init__(self, delays: Delays, *, chance: Callable[[], float] = random.random) -> None:
        self._delays, self._chance = delays, chance
        self._due: dict[K, float] = {}
        self._running: set[K] = set()
        self._rerun_at: dict[K, float] = {}
        self._failures: dict[K, int] = {}
        self._unfinished: set[K] = set()
        self._settled_next = False

    def __len__(self) -> int:
        return len(self._due.keys() | self._running)

    def add(self, key: K, at: float, *, reset_backoff: bool = False) -> None:
        """Request a pass."""
        if reset_backoff:
            self._failures.pop(key, None)
        if key in self._running:
            self._rerun_at[key] = min(at, self._rerun_at.get(key, at))
        elif key not in self._failures or key not in self._due:
            self._due[key] = min(at, self._due.get(key, at))

    def take(self, now: float) -> K | None:
        """Return the key that has been due longest, and mark the key as running.

        A key with a running pass is not due.
        """
        ready = [(key not in self._unfinished, at, key) for key, at in self._due.items() if at <= now]
        if not ready:
            return None
        # Pipelines with unfinished changes take turns with settled pipelines. Neither group delays the other.
        if len({settled for settled, _, _ in ready}) == 2:
            self._settled_next = not self._settled_next
            ready = [item for item in ready if item[0] is not self._settled_next]
        _, _, key = min(ready, key=lambda item: item[1])
        del self._due[key]
        self._running.add(key)
        return key

    def next_at(self) -> float | None:
        """Return the time when the next key is due, or None if no key is waiting."""
        return min(self._due.values(), default=None)

    def finish(self, key: K, result: Result, now: float) -> None:
        """Record the end of a pass."""
        self._running.discard(key)
        rerun_at = self._rerun_at.pop(key, None)
        if result is Result.FAILED:
            self._failures[key] = self._failures.get(key, 0) + 1
        else:
            self._failures.pop(key, None)
        if result is Result.WAITING:
            self._unfinished.add(key)
        else:
            self._unfinished.discard(key)
        if result is not Result.GONE:
            self._due[key] = now + self._delays.after(result, self._failures.get(key, 0), chance=self._chance())
        if rerun_at is not None and result is not Result.FAILED:
            self._due[key] = min(rerun_at, self._due.get(key, rerun_at))


class WorkQueue(Generic[K]):
    """A queue of keys. A few worker threads run the passes for the keys."""

    def __init__(self, work: Callable[[K], Result], delays: Delays, *, workers: int = 4) -> None:
        self._work = work
        self._schedule: Schedule[K] = Schedule(delays)
        self._changed = threading.Condition()
        self._stopping = False
        self._threads = [
            threading.Thread(target=self._run, name=f"worker-{number}", daemon=True) for number in range(workers)
        ]

    def start(self) -> None:
        """Start the workers."""
        for thread in self._threads:
            thread.start()

    def stop(self, *, seconds: float = 20.0) -> None:
        """Begin no more passes, and wait up to `seconds` for the running passes."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        deadline = time.monotonic() + seconds
        for thread in self._threads:
            if thread.is_alive():
                thread.join(max(0.0, deadline - time.monotonic()))

    def add(self, key: K, *, delay: float = 0.0, reset_backoff: bool = False) -> None:
        """Request a pass for `key`, and return without waiting for the pass."""
        with self._changed:
            self._schedule.add(key, time.monotonic() + delay, reset_backoff=reset_backoff)
            self._changed.notify()

    def __len__(self) -> int:
        with self._changed:
            return len(self._schedule)

    def _run(self) -> None:
        while (key := self._next()) is not None:
            try:
                result = self._work(key)
            except Exception:
                log.exception("%s: the pass failed", key)
                result = Result.FAILED
            with self._changed:
                self._schedule.finish(key, result, time.monotonic())
                self._changed.notify()

    def _next(self) -> K | None:
        with self._changed:
            while not self._stopping:
                now = time.monotonic()
                key = self._schedule.take(now)
                if key is not None:
                    return key
                at = self._schedule.next_at()
                self._changed.wait(None if at is None else max(0.0, at - now))
            return None
