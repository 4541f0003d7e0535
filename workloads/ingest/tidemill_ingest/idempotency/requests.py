"""Handles requests with an Idempotency-Key, so that a repeated request writes each event once.

A repeated request waits until the first attempt ends, and gets the known outcome. Events that are known to be written
are not sent again.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import msgspec

from tidemill_chassis.resilience.config import Deadline
from tidemill_chassis.web.problems import Problem, unavailable
from tidemill_ingest.idempotency.batch_outcome import BatchOutcome, assume_lost, bounded
from tidemill_ingest.idempotency.shared import KEY_TTL_SECONDS, Batch, SharedKeys, batch_under_way, key_reused

MAX_BYTES = 8 * 1024 * 1024
"""The maximum size in bytes of a pipeline's outcomes in this process. The oldest outcomes are dropped first."""
_ENTRY_BYTES = 512
_ANSWER_MARGIN_SECONDS = 0.3
"""Requests are answered at least this many seconds before the deadline of the request."""
MAX_KEY_CHARACTERS = 255


def fingerprint(body: bytes, *parts: str) -> bytes:
    """Return a hash that distinguishes different requests with the same key."""
    return hashlib.blake2b(
        body, digest_size=16, person=hashlib.blake2b("\n".join(parts).encode(), digest_size=16).digest()
    ).digest()


@dataclass(frozen=True)
class Attempt:
    """A delivery attempt.

    Attributes:
        queued: the outcome that is known when the events are in the queue to Kafka.
        outcome: an awaitable that returns the final outcome.
    """

    queued: BatchOutcome
    outcome: Awaitable[BatchOutcome]


Begin = Callable[[BatchOutcome | None], Attempt]


@dataclass(frozen=True)
class BatchResult:
    """The outcome of a request's events, and whether an earlier request already had this outcome."""

    outcome: BatchOutcome
    replayed: bool


@dataclass
class _Entry:
    fingerprint: bytes
    task: asyncio.Task[BatchResult] | None = None
    queued: asyncio.Future[BatchOutcome] = field(default_factory=lambda: asyncio.get_running_loop().create_future())
    outcome: BatchOutcome | None = None
    expires_at: float = float("inf")
    size: int = 0


class _OutcomeCache:
    def __init__(self, max_bytes: int, clock: Callable[[], float]) -> None:
        self._max_bytes, self._clock = max_bytes, clock
        self._entries: OrderedDict[str, _Entry] = OrderedDict()
        self._bytes = 0

    def get(self, key: str) -> _Entry | None:
        entry = self._entries.get(key)
        if entry is not None and entry.expires_at <= self._clock():
            self._drop(key)
            return None
        return entry

    def add_running(self, key: str, entry: _Entry) -> None:
        if key in self._entries:
            self._drop(key)
        self._entries[key] = entry

    def store_outcome(self, key: str, entry: _Entry, outcome: BatchOutcome | None) -> None:
        self._drop(key)
        if outcome is None:
            return
        entry.outcome, entry.task = outcome, None
        entry.expires_at = self._clock() + KEY_TTL_SECONDS
        entry.size = _ENTRY_BYTES + len(key) + len(msgspec.msgpack.encode(outcome))
        self._bytes += entry.size
        self._entries[key] = entry
        while self._bytes > self._max_bytes:
            self._drop(next(name for name, other in self._entries.items() if other.task is None))

    def _drop(self, key: str) -> None:
        self._bytes -= self._entries.pop(key).size


class IdempotencyStore:
    """Remembers the batches that have an Idempotency-Key, for all pipelines."""

    def __init__(
        self,
        shared: SharedKeys,
        max_bytes: int = MAX_BYTES,
        *,
        clock: Callable[[], float] = time.monotonic,
        down_signal: Callable[[], asyncio.Future[None]] | None = None,
    ) -> None:
        self._shared, self._max_bytes, self._clock, self._down_signal = shared, max_bytes, clock, down_signal
        self._caches: dict[str, _OutcomeCache] = {}
        self._tasks: set[asyncio.Task[BatchResult]] = set()

    async def deliver_once(self, batch: Batch, begin: Begin, deadline: Deadline, *, wait: bool = True) -> BatchResult:
        """Return the outcome of a batch, from this request or an earlier request.

        Raises:
            Problem: the key was used for another request (422), is too long (400), or its batch is under way (503).
        """
        if not 0 < len(batch.key) <= MAX_KEY_CHARACTERS:
            raise Problem(400, "invalid_idempotency_key", f"Idempotency-Key takes 1 to {MAX_KEY_CHARACTERS} characters")
        cache = self._caches.setdefault(batch.pipeline, _OutcomeCache(self._max_bytes, self._clock))
        while True:
            entry, is_own = cache.get(batch.key), False
            if entry is not None and entry.fingerprint != batch.fingerprint:
                raise key_reused()
            if entry is not None and entry.outcome is not None and not entry.outcome.failed:
                return BatchResult(entry.outcome, True)
            if entry is None or entry.task is None:
                entry, is_own = self._start(cache, batch, entry.outcome if entry else None, begin, deadline), True
            task = entry.task
            assert task is not None  # noqa: S101 - just opened, or under way
            await self._wait_for(entry, task, deadline, wait=wait)
            if not task.done():
                if entry.queued.done() and not wait:
                    return BatchResult(entry.queued.result(), not is_own)
                raise (
                    _not_acknowledged(batch) if is_own else batch_under_way("Kafka has not acknowledged all events yet")
                )
            if is_own:
                return task.result()
            await asyncio.sleep(0)  # let the callback of the finished task store the task's outcome

    async def _wait_for(
        self, entry: _Entry, task: asyncio.Task[BatchResult], deadline: Deadline, *, wait: bool
    ) -> None:
        async def wait_for_first(*awaited: asyncio.Future[Any]) -> None:
            seconds = max(0.0, deadline.remaining() - _ANSWER_MARGIN_SECONDS)
            await asyncio.wait(awaited, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)

        await wait_for_first(task, entry.queued)
        if wait and not task.done():
            await wait_for_first(task, *([self._down_signal()] if self._down_signal is not None else []))

    async def close(self, seconds: float) -> None:
        """Wait up to `seconds` for running requests, and up to `seconds` for their writes to Redis."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=seconds)
        await self._shared.close(seconds)

    def _start(
        self, cache: _OutcomeCache, batch: Batch, earlier: BatchOutcome | None, begin: Begin, deadline: Deadline
    ) -> _Entry:
        entry = _Entry(batch.fingerprint)
        task = entry.task = asyncio.ensure_future(self._run(entry, batch, earlier, begin, deadline))
        cache.add_running(batch.key, entry)
        self._tasks.add(task)

        def on_done(task: asyncio.Task[BatchResult]) -> None:
            self._tasks.discard(task)
            if not task.cancelled() and task.exception() is None:
                outcome: BatchOutcome | None = task.result().outcome
            else:
                outcome = assume_lost(earlier, batch.total) if entry.queued.done() else earlier
            cache.store_outcome(
                batch.key, entry, None if outcome is None or outcome.nothing_written else bounded(outcome)
            )

        task.add_done_callback(on_done)
        return entry

    async def _run(
        self, entry: _Entry, batch: Batch, earlier: BatchOutcome | None, begin: Begin, deadline: Deadline
    ) -> BatchResult:
        claim = await self._shared.claim(batch, earlier, deadline)
        if claim.done and claim.outcome is not None:
            return BatchResult(claim.outcome, True)
        try:
            attempt = begin(claim.outcome)
        except BaseException:
            self._shared.store_outcome(batch, claim.outcome)
            raise
        entry.queued.set_result(attempt.queued)
        # If the task is cancelled before the outcome, the process stays the key's owner.
        outcome = await attempt.outcome
        self._shared.store_outcome(batch, None if outcome.nothing_written else bounded(outcome))
        return BatchResult(outcome, False)


def _not_acknowledged(batch: Batch) -> Problem:
    detail = (
        "Kafka has not acknowledged the events in time, but may still write them; send them again with the same key"
    )
    return unavailable("not_acknowledged", detail, 1.0, retry=batch.total)
