"""The one reader a process and pipeline: changes from the Redis stream, or by polling Postgres while Redis is away.

Runs while somebody listens. Subscribers get every change after the moment they subscribed, or a `begin`, which says
that something before it may be missing: then they take a new snapshot.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import time
from dataclasses import replace
from typing import Any, Protocol

import msgspec
import redis.asyncio
import redis.exceptions

from tidemill_api.catalog import AggregationModel, Catalog, PipelineModel
from tidemill_api.database import Database
from tidemill_api.live_change import Change, from_entry, truncated
from tidemill_api.live_reading import changed_since, revisions
from tidemill_contract import names
from tidemill_contract.resilience import BreakerOpen, Guard

log = logging.getLogger(__name__)

LISTEN_SECONDS, LISTEN_EVERY_SECONDS = 60, 10.0
BLOCK_MS = 1_000
BATCH_ENTRIES = 100
POLL_SECONDS = 1.0
MAX_REPLAY = 10_000
_TOKEN = re.compile(r"[0-9]{1,20}-[0-9]{1,20}", re.ASCII)


class Subscriber(Protocol):
    """Who gets changes; must not block."""

    def offer(self, change: Change) -> None:
        """Take a change."""


class Upstream:
    """Reads one pipeline's changes and hands them to all its subscribers."""

    def __init__(
        self, catalog: Catalog, database: Database, client: redis.asyncio.Redis | None, guard: Guard, pipeline: str
    ) -> None:
        self._catalog, self._database, self._client, self._guard = catalog, database, client, guard
        self._pipeline = pipeline
        self._subscribers: set[Subscriber] = set()
        self._task: asyncio.Task[None] | None = None
        self._started = asyncio.Event()
        self._listened_at = -LISTEN_EVERY_SECONDS
        self._revs: dict[str, int] = {}
        self.position = ""
        """Id of the latest entry read; empty while the stream is not read."""
        self.degraded = False

    async def subscribe(self, subscriber: Subscriber) -> None:
        """Hand changes to a subscriber from now on; returns when the reader is at work."""
        self._subscribers.add(subscriber)
        if self._task is None or self._task.done():
            self._started = asyncio.Event()
            self._task = asyncio.create_task(self._run())
        await self._started.wait()

    async def unsubscribe(self, subscriber: Subscriber) -> None:
        """Hand it no more; the reader ends with its last subscriber."""
        self._subscribers.discard(subscriber)
        if not self._subscribers:
            await self.stop()

    async def stop(self) -> None:
        """End the reader."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    @property
    def _model(self) -> PipelineModel | None:
        return self._catalog.find(self._pipeline)

    @property
    def _namespace(self) -> str:
        model = self._model
        return model.config.namespace if model else ""

    def _deliver(self, change: Change) -> None:
        if change.rev:
            self._revs[change.aggregation] = max(change.rev, self._revs.get(change.aggregation, 0))
        for subscriber in list(self._subscribers):
            subscriber.offer(change)

    async def _run(self) -> None:
        while self._model is not None:
            try:
                await self._follow()
            except (redis.exceptions.RedisError, BreakerOpen, OSError) as error:
                if not self.degraded:
                    log.warning("%s: live changes by polling, Redis: %s", self._pipeline, error)
                self.degraded, self.position = True, ""
            except Exception:
                log.exception("%s: reading live changes", self._pipeline)
                await asyncio.sleep(POLL_SECONDS)
            await self._poll_once()
            self._started.set()
            await asyncio.sleep(POLL_SECONDS)
        self._deliver(Change("", 0, (), begin=True))

    async def _follow(self) -> None:
        """Read the stream until Redis fails.

        Raises:
            redis.RedisError, BreakerOpen, OSError: Redis is not there.
        """
        if self._client is None:
            raise BreakerOpen("redis", POLL_SECONDS)
        client, stream = self._client, names.live_stream(self._namespace, self._pipeline)
        self._listened_at = -LISTEN_EVERY_SECONDS
        await self._listen(client)
        latest = await self._guard.acall(lambda: client.xrevrange(stream, count=1), retry=False)
        self.position = latest[0][0].decode() if latest else "0-0"
        was_degraded, self.degraded = self.degraded, False
        if was_degraded or self._started.is_set():
            # Whatever was polled or missed meanwhile: a new snapshot is right.
            self._deliver(Change("", 0, (), resume=self.position, begin=True))
        self._started.set()
        while True:
            await self._listen(client)
            found = await self._guard.acall(
                lambda: client.xread({stream: self.position}, count=BATCH_ENTRIES, block=BLOCK_MS), retry=False
            )
            for entry_id, fields in _entries(found):
                await self._take(entry_id, fields)

    async def _take(self, entry_id: str, fields: dict[bytes, bytes]) -> None:
        self.position = entry_id
        data = fields.get(b"d", b"")
        try:
            change = from_entry(data, entry_id)
        except (ValueError, msgspec.DecodeError) as error:
            log.warning("%s: entry %s is no change: %s", self._pipeline, entry_id, error)
            return
        if truncated(data):
            await self._reread(change)
            return
        self._deliver(change)

    async def _reread(self, change: Change) -> None:
        """Read from the database what an entry left out."""
        model = self._model
        found = model.aggregations.get(change.aggregation) if model else None
        if model is None or found is None:
            return
        since = self._revs.get(change.aggregation)
        read = None if since is None else await self._changed(model, found, since)
        if read is None:
            self._deliver(Change("", 0, (), resume=change.resume, begin=True))
        else:
            self._deliver(replace(read, resume=change.resume, degraded=False, _chosen={}, _messages={}))

    async def _changed(self, model: PipelineModel, aggregation: AggregationModel, since: int) -> Change | None:
        """What changed after a revision; None: too much, or the database is away."""
        try:
            return await self._database.run(
                model.name, lambda connection: changed_since(connection, model, aggregation, since), retry=False
            )
        except Exception as error:
            log.warning("%s: changes could not be read again: %s", self._pipeline, error)
            return None

    async def _listen(self, client: redis.asyncio.Redis) -> None:
        """Tell the processor that somebody listens."""
        now = time.monotonic()
        if now - self._listened_at < LISTEN_EVERY_SECONDS:
            return
        key = names.live_listeners(self._namespace, self._pipeline)
        await self._guard.acall(lambda: client.set(key, b"1", ex=LISTEN_SECONDS), retry=False)
        self._listened_at = now

    async def _poll_once(self) -> None:
        """What changed since the last look, straight from the database."""
        model = self._model
        if model is None:
            return
        try:
            found = await self._database.run(model.name, lambda c: revisions(c, model), retry=False)
        except Exception as error:
            log.debug("%s: polling: %s", self._pipeline, error)
            return
        for name, state in found.items():
            known = self._revs.get(name)
            self._revs[name] = state.rev
            change: Change | None = Change(
                name, 0, (), watermark_ms=state.watermark_ms, closed_until_ms=state.closed_until_ms, degraded=True
            )
            if known is not None and state.rev > known:
                change = await self._changed(model, model.aggregations[name], known)
            self._deliver(change or Change("", 0, (), begin=True))

    async def replay(self, token: str) -> list[Change] | None:
        """What came after a token, up to `position`; None: there is a gap, a snapshot is needed."""
        if self._client is None or self.degraded or not self.position or not _TOKEN.fullmatch(token):
            return None
        client, stream, until = self._client, names.live_stream(self._namespace, self._pipeline), self.position
        if _order(token) > _order(until):
            return None
        try:
            first = await self._guard.acall(lambda: client.xrange(stream, count=1), retry=False)
            if _order(until) != _order(token) and (not first or _order(first[0][0].decode()) > _order(token)):
                return None
            found = await self._guard.acall(
                lambda: client.xrange(stream, min=f"({token}", max=until, count=MAX_REPLAY), retry=False
            )
            changes = [from_entry(fields[b"d"], entry_id.decode()) for entry_id, fields in found]
        except (redis.exceptions.RedisError, BreakerOpen, OSError, ValueError, KeyError):
            return None
        if any(change.begin for change in changes) or any(truncated(fields[b"d"]) for _, fields in found):
            return None
        return changes


def _entries(found: Any) -> list[tuple[str, dict[bytes, bytes]]]:
    """Entries of an XREAD answer, in either protocol version."""
    if not found:
        return []
    streams = found.items() if isinstance(found, dict) else found
    entries: list[tuple[str, dict[bytes, bytes]]] = []
    for _, rows in streams:
        # Protocol 3 wraps the entries of a stream once more.
        flat = rows[0] if rows and isinstance(rows[0], list) else rows
        entries += [(entry_id.decode(), fields) for entry_id, fields in flat]
    return entries


def _order(token: str) -> tuple[int, int]:
    milliseconds, _, sequence = token.partition("-")
    return int(milliseconds), int(sequence or 0)


class Upstreams:
    """One upstream a pipeline, made when first needed."""

    def __init__(
        self, catalog: Catalog, database: Database, client: redis.asyncio.Redis | None, guard: Guard
    ) -> None:
        self._parts = (catalog, database, client, guard)
        self._upstreams: dict[str, Upstream] = {}

    def get(self, pipeline: str) -> Upstream:
        """The upstream of a pipeline."""
        if pipeline not in self._upstreams:
            self._upstreams[pipeline] = Upstream(*self._parts, pipeline)
        return self._upstreams[pipeline]

    async def stop(self) -> None:
        """End all readers."""
        for upstream in self._upstreams.values():
            await upstream.stop()
