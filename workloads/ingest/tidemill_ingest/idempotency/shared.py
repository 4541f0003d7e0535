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
from tidemill_ingest.idempotency.batch_outcome import BatchOutcome, assume_lost
from tidemill_ingest.idempotency.scripts import PUT_SCRIPT, REMEMBERED

log = logging.getLogger(__name__)

KEY_TTL_SECONDS = 24 * 3600
MAX_KEYS, MAX_BYTES = 50_000, 16 * 1024 * 1024
"""The maximum number and total bytes of the keys of each pipeline. The oldest keys are dropped first."""
HEARTBEAT_SECONDS, LEASE_SECONDS = 5.0, 30
RETRY_SECONDS = 1.0
_POLL_SECONDS = 0.2
_ANSWER_MARGIN_SECONDS = 0.5
MAX_PENDING_WRITES = 10_000
_UNAVAILABLE = (redis.exceptions.RedisError, BreakerOpen, OSError)

T = TypeVar("T")
KeyId = tuple[str, str]
"""A pipeline, and the hash of an Idempotency-Key."""


class _Value(msgspec.Struct, frozen=True, array_like=True):
    """The value of an Idempotency-Key in Redis. `owner` is empty after the batch was sent."""

    fingerprint: bytes
    owner: str
    outcome: BatchOutcome | None


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
    def key_id(self) -> KeyId:
        """The name of the pipeline, and a hash of the Idempotency-Key."""
        return self.pipeline, hashlib.blake2b(self.key.encode(), digest_size=16).hexdigest()


class Claim(msgspec.Struct, frozen=True):
    """The result of `SharedKeys.claim`.

    Attributes:
        outcome: the outcome of earlier attempts.
        done: whether earlier attempts have sent all events.
    """

    outcome: BatchOutcome | None = None
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
        self._namespace, self._owner, self._lease_seconds = namespace, owner, lease_seconds
        self._put_script = client.register_script(PUT_SCRIPT) if client is not None else None
        self._owned: dict[KeyId, bytes] = {}
        """The Redis values of the keys that this process owns."""
        self._pending_writes: OrderedDict[KeyId, bytes] = OrderedDict()
        """The keys, with their values, that still have to be written to Redis."""
        self._writing: dict[KeyId, asyncio.Task[None]] = {}
        self.error = ""

    def dependency(self) -> list[Dependency]:
        """Return the entry of Redis in /health, or nothing without Redis."""
        if self._client is None:
            return []
        return [Dependency("redis", not self.error, False, self.error, self._guard.state)]

    async def claim(self, batch: Batch, earlier: BatchOutcome | None, deadline: Deadline) -> Claim:
        """Become the owner of a batch's key. While another process owns the key, wait.

        Raises:
            Problem: the key was used for another request (422), or another process still owns the key (503).
        """
        if self._client is None:
            return Claim(earlier)
        key_id = batch.key_id
        if key_id in self._pending_writes:  # finish a pending write first, so that it cannot overwrite the new value
            await asyncio.wait([self._writing.get(key_id) or self._start_write(key_id)])
        return await self._claim(batch, earlier, deadline)

    async def _claim(self, batch: Batch, outcome: BatchOutcome | None, deadline: Deadline) -> Claim:
        expected, was_taken = b"", False
        while True:
            own_value = msgspec.msgpack.encode(_Value(batch.fingerprint, self._owner, outcome))
            try:
                current = await self._call(partial(self._put, batch.key_id, expected, own_value))
                # If the Redis client repeats a successful write, `current` is the value of the first write.
                if current is None or (current == own_value and batch.key_id not in self._owned):
                    self._owned[batch.key_id] = own_value
                    return Claim(outcome)
                value, was_taken = _decode(current), True
                is_held = value is not None and await self._is_held(value.owner)
            except _UNAVAILABLE:
                if was_taken:
                    raise batch_under_way("Redis failed while another process was sending the batch") from None
                self._owned[batch.key_id] = own_value
                self._queue_write(batch.key_id, own_value)
                return Claim(outcome)
            if value is not None and value.fingerprint != batch.fingerprint:
                raise key_reused()
            if is_held:
                if deadline.remaining() <= _ANSWER_MARGIN_SECONDS:
                    raise batch_under_way("another process is sending the batch")
                await asyncio.sleep(_POLL_SECONDS)
                expected = b""
                continue
            expected = current
            if value is None:
                continue  # another release of ingest has written the value to Redis
            outcome = value.outcome
            if value.owner:
                log.warning("%s: process %s ended during a batch; the batch is sent again", batch.pipeline, value.owner)
                outcome = assume_lost(outcome, batch.total)
            elif outcome is not None and not outcome.failed:
                return Claim(outcome, done=True)

    async def _is_held(self, owner: str) -> bool:
        return bool(owner) and owner != self._owner and await self._call(partial(self._is_alive, owner))

    def store_outcome(self, batch: Batch, outcome: BatchOutcome | None) -> None:
        """Store the outcome of an attempt in the background, or free the key if `outcome` is None."""
        if self._client is None:
            return
        key_id = batch.key_id
        self._owned.pop(key_id, None)
        self._queue_write(
            key_id, msgspec.msgpack.encode(_Value(batch.fingerprint, "", outcome)) if outcome is not None else b""
        )
        self._start_write(key_id)

    async def run(self) -> None:
        """Send heartbeats to Redis, and repeat failed writes, until the task is cancelled."""
        task = asyncio.current_task()
        # Check for a cancellation, because the Redis client sometimes catches CancelledError.
        while self._client is not None and not (task is not None and task.cancelling()):
            pause = HEARTBEAT_SECONDS
            try:
                await self._call(self._send_heartbeat, probe=True)
                for key_id in list(self._pending_writes):
                    if key_id not in self._writing:
                        await self._start_write(key_id)
            except _UNAVAILABLE:
                log.debug("Redis does not answer: %s", self.error)
                pause = RETRY_SECONDS
            await asyncio.sleep(pause)

    async def close(self, seconds: float) -> None:
        """Finish pending writes within `seconds`, and disconnect from Redis."""
        if self._writing:
            await asyncio.wait(self._writing.values(), timeout=seconds)
        if self._client is not None:
            await self._client.aclose()

    def _queue_write(self, key_id: KeyId, value: bytes) -> None:
        self._pending_writes[key_id] = value
        self._pending_writes.move_to_end(key_id)
        while len(self._pending_writes) > MAX_PENDING_WRITES:
            self._pending_writes.popitem(last=False)

    def _start_write(self, key_id: KeyId) -> asyncio.Task[None]:
        self._writing[key_id] = task = asyncio.ensure_future(self._write_pending(key_id))
        task.add_done_callback(lambda _: self._writing.pop(key_id, None) if self._writing.get(key_id) is task else None)
        return task

    async def _write_pending(self, key_id: KeyId) -> None:
        value = self._pending_writes.get(key_id)
        if value is None:
            return
        try:
            # Another process may have written a value to Redis while this process was sending the batch. Keep that
            # value.
            await self._call(partial(self._put, key_id, b"", value, force=self._owned.get(key_id) != value))
        except _UNAVAILABLE:
            return
        if self._pending_writes.get(key_id) is value:
            del self._pending_writes[key_id]

    async def _call(self, command: Callable[[], Awaitable[T]], *, probe: bool = False) -> T:
        """Send a request to Redis. After a failure, only background probes are sent until Redis answers."""
        if self.error and not probe:
            raise BreakerOpen(self._guard.name, RETRY_SECONDS)
        try:
            reply = await (self._guard.aprobe(command) if probe else self._guard.acall(command, retry=False))
        except _UNAVAILABLE as error:
            if not isinstance(error, BreakerOpen):
                self.error = str(error) or type(error).__name__
            raise
        self.error = ""
        return reply

    async def _put(self, key_id: KeyId, expected: bytes, value: bytes, *, force: bool = False) -> bytes | None:
        """Set a key if the key is absent or has the value `expected`. Otherwise, return the current value."""
        pipeline, key_hash = key_id
        prefix = names.idempotency_prefix(self._namespace, pipeline)
        keys = [f"{prefix}/{key_hash}", f"{prefix}-index", f"{prefix}-bytes", self._owner_key(self._owner)]
        arguments: list[Any] = [
            expected, value, KEY_TTL_SECONDS, f"{time.time():.3f}", MAX_KEYS, MAX_BYTES,
            self._lease_seconds, int(force), key_hash, prefix,
        ]  # fmt: skip
        assert self._put_script is not None  # noqa: S101 - callers check that there is a client
        reply = await self._put_script(keys, arguments)
        return reply if isinstance(reply, bytes) else None

    async def _is_alive(self, owner: str) -> bool:
        assert self._client is not None  # noqa: S101 - callers check that there is a client
        return bool(await self._client.exists(self._owner_key(owner)))

    async def _send_heartbeat(self) -> None:
        """Renew the heartbeat key of this process in Redis."""
        assert self._client is not None  # noqa: S101 - callers check that there is a client
        key = self._owner_key(self._owner)
        if await self._client.get(key) == REMEMBERED and await self._client.expire(key, self._lease_seconds):
            return
        for key_id, value in list(self._owned.items()):
            self._queue_write(key_id, value)
        await self._client.set(key, REMEMBERED, ex=self._lease_seconds)

    def _owner_key(self, owner: str) -> str:
        return names.ingest_process_key(self._namespace, owner)


def key_reused() -> Problem:
    """Return the problem (422) for an Idempotency-Key that was used for another request."""
    detail = "Idempotency-Key: the key was used for another request; use a new key for each batch"
    return Problem(422, "idempotency_key_reused", detail)


def batch_under_way(why: str) -> Problem:
    """Return the problem (503) for an Idempotency-Key whose first request is still running."""
    detail = f"the batch of this Idempotency-Key is already being sent ({why}): send it again later, with the same key"
    return unavailable("batch_under_way", detail, 1.0)


def _decode(data: bytes) -> _Value | None:
    try:
        return msgspec.msgpack.decode(data, type=_Value)
    except msgspec.MsgspecError:
        return None
