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
from tidemill_api.database_errors import is_outage
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
class CacheEntry:
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
        self._entries: OrderedDict[str, CacheEntry] = OrderedDict()
        self._bytes = 0
        self._computations: dict[str, asyncio.Task[tuple[CacheEntry, bool]]] = {}
        self._writes: set[asyncio.Task[None]] = set()
        self.redis_error = ""

    def find_fresh(self, key: str) -> CacheEntry | None:
        """Return the cache entry of a key, or None if there is no fresh answer."""
        entry = self._entries.get(key)
        if entry is None or entry.fresh_until <= time.monotonic():
            return None
        self._entries.move_to_end(key)
        return entry

    async def get(self, key: str, operation: str, ttl_seconds: float, compute: Compute) -> tuple[CacheEntry, bool]:
        """Return the cache entry of a query, and whether its answer is stale.

        Raises:
            Exception: the error of `compute`, if there is no older answer.
        """
        entry = self.find_fresh(key)
        if entry is not None:
            metrics.CACHE_HITS.labels(operation).inc()
            return entry, False
        computation = self._computations.get(key)
        if computation is None:
            computation = asyncio.create_task(self._fetch(key, operation, ttl_seconds, compute))
            self._computations[key] = computation
            computation.add_done_callback(lambda done: self._remove_computation(key, done))
        stale_entry = self._find_stale(key)
        if stale_entry is not None:
            await asyncio.wait({computation}, timeout=SLOW_SECONDS)
            if not computation.done():
                return stale_entry, True
        # A cancelled request must not cancel the shared computation, because other requests wait for its result.
        return await asyncio.shield(computation)

    def _remove_computation(self, key: str, computation: asyncio.Task[tuple[CacheEntry, bool]]) -> None:
        self._computations.pop(key, None)
        if not computation.cancelled():
            computation.exception()  # retrieve the exception, because asyncio logs unretrieved exceptions

    def _find_stale(self, key: str) -> CacheEntry | None:
        entry = self._entries.get(key)
        return entry if entry is not None and self._is_usable(entry) else None

    def _is_usable(self, entry: CacheEntry) -> bool:
        return entry.answer.age_seconds < self._stale_seconds

    async def _fetch(self, key: str, operation: str, ttl_seconds: float, compute: Compute) -> tuple[CacheEntry, bool]:
        cached = self._entries.get(key)
        redis_answer = await self._read_redis(key)
        if redis_answer is not None and (cached is None or redis_answer.computed_at > cached.answer.computed_at):
            cached = self._store(key, redis_answer, ttl_seconds)
            if cached.fresh_until > time.monotonic():
                metrics.CACHE_HITS.labels(operation).inc()
                return cached, False
        metrics.CACHE_MISSES.labels(operation).inc()
        started = time.time()
        try:
            answer = await compute(cached.answer if cached else None)
        except Exception as error:
            if cached is None or not self._is_usable(cached) or not is_outage(error):
                raise
            return cached, True
        if answer is None:
            assert cached is not None  # noqa: S101 - `compute` answers None only to a cached answer
            answer = with_computed_at(cached.answer, started)
        entry = self._store(key, answer, ttl_seconds)
        task = asyncio.create_task(self._write_redis(key, answer))
        self._writes.add(task)
        task.add_done_callback(self._writes.discard)
        return entry, False

    def _store(self, key: str, answer: Answer, ttl_seconds: float) -> CacheEntry:
        fresh_until = time.monotonic() + ttl_seconds - answer.age_seconds
        entry = self._entries.get(key)
        if entry is None:
            entry = CacheEntry(key, answer, fresh_until)
            if self._max_entries == 0:
                return entry
            self._entries[key] = entry
            self._bytes += len(answer.body)
        else:
            self._bytes += len(answer.body) - len(entry.answer.body)
            entry.answer, entry.fresh_until, entry.headers = answer, fresh_until, []
            self._entries.move_to_end(key)
        while len(self._entries) > 1 and (len(self._entries) > self._max_entries or self._bytes > MAX_MEMORY_BYTES):
            _, evicted = self._entries.popitem(last=False)
            evicted.fresh_until = 0.0
            self._bytes -= len(evicted.answer.body)
        return entry

    async def _read_redis(self, key: str) -> Answer | None:
        if self._client is None or self.redis_error:
            return None
        try:
            encoded = await self._guard.acall(self._client.get, _redis_key(key), retry=False)
            self.redis_error = ""
            return msgspec.msgpack.decode(encoded, type=Answer) if isinstance(encoded, bytes) else None
        except msgspec.DecodeError:
            return None  # another release of the API has written the value to Redis
        except (redis.RedisError, BreakerOpen, OSError) as error:
            self.record_error(error)
            return None

    async def _write_redis(self, key: str, answer: Answer) -> None:
        if self._client is None or self.redis_error or len(answer.body) > MAX_SHARED_BYTES:
            return
        client, encoded = self._client, msgspec.msgpack.encode(answer)
        seconds = max(60, int(self._stale_seconds))
        try:
            await self._guard.acall(lambda: client.set(_redis_key(key), encoded, ex=seconds), retry=False)
        except (redis.RedisError, BreakerOpen, OSError) as error:
            self.record_error(error)

    def record_error(self, error: Exception) -> None:
        """Store the text of a Redis error for /health. The error of an open circuit breaker is not stored."""
        if not isinstance(error, BreakerOpen):
            self.redis_error = str(error) or type(error).__name__

    async def close(self) -> None:
        """Cancel all running tasks of the cache."""
        tasks = [*self._computations.values(), *self._writes]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def with_computed_at(answer: Answer, computed_at: float) -> Answer:
    """Return a copy of the answer with another `computed_at`."""
    return msgspec.structs.replace(answer, computed_at=computed_at)


def _redis_key(key: str) -> str:
    prefix, _, rest = key.partition("\n")
    return f"{prefix}/cache/{hashlib.sha256(rest.encode()).hexdigest()[:40]}"
