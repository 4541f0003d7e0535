"""Shares Idempotency-Keys between all ingest processes of a namespace, through Redis.

In Redis, the value of a key is its owner or its batch's outcome. The owner is the process sending the batch.
Processes write values by compare-and-set. An owner sends heartbeats. After `LEASE_SECONDS` without heartbeats, another
process can become the owner.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import msgspec
import redis.asyncio
import redis.exceptions

from tidemill_chassis.health import Dependency
from tidemill_chassis.resilience.config import BreakerOpen, Deadline, Guard
from tidemill_chassis.web.problems import Problem, unavailable
from tidemill_contract import names
from tidemill_ingest.idempotency.known import Known, lost
from tidemill_ingest.idempotency.scripts import PUT, REMEMBERED

log = logging.getLogger(__name__)

KEPT_SECONDS = 24 * 3600
MAX_KEYS, MAX_BYTES = 50_000, 16 * 1024 * 1024
"""The maximum number and total bytes of the keys of each pipeline. The oldest keys are dropped first."""
BEAT_SECONDS, LEASE_SECONDS = 5.0, 30
AGAIN_SECONDS = 1.0
_LOOK_SECONDS = 0.2
_ANSWER_SECONDS = 0.5
MAX_OWED = 10_000
_AWAY = (redis.exceptions.RedisError, BreakerOpen, OSError)

T = TypeVar("T")
Place = tuple[str, str]
"""A pipeline, and the hash of an Idempotency-Key."""


class _Value(msgspec.Struct, frozen=True, array_like=True):
    """What Redis stores under an Idempotency-Key. `owner` is empty after the batch was sent."""

    fingerprint: bytes
    owner: str
    known: Known | None


@dataclass(frozen=True)
class Batch:
    """A request with an Idempotency-Key.

    Attributes:
        key: the Idempotency-Key in the request's header.
        fingerprint: a hash that distinguishes different requests with the same key.
        total: the number of events in the request.
    """

    pipeline: str
    key: str
    fingerprint: bytes
    total: int

    @property
    def place(self) -> Place:
        """The name of the pipeline, and a hash of the Idempotency-Key."""
        return self.pipeline, hashlib.blake2b(self.key.encode(), digest_size=16).hexdigest()


class Claim(msgspec.Struct, frozen=True):
    """The result of `SharedKeys.claim`.

    Attributes:
        known: the outcome of earlier attempts.
        done: whether earlier attempts have sent all events.
    """

    known: Known | None = None
    done: bool = False


class SharedKeys:
    """This process's access to the shared keys."""

    def __init__(
        self,
        client: redis.asyncio.Redis | None,
        guard: Guard,
        *,
        namespace: str,
        owner: str,
        lease_seconds: int = LEASE_SECONDS,
    ) -> None:
        self._client, self._guard = client, guard
        self._namespace, self._owner, self._lease = namespace, owner, lease_seconds
        self._put_script = client.register_script(PUT) if client is not None else None
        self._own: dict[Place, bytes] = {}
        """The Redis values of the keys that this process owns."""
        self._owed: OrderedDict[Place, bytes] = OrderedDict()
        """The keys, with their values, that still have to be written to Redis."""
        self._writing: dict[Place, asyncio.Task[None]] = {}
        self.error = ""

    def dependency(self) -> list[Dependency]:
        """Return the entry of Redis in /health, or nothing without Redis."""
        if self._client is None:
            return []
        return [Dependency("redis", not self.error, False, self.error, self._guard.state)]

    async def claim(self, batch: Batch, before: Known | None, deadline: Deadline) -> Claim:
        """Become the owner of a batch's key. While another process owns the key, wait.

        Raises:
            Problem: the key was used for another request (422), or another process still owns the key (503).
        """
        if self._client is None:
            return Claim(before)
        place = batch.place
        if place in self._owed:  # finish a pending write first, so that it cannot overwrite the new value
            await asyncio.wait([self._writing.get(place) or self._write(place)])
        return await self._claim(batch, before, deadline)

    async def _claim(self, batch: Batch, outcome: Known | None, deadline: Deadline) -> Claim:
        expected, seen = b"", False
        while True:
            mine = msgspec.msgpack.encode(_Value(batch.fingerprint, self._owner, outcome))
            try:
                current = await self._call(partial(self._put, batch.place, expected, mine))
                # If the Redis client repeats a successful write, `current` is the value of the first write.
                if current is None or (current == mine and batch.place not in self._own):
                    self._own[batch.place] = mine
                    return Claim(outcome)
                value, seen = _decode(current), True
                held = value is not None and await self._is_held(value.owner)
            except _AWAY:
                if seen:
                    raise under_way("Redis failed while another process was sending the batch") from None
                self._own[batch.place] = mine
                self._owe(batch.place, mine)
                return Claim(outcome)
            if value is not None and value.fingerprint != batch.fingerprint:
                raise reused()
            if held:
                if deadline.remaining() <= _ANSWER_SECONDS:
                    raise under_way("another process is sending the batch")
                await asyncio.sleep(_LOOK_SECONDS)
                expected = b""
                continue
            expected = current
            if value is None:
                continue  # another release of ingest has written the value to Redis
            outcome = value.known
            if value.owner:
                log.warning("%s: process %s ended during a batch; the batch is sent again", batch.pipeline, value.owner)
                outcome = lost(outcome, batch.total)
            elif outcome is not None and not outcome.failed:
                return Claim(outcome, done=True)

    async def _is_held(self, owner: str) -> bool:
        return bool(owner) and owner != self._owner and await self._call(partial(self._lives, owner))

    def settle(self, batch: Batch, outcome: Known | None) -> None:
        """Store the outcome of an attempt in the background, or free the key if `outcome` is None."""
        if self._client is None:
            return
        place = batch.place
        self._own.pop(place, None)
        self._owe(place, msgspec.msgpack.encode(_Value(batch.fingerprint, "", outcome)) if outcome is not None else b"")
        self._write(place)

    async def run(self) -> None:
        """Send heartbeats to Redis, and repeat failed writes, until the task is cancelled."""
        me = asyncio.current_task()
        # Check for a cancellation, because the Redis client sometimes catches CancelledError.
        while self._client is not None and not (me is not None and me.cancelling()):
            pause = BEAT_SECONDS
            try:
                await self._call(self._beat, look=True)
                for place in list(self._owed):
                    if place not in self._writing:
                        await self._write(place)
            except _AWAY:
                log.debug("Redis does not answer: %s", self.error)
                pause = AGAIN_SECONDS
            await asyncio.sleep(pause)

    async def close(self, seconds: float) -> None:
        """Finish pending writes within `seconds`, and disconnect from Redis."""
        if self._writing:
            await asyncio.wait(self._writing.values(), timeout=seconds)
        if self._client is not None:
            await self._client.aclose()

    def _owe(self, place: Place, value: bytes) -> None:
        self._owed[place] = value
        self._owed.move_to_end(place)
        while len(self._owed) > MAX_OWED:
            self._owed.popitem(last=False)

    def _write(self, place: Place) -> asyncio.Task[None]:
        self._writing[place] = task = asyncio.ensure_future(self._pay(place))
        task.add_done_callback(lambda _: self._writing.pop(place, None) if self._writing.get(place) is task else None)
        return task

    async def _pay(self, place: Place) -> None:
        value = self._owed.get(place)
        if value is None:
            return
        try:
            # Another process may have written a value to Redis while this process was sending the batch. Keep that
            # value.
            await self._call(partial(self._put, place, b"", value, force=self._own.get(place) != value))
        except _AWAY:
            return
        if self._owed.get(place) is value:
            del self._owed[place]

    async def _call(self, make: Callable[[], Awaitable[T]], *, look: bool = False) -> T:
        """Send a request to Redis. After a failure, only background probes are sent until Redis answers."""
        if self.error and not look:
            raise BreakerOpen(self._guard.name, AGAIN_SECONDS)
        try:
            reply = await (self._guard.alook(make) if look else self._guard.acall(make, retry=False))
        except _AWAY as error:
            if not isinstance(error, BreakerOpen):
                self.error = str(error) or type(error).__name__
            raise
        self.error = ""
        return reply

    async def _put(self, place: Place, expected: bytes, value: bytes, *, force: bool = False) -> bytes | None:
        """Set a key if the key is absent or has the value `expected`. Otherwise, return the current value."""
        pipeline, name = place
        prefix = names.ingest_keys(self._namespace, pipeline)
        keys = [f"{prefix}/{name}", f"{prefix}-index", f"{prefix}-bytes", self._owner_key(self._owner)]
        arguments: list[Any] = [
            expected, value, KEPT_SECONDS, f"{time.time():.3f}", MAX_KEYS, MAX_BYTES,
            self._lease, int(force), name, prefix,
        ]  # fmt: skip
        assert self._put_script is not None  # noqa: S101 - callers check that there is a client
        reply = await self._put_script(keys, arguments)
        return reply if isinstance(reply, bytes) else None

    async def _lives(self, owner: str) -> bool:
        assert self._client is not None  # noqa: S101 - callers check that there is a client
        return bool(await self._client.exists(self._owner_key(owner)))

    async def _beat(self) -> None:
        """Renew the heartbeat key of this process in Redis."""
        assert self._client is not None  # noqa: S101 - callers check that there is a client
        key = self._owner_key(self._owner)
        if await self._client.get(key) == REMEMBERED and await self._client.expire(key, self._lease):
            return
        for place, value in list(self._own.items()):
            self._owe(place, value)
        await self._client.set(key, REMEMBERED, ex=self._lease)

    def _owner_key(self, owner: str) -> str:
        return names.ingest_owner(self._namespace, owner)


def reused() -> Problem:
    """Return the problem (422) for an Idempotency-Key that was used for another request."""
    detail = "Idempotency-Key: the key was used for another request; use a new key for each batch"
    return Problem(422, "idempotency_key_reused", detail)


def under_way(why: str) -> Problem:
    """Return the problem (503) for an Idempotency-Key whose first request is still running."""
    detail = f"the batch of this Idempotency-Key is already being sent ({why}): send it again later, with the same key"
    return unavailable("batch_under_way", detail, 1.0)


def _decode(data: bytes) -> _Value | None:
    try:
        return msgspec.msgpack.decode(data, type=_Value)
    except msgspec.MsgspecError:
        return None
