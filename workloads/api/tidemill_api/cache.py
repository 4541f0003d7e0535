"""A cache of HTTP answers, in the memory of the process and in Redis.

While the database is down, the API sends old answers from the cache.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import msgspec
import redis.asyncio

from tidemill_api import metrics
from tidemill_api.database_errors import outage
from tidemill_chassis.resilience.config import BreakerOpen, Guard

log = logging.getLogger(__name__)

MAX_MEMORY_BYTES = 128 * 1024 * 1024
MAX_SHARED_BYTES = 1024 * 1024
SLOW_SECONDS = 3.0
"""Maximum wait for the database before an older answer from the cache is sent."""


class Answer(msgspec.Struct, frozen=True, array_like=True):
    """An encoded JSON answer.

    Attributes:
        version: the version of the data.
        final: whether no later event can change the answer.
        computed_at: the Unix time at which the answer was last known to be current.
    """

    body: bytes
    etag: str
    version: str
    rows: int
    final: bool
    computed_at: float

    @property
    def age_seconds(self) -> float:
        """Seconds since the answer was last known to be current."""
        return max(0.0, time.time() - self.computed_at)


Compute = Callable[[Answer | None], Awaitable[Answer | None]]
"""A function whose argument is the earlier answer, or None if no answer is cached.

The function returns a new answer, or None if the earlier answer is still current.
"""


@dataclass
class Slot:
    """The cache entry of one query.

    Attributes:
        fresh_until: the monotonic time at which the answer becomes stale.
    """

    key: str
    answer: Answer
    fresh_until: float
    headers: list[tuple[bytes, bytes]] = field(default_factory=list)


class AnswerCache:
    """The cache of answers in memory and in Redis."""

    def __init__(
        self, client: redis.asyncio.Redis | None, guard: Guard, *, max_entries: int, stale_seconds: float
    ) -> None:
        self._client, self._guard = client, guard
        self._max_entries, self._stale_seconds = max_entries, stale_seconds
        self._slots: OrderedDict[str, Slot] = OrderedDict()
        self._bytes = 0
        self._flights: dict[str, asyncio.Task[tuple[Slot, bool]]] = {}
        self._background: set[asyncio.Task[None]] = set()
        self.redis_error = ""

    def fresh(self, key: str) -> Slot | None:
        """Return the cache entry of a key, or None if there is no fresh answer."""
        slot = self._slots.get(key)
        if slot is None or slot.fresh_until <= time.monotonic():
            return None
        self._slots.move_to_end(key)
        return slot

    async def get(self, key: str, operation: str, ttl_seconds: float, compute: Compute) -> tuple[Slot, bool]:
        """Return the cache entry of a query, and whether its answer is stale.

        Raises:
            Exception: the error of `compute`, if there is no older answer.
        """
        slot = self.fresh(key)
        if slot is not None:
            metrics.CACHE_HITS.labels(operation).inc()
            return slot, False
        flight = self._flights.get(key)
        if flight is None:
            flight = asyncio.create_task(self._fetch(key, operation, ttl_seconds, compute))
            self._flights[key] = flight
            flight.add_done_callback(lambda done: self._landed(key, done))
        old = self._old(key)
        if old is not None:
            await asyncio.wait({flight}, timeout=SLOW_SECONDS)
            if not flight.done():
                return old, True
        # A cancelled request must not cancel the shared computation, because other requests wait for its result.
        return await asyncio.shield(flight)

    def _landed(self, key: str, flight: asyncio.Task[tuple[Slot, bool]]) -> None:
        self._flights.pop(key, None)
        if not flight.cancelled():
            flight.exception()  # retrieve the exception, because asyncio logs unretrieved exceptions

    def _old(self, key: str) -> Slot | None:
        slot = self._slots.get(key)
        return slot if slot is not None and self._usable(slot) else None

    def _usable(self, slot: Slot) -> bool:
        return slot.answer.age_seconds < self._stale_seconds

    async def _fetch(self, key: str, operation: str, ttl_seconds: float, compute: Compute) -> tuple[Slot, bool]:
        cached = self._slots.get(key)
        shared = await self._read(key)
        if shared is not None and (cached is None or shared.computed_at > cached.answer.computed_at):
            cached = self._remember(key, shared, ttl_seconds)
            if cached.fresh_until > time.monotonic():
                metrics.CACHE_HITS.labels(operation).inc()
                return cached, False
        metrics.CACHE_MISSES.labels(operation).inc()
        started = time.time()
        try:
            answer = await compute(cached.answer if cached else None)
        except Exception as error:
            if cached is None or not self._usable(cached) or not outage(error):
                raise
            return cached, True
        if answer is None:
            assert cached is not None  # noqa: S101 - `compute` answers None only to a cached answer
            answer = replace_time(cached.answer, started)
        slot = self._remember(key, answer, ttl_seconds)
        task = asyncio.create_task(self._write(key, answer))
        self._background.add(task)
        task.add_done_callback(self._background.discard)
        return slot, False

    def _remember(self, key: str, answer: Answer, ttl_seconds: float) -> Slot:
        fresh_until = time.monotonic() + ttl_seconds - answer.age_seconds
        slot = self._slots.get(key)
        if slot is None:
            slot = Slot(key, answer, fresh_until)
            if self._max_entries == 0:
                return slot
            self._slots[key] = slot
            self._bytes += len(answer.body)
        else:
            self._bytes += len(answer.body) - len(slot.answer.body)
            slot.answer, slot.fresh_until, slot.headers = answer, fresh_until, []
            self._slots.move_to_end(key)
        while len(self._slots) > 1 and (len(self._slots) > self._max_entries or self._bytes > MAX_MEMORY_BYTES):
            _, evicted = self._slots.popitem(last=False)
            evicted.fresh_until = 0.0
            self._bytes -= len(evicted.answer.body)
        return slot

    async def _read(self, key: str) -> Answer | None:
        if self._client is None or self.redis_error:
            return None
        try:
            encoded = await self._guard.acall(self._client.get, _redis_key(key), retry=False)
            self.redis_error = ""
            return msgspec.msgpack.decode(encoded, type=Answer) if isinstance(encoded, bytes) else None
        except msgspec.DecodeError:
            return None  # another release of the API has written the value to Redis
        except (redis.RedisError, BreakerOpen, OSError) as error:
            self.note(error)
            return None

    async def _write(self, key: str, answer: Answer) -> None:
        if self._client is None or self.redis_error or len(answer.body) > MAX_SHARED_BYTES:
            return
        client, text = self._client, msgspec.msgpack.encode(answer)
        seconds = max(60, int(self._stale_seconds))
        try:
            await self._guard.acall(lambda: client.set(_redis_key(key), text, ex=seconds), retry=False)
        except (redis.RedisError, BreakerOpen, OSError) as error:
            self.note(error)

    def note(self, error: Exception) -> None:
        """Store the text of a Redis error for /health. The error of an open circuit breaker is not stored."""
        if not isinstance(error, BreakerOpen):
            self.redis_error = str(error) or type(error).__name__

    async def close(self) -> None:
        """Cancel all running tasks of the cache."""
        tasks = [*self._flights.values(), *self._background]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def replace_time(answer: Answer, computed_at: float) -> Answer:
    """Return a copy of the answer with another `computed_at`."""
    return msgspec.structs.replace(answer, computed_at=computed_at)


def _redis_key(key: str) -> str:
    prefix, _, rest = key.partition("\n")
    return f"{prefix}/cache/{hashlib.sha256(rest.encode()).hexdigest()[:40]}"
