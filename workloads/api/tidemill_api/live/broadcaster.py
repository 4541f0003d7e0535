"""Reads the changes of a pipeline once in each process, for all connected clients.

Changes come from the Redis stream. Changes missing from the stream are read from Postgres.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import redis.asyncio

from tidemill_api.catalog import Catalog, PipelineModel
from tidemill_api.database import Connection, Database
from tidemill_api.database_errors import is_outage, is_table_error
from tidemill_api.live.change import Change, Entry, PartAssembler, Row, rows_by_key
from tidemill_api.live.database_reads import TableState, read_changed, read_table_states
from tidemill_api.live.progress import Progress
from tidemill_api.live.revision_tracker import RevisionTracker
from tidemill_api.live.snapshot import Snapshots
from tidemill_api.live.stream import ChangeStream, RedisUnreachable
from tidemill_chassis.resilience.config import Guard

log = logging.getLogger(__name__)

POLL_SECONDS = 1.0
SLOW_POLL_SECONDS = 5.0
"""Interval of queries to the database for changes that the stream lacks."""
LINGER_SECONDS = 10.0
READY_SECONDS = 5.0
DISCONNECT_SECONDS = 3.0


@dataclass(frozen=True)
class CloseReason:
    """The reason why the server disconnects clients."""

    code: str
    detail: str
    close_code: int


REMOVED = CloseReason("pipeline_removed", "the pipeline was deleted, or its API was disabled", 4404)
CHANGED = CloseReason(
    "pipeline_changed", "the pipeline's aggregations or access settings have changed; connect again", 1012
)
STOPPING = CloseReason("going_away", "this process is stopping; connect again", 1001)


class Subscriber(Protocol):
    """A receiver of changes, with methods that must not block."""

    def offer(self, change: Change) -> None:
        """Handle a change."""

    def require_snapshot(self, aggregation: str) -> None:
        """Handle a loss of changes, after which the subscriber needs a snapshot."""

    def advance(self, progress: Progress) -> None:
        """Handle new progress. All changes up to `progress` have already been passed to `offer`."""

    def end(self, close_reason: CloseReason) -> None:
        """Handle the end of the subscription."""


@dataclass(frozen=True)
class _DatabaseRead:
    table_state: TableState
    was_queried: bool = False
    rows: list[Row] | None = None


class Broadcaster:
    """Reads the changes of one pipeline, and passes the changes to all subscribers."""

    def __init__(
        self, catalog: Catalog, database: Database, client: redis.asyncio.Redis | None, guard: Guard, pipeline: str
    ) -> None:
        self._catalog, self._database, self._redis, self._guard = catalog, database, client, guard
        self._pipeline = pipeline
        self._subscribers: set[Subscriber] = set()
        self._task: asyncio.Task[None] | None = None
        self._ready, self._unused = asyncio.Event(), asyncio.Event()
        self._unused.set()
        self._trackers: dict[str, RevisionTracker] = {}
        self._unused_since = self._polled_at = 0.0
        self._may_miss_changes = False
        self._assembler = PartAssembler()
        self._stream_error = self._database_error = ""
        self.progress = Progress()
        self.snapshots = Snapshots(database)

    @contextmanager
    def subscription(self, subscriber: Subscriber) -> Iterator[None]:
        """Pass changes to a subscriber while the `with` block runs."""
        self._subscribers.add(subscriber)
        self._unused.clear()
        if self._task is None or self._task.done():
            self._ready.clear()
            self._task = asyncio.create_task(self._run())
        try:
            yield
        finally:
            self._subscribers.discard(subscriber)
            if not self._subscribers:
                self._unused_since = time.monotonic()
                self._unused.set()

    async def wait_ready(self) -> bool:
        """Wait at most READY_SECONDS for the first result from Postgres, and return whether Postgres answered."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._ready.wait(), READY_SECONDS)
        return self._ready.is_set()

    def delivered_rev(self, aggregation: str) -> int:
        """Return the newest revision of `aggregation` that was passed to subscribers."""
        tracker = self._trackers.get(aggregation)
        return tracker.max_rev if tracker else 0

    def disconnect_all(self, close_reason: CloseReason) -> None:
        """Disconnect all subscribers."""
        for subscriber in list(self._subscribers):
            subscriber.end(close_reason)

    async def wait_until_unused(self) -> None:
        """Wait until nobody is subscribed."""
        await self._unused.wait()

    async def stop(self) -> None:
        """Stop the reader."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        model = self._catalog.find(self._pipeline)
        self._trackers, self._stream_error, self._database_error = {}, "", ""
        self.progress = Progress()
        if model is not None:
            stream = ChangeStream(self._redis, self._guard, model.config.namespace, model.name)
            while self._is_needed():
                try:
                    await self._step(stream, model)
                except Exception:
                    log.exception("%s: live changes could not be read; the read is repeated", self._pipeline)
                    await asyncio.sleep(POLL_SECONDS)
                latest = self._catalog.find(self._pipeline)
                if latest is None or _has_changed(model, latest):
                    break
                model = latest
            else:
                return
        self.disconnect_all(CHANGED if self._catalog.find(self._pipeline) else REMOVED)

    def _is_needed(self) -> bool:
        return bool(self._subscribers) or time.monotonic() - self._unused_since < LINGER_SECONDS

    async def _step(self, stream: ChangeStream, model: PipelineModel) -> None:
        try:
            entries, missed = await stream.read()
            self._stream_error = ""
            self._may_miss_changes |= missed
            for entry in entries:
                complete_entry = self._assembler.add(entry)
                if complete_entry is None or has_other_version(complete_entry, model):
                    continue
                self._apply_entry(complete_entry)
        except RedisUnreachable as error:
            if not self._stream_error:
                log.warning("%s: live changes are polled from Postgres; Redis: %s", self._pipeline, error)
            self._stream_error, self._may_miss_changes = str(error), True
            await asyncio.sleep(POLL_SECONDS if self._ready.is_set() else 0)
        # Query the database more often if changes may be missing.
        if time.monotonic() - self._polled_at >= (POLL_SECONDS if self._may_miss_changes else SLOW_POLL_SECONDS):
            await self._poll_database(model)
        self._advance(None, {})

    def _apply_entry(self, entry: Entry) -> None:
        self._may_miss_changes |= entry.begin or entry.truncated
        tracker = self._trackers.get(entry.aggregation)
        if tracker is None or entry.begin:
            return
        if not entry.truncated:
            self._offer(tracker.add_streamed(entry.revs, rows_by_key(entry.rows)))
        self._advance(entry.watermark, {entry.aggregation: entry.closed_until})

    async def _poll_database(self, model: PipelineModel) -> None:
        self._polled_at = time.monotonic()

        async def work(connection: Connection) -> dict[str, _DatabaseRead]:
            table_states = await read_table_states(connection, model)
            return {
                name: await self._read_missing(connection, model, name, table_state)
                for name, table_state in table_states.items()
            }

        try:
            reads = await self._database.run(model.name, work, retry=False)
        except Exception as error:
            if not is_outage(error):
                raise
            self._database_error = str(error) or type(error).__name__
            return
        self._database_error, self._may_miss_changes = "", False
        for name, read in reads.items():
            self._apply_read(name, read)
        states = {name: read.table_state.state for name, read in reads.items()}
        for state in states.values():
            self._advance(state.watermark_ms, {})
        self._advance(None, {name: state.closed_until_ms for name, state in states.items()})
        self._ready.set()

    async def _read_missing(
        self, connection: Connection, model: PipelineModel, name: str, table_state: TableState
    ) -> _DatabaseRead:
        tracker = self._trackers.get(name)
        if tracker is None or _table_was_replaced(tracker, table_state):
            return _DatabaseRead(table_state)
        # The Redis stream usually delivers the newest changes. If changes may be missing, read the newest changes from
        # Postgres.
        until = table_state.state.rev if self._may_miss_changes else tracker.database_rev
        if tracker.complete_rev >= until:
            return _DatabaseRead(table_state)
        aggregation = model.aggregations[name]
        try:
            async with connection.transaction():
                rows = await read_changed(
                    connection, aggregation, table_state.state, tracker.position, excluded_revs=tracker.revs_beyond_gap
                )
        except Exception as error:
            if not is_table_error(error):
                raise
            # If `rows` is None, `_apply_read` makes the subscribers read a snapshot.
            log.warning("%s: changes of %s cannot be read: %s", self._pipeline, name, error)
            return _DatabaseRead(table_state, True)
        return _DatabaseRead(table_state, True, rows)

    def _apply_read(self, name: str, read: _DatabaseRead) -> None:
        state, table_oid = read.table_state.state, read.table_state.table_oid
        tracker = self._trackers.get(name)
        if tracker is None or _table_was_replaced(tracker, read.table_state):
            self._trackers[name] = RevisionTracker(name, table_oid, state.rev, state.closed_until_ms)
            if tracker is not None:
                self.progress = Progress()
                self._require_snapshot(name)
            return
        if read.was_queried:
            self._offer(tracker.add_from_database(state.rev, rows_by_key(read.rows or [])))
            if read.rows is None:
                self._require_snapshot(name)
        tracker.update_database_rev(state.rev, state.closed_until_ms)

    def _offer(self, change: Change | None) -> None:
        if change is not None:
            for subscriber in self._subscribers:
                subscriber.offer(change)

    def _require_snapshot(self, name: str) -> None:
        for subscriber in self._subscribers:
            subscriber.require_snapshot(name)

    def _advance(self, watermark_ms: int | None, closed_until_ms: dict[str, int | None]) -> None:
        before = self.progress
        closed = dict(before.closed_until_ms)
        for name, value in closed_until_ms.items():
            closed[name] = _max_or_none(closed.get(name), value)
        progress = Progress(
            watermark_ms=_max_or_none(before.watermark_ms, watermark_ms),
            closed_until_ms=closed,
            positions={name: tracker.position for name, tracker in self._trackers.items()},
            degraded=bool(self._stream_error or self._database_error),
        )
        if progress != before:
            self.progress = progress
            for subscriber in self._subscribers:
                subscriber.advance(progress)


def _max_or_none(one: int | None, other: int | None) -> int | None:
    return max((value for value in (one, other) if value is not None), default=None)


def _table_was_replaced(tracker: RevisionTracker, table_state: TableState) -> bool:
    return table_state.table_oid != tracker.table_oid or table_state.state.rev < tracker.complete_rev


def has_other_version(entry: Entry, model: PipelineModel) -> bool:
    """Return whether a stream entry and the model have different versions of the aggregation."""
    aggregation = model.aggregations.get(entry.aggregation)
    return aggregation is not None and entry.version not in (None, aggregation.version)


def _has_changed(before: PipelineModel, after: PipelineModel) -> bool:
    one, other = before.config, after.config
    return (one.aggregations, one.spec.aggregations, one.spec.auth) != (
        other.aggregations,
        other.spec.aggregations,
        other.spec.auth,
    )


class Broadcasters:
    """The broadcasters of all pipelines."""

    def __init__(self, catalog: Catalog, database: Database, client: redis.asyncio.Redis | None, guard: Guard) -> None:
        self._arguments = (catalog, database, client, guard)
        self._broadcasters: dict[str, Broadcaster] = {}
        self.stopping = False

    def get(self, pipeline: str) -> Broadcaster:
        """Return the broadcaster of a pipeline."""
        if pipeline not in self._broadcasters:
            self._broadcasters[pipeline] = Broadcaster(*self._arguments, pipeline)
        return self._broadcasters[pipeline]

    async def disconnect_all(self) -> None:
        """Disconnect all clients, and wait for at most DISCONNECT_SECONDS."""
        self.stopping = True
        for broadcaster in self._broadcasters.values():
            broadcaster.disconnect_all(STOPPING)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(DISCONNECT_SECONDS):
                for broadcaster in self._broadcasters.values():
                    await broadcaster.wait_until_unused()

    async def stop(self) -> None:
        """Disconnect all clients, and stop reading changes."""
        await self.disconnect_all()
        for broadcaster in self._broadcasters.values():
            await broadcaster.stop()
