"""Reads the Redis stream of a pipeline's changes.

Processors write changes to the stream only while a Redis key exists. `ChangeStream.read` renews this Redis key.
"""

from __future__ import annotations

import logging
import time
from typing import Any

import redis.asyncio
import redis.exceptions

from tidemill_api.live.change import Entry, read_entry
from tidemill_chassis.resilience.config import BreakerOpen, Guard
from tidemill_contract import names

log = logging.getLogger(__name__)

LISTENER_KEY_SECONDS, RENEW_SECONDS = 60, 10.0
BLOCK_MS = 1_000
BATCH_ENTRIES = 100


class RedisUnreachable(Exception):
    """The error if Redis does not answer or is not configured."""


class ChangeStream:
    """Reads only new entries of the stream of changes."""

    def __init__(self, client: redis.asyncio.Redis | None, guard: Guard, namespace: str, pipeline: str) -> None:
        self._client, self._guard = client, guard
        self._stream = names.live_stream(namespace, pipeline)
        self._listener_key = names.live_listeners(namespace, pipeline)
        self._position = b""
        self._renewed_at = 0.0

    async def read(self) -> tuple[list[Entry], bool]:
        """Wait up to BLOCK_MS for new entries. Return the new entries, and whether earlier entries may be missing.

        Raises:
            RedisUnreachable: Redis does not answer.
        """
        client = self._client
        if client is None:
            raise RedisUnreachable("TIDEMILL_REDIS_URL is not set")
        try:
            if not self._position:
                await self._renew_listener_key(client)
                latest = await self._guard.acall(lambda: client.xrevrange(self._stream, count=1), retry=False)
                self._position = _reply_entries([(self._stream, latest)])[0][0] if latest else b"0-0"
                return [], True
            if time.monotonic() - self._renewed_at >= RENEW_SECONDS:
                await self._renew_listener_key(client)
            position = {self._stream: self._position}
            reply = await self._guard.acall(
                lambda: client.xread(position, count=BATCH_ENTRIES, block=BLOCK_MS),  # type: ignore[arg-type]
                retry=False,
            )
        except (redis.exceptions.RedisError, BreakerOpen, OSError) as error:
            self._position = b""
            raise RedisUnreachable(str(error) or type(error).__name__) from error
        return self._decode_entries(_reply_entries(reply)), False

    async def _renew_listener_key(self, client: redis.asyncio.Redis) -> None:
        await self._guard.acall(lambda: client.set(self._listener_key, b"1", ex=LISTENER_KEY_SECONDS), retry=False)
        self._renewed_at = time.monotonic()

    def _decode_entries(self, rows: list[tuple[bytes, dict[bytes, bytes]]]) -> list[Entry]:
        entries = []
        for position, fields in rows:
            self._position = position
            try:
                entries.append(read_entry(fields.get(b"d", b"")))
            except ValueError as error:
                # skip an unreadable entry, because its changes are read from the database later
                log.warning("%s: entry %s cannot be read: %s", self._stream, position.decode(), error)
        return entries


def _reply_entries(reply: Any) -> list[tuple[bytes, dict[bytes, bytes]]]:
    if not reply:
        return []
    streams = reply.items() if isinstance(reply, dict) else reply
    rows: list[tuple[bytes, dict[bytes, bytes]]] = []
    for _, entries in streams:
        # In version 3 of the Redis protocol (RESP3), the list of entries is inside another list.
        rows += entries[0] if entries and isinstance(entries[0], list) else entries
    return rows
