"""Answers to requests with an Idempotency-Key, kept so that a repeated request is answered and not done again.

Kept in memory: another process, or a restarted one, does not know them. What was not fully done is not kept.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace

from tidemill_ingest.problems import Refused
from tidemill_ingest.results import Answer

MAX_BYTES = 8 * 1024 * 1024
"""Of answers, for each pipeline; the oldest go first."""
KEPT_SECONDS = 24 * 3600.0
_ENTRY_BYTES = 512
MAX_KEY_CHARACTERS = 255


def fingerprint(body: bytes, *parts: str) -> bytes:
    """What tells one request from another under the same key."""
    return hashlib.blake2b(
        body, digest_size=16, person=hashlib.blake2b("\n".join(parts).encode(), digest_size=16).digest()
    ).digest()


@dataclass
class _Entry:
    fingerprint: bytes
    task: asyncio.Task[Answer]
    answer: Answer | None = None
    expires_at: float = float("inf")
    size: int = 0


class _Memory:
    """The entries of one pipeline."""

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

    def begin(self, key: str, entry: _Entry) -> None:
        self._entries[key] = entry

    def end(self, key: str, entry: _Entry) -> None:
        """Keep the answer of an entry's task if it is worth it, at the expense of the oldest ones."""
        failed = entry.task.cancelled() or entry.task.exception() is not None
        if failed or not entry.task.result().final:
            self._drop(key)
            return
        entry.answer = entry.task.result()
        entry.expires_at = self._clock() + KEPT_SECONDS
        entry.size = _ENTRY_BYTES + len(key) + len(entry.answer.body)
        self._bytes += entry.size
        self._entries.move_to_end(key)
        while self._bytes > self._max_bytes:
            self._drop(next(name for name, other in self._entries.items() if other.answer is not None))

    def _drop(self, key: str) -> None:
        self._bytes -= self._entries.pop(key).size


class Replays:
    """The memories of all pipelines.

    Args:
        max_bytes: of answers, for each pipeline.
        clock: seconds that only grow.
    """

    def __init__(self, max_bytes: int = MAX_BYTES, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._max_bytes, self._clock = max_bytes, clock
        self._memories: dict[str, _Memory] = {}

    async def answer(
        self, pipeline: str, key: str, fingerprint: bytes, make: Callable[[], Awaitable[Answer]]
    ) -> Answer:
        """The answer kept under a key, that of the same request under way, or a new one.

        What makes the answer goes on if the request that began it is given up: the next one finds what came of it.

        Raises:
            Refused: 422, the key was used for another request; 400, the key is too long; what `make` raises.
        """
        if not 0 < len(key) <= MAX_KEY_CHARACTERS:
            raise Refused(400, "invalid_idempotency_key", f"Idempotency-Key takes 1 to {MAX_KEY_CHARACTERS} characters")
        memory = self._memories.setdefault(pipeline, _Memory(self._max_bytes, self._clock))
        while (entry := memory.get(key)) is not None:
            if entry.fingerprint != fingerprint:
                detail = "the key came with another request before; use a new key for each batch"
                raise Refused(422, "idempotency_key_reused", f"Idempotency-Key: {detail}")
            if entry.answer is not None:
                return replace(entry.answer, headers={**entry.answer.headers, "idempotency-replayed": "true"})
            await asyncio.wait([entry.task])
            await asyncio.sleep(0)  # its callback, which keeps the answer, runs first
        task = asyncio.ensure_future(_run(make))
        entry = _Entry(fingerprint, task)
        memory.begin(key, entry)
        task.add_done_callback(lambda _: memory.end(key, entry))
        return await asyncio.shield(task)


async def _run(make: Callable[[], Awaitable[Answer]]) -> Answer:
    return await make()
