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
from tidemill_api.database_errors import of_one_table, outage
from tidemill_api.live.change import Change, Entry, Parts, Row, keyed
from tidemill_api.live.database_reads import Standing, read_changed, read_standings
from tidemill_api.live.ledger import Ledger
from tidemill_api.live.progress import Progress
from tidemill_api.live.snapshot import Snapshots
from tidemill_api.live.stream import ChangeStream, Unreachable
from tidemill_chassis.resilience.config import Guard

log = logging.getLogger(__name__)

POLL_SECONDS = 1.0
LOOK_SECONDS = 5.0
"""Interval of queries to the database for changes that the stream lacks."""
LINGER_SECONDS = 10.0
READY_SECONDS = 5.0
LEAVE_SECONDS = 3.0


@dataclass(frozen=True)
class Ending:
    """The reason why the server disconnects clients."""

    code: str
    detail: str
    close_code: int


REMOVED = Ending("pipeline_removed", "the pipeline was deleted, or its API was disabled", 4404)
CHANGED = Ending("pipeline_changed", "the pipeline's aggregations or access settings have changed; connect again", 1012)
STOPPING = Ending("going_away", "this process is stopping; connect again", 1001)


class Subscriber(Protocol):
    """A receiver of changes, with methods that must not block."""

    def offer(self, change: Change) -> None:
        """Handle a change."""

    def lose(self, aggregation: str) -> None:
        """Handle a loss of changes, after which the subscriber needs a snapshot."""

    def advance(self, progress: Progress) -> None:
        """Handle new progress. All changes up to `progress` have already been passed to `offer`."""

    def end(self, ending: Ending) -> None:
        """Handle the end of the subscription."""


@dataclass(frozen=True)
class _Found:
    standing: Standing
    asked: bool = False
    rows: list[Row] | None = None


class Upstream:
    """Reads the changes of one pipeline, and passes the changes to all subscribers."""

    def __init__(
        self, catalog: Catalog, database: Database, client: redis.asyncio.Redis | None, guard: Guard, pipeline: str
    ) -> None:
        self._catalog, self._database, self._client, self._guard = catalog, database, client, guard
        self._pipeline = pipeline
        self._subscribers: set[Subscriber] = set()
        self._task: asyncio.Task[None] | None = None
        self._ready, self._deserted = asyncio.Event(), asyncio.Event()
        self._deserted.set()
        self._ledgers: dict[str, Ledger] = {}
        self._left_at = self._looked_at = 0.0
        self._urgent = False
        self._parts = Parts()
        self._stream_error = self._database_error = ""
        self.progress = Progress()
        self.snapshots = Snapshots(database)

    @contextmanager
    def subscribed(self, subscriber: Subscriber) -> Iterator[None]:
        """Pass changes to a subscriber while the `with` block runs."""
        self._subscribers.add(subscriber)
        self._deserted.clear()
        if self._task is None or self._task.done():
            self._ready.clear()
            self._task = asyncio.create_task(self._run())
        try:
            yield
        finally:
            self._subscribers.discard(subscriber)
            if not self._subscribers:
                self._left_at = time.monotonic()
                self._deserted.set()

    async def ready(self) -> bool:
        """Wait at most READY_SECONDS for the first result from Postgres, and return whether Postgres answered."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._ready.wait(), READY_SECONDS)
        return self._ready.is_set()

    def delivered(self, aggregation: str) -> int:
        """Return the newest revision of `aggregation` that was passed to subscribers."""
        ledger = self._ledgers.get(aggregation)
        return ledger.label if ledger else 0

    def leave(self, ending: Ending) -> None:
        """Disconnect all subscribers."""
        for subscriber in list(self._subscribers):
            subscriber.end(ending)

    async def deserted(self) -> None:
        """Wait until nobody is subscribed."""
        await self._deserted.wait()

    async def stop(self) -> None:
        """Stop the reader."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        model = self._catalog.find(self._pipeline)
        self._ledgers, self._stream_error, self._database_error = {}, "", ""
        self.progress = Progress()
        if model is not None:
            stream = ChangeStream(self._client, self._guard, model.config.namespace, model.name)
            while self._wanted():
                try:
                    await self._step(stream, model)
                except Exception:
                    log.exception("%s: live changes could not be read; the read is repeated", self._pipeline)
                    await asyncio.sleep(POLL_SECONDS)
                latest = self._catalog.find(self._pipeline)
                if latest is None or _differ(model, latest):
                    break
                model = latest
            else:
                return
        self.leave(CHANGED if self._catalog.find(self._pipeline) else REMOVED)

    def _wanted(self) -> bool:
        return bool(self._subscribers) or time.monotonic() - self._left_at < LINGER_SECONDS

    async def _step(self, stream: ChangeStream, model: PipelineModel) -> None:
        try:
            entries, missed = await stream.read()
            self._stream_error = ""
            self._urgent |= missed
            for entry in entries:
                whole = self._parts.take(entry)
                if whole is None or of_another_version(whole, model):
                    continue
                self._take(whole)
        except Unreachable as error:
            if not self._stream_error:
                log.warning("%s: live changes are polled from Postgres; Redis: %s", self._pipeline, error)
            self._stream_error, self._urgent = str(error), True
            await asyncio.sleep(POLL_SECONDS if self._ready.is_set() else 0)
        # Query the database more often if changes may be missing (`_urgent`).
        if time.monotonic() - self._looked_at >= (POLL_SECONDS if self._urgent else LOOK_SECONDS):
            await self._look(model)
        self._advance(None, {})

    def _take(self, entry: Entry) -> None:
        self._urgent |= entry.begin or entry.truncated
        ledger = self._ledgers.get(entry.aggregation)
        if ledger is None or entry.begin:
            return
        if not entry.truncated:
            self._offer(ledger.take(entry.revs, keyed(entry.rows)))
        self._advance(entry.watermark, {entry.aggregation: entry.closed_until})

    async def _look(self, model: PipelineModel) -> None:
        self._looked_at = time.monotonic()

        async def work(connection: Connection) -> dict[str, _Found]:
            standings = await read_standings(connection, model)
            return {
                name: await self._missing(connection, model, name, standing) for name, standing in standings.items()
            }

        try:
            reads = await self._database.run(model.name, work, retry=False)
        except Exception as error:
            if not outage(error):
                raise
            self._database_error = str(error) or type(error).__name__
            return
        self._database_error, self._urgent = "", False
        for name, read in reads.items():
            self._settle(name, read)
        states = {name: read.standing.state for name, read in reads.items()}
        for state in states.values():
            self._advance(state.watermark_ms, {})
        self._advance(None, {name: state.closed_until_ms for name, state in states.items()})
        self._ready.set()

    async def _missing(self, connection: Connection, model: PipelineModel, name: str, standing: Standing) -> _Found:
        ledger = self._ledgers.get(name)
        if ledger is None or _replaced(ledger, standing):
            return _Found(standing)
        # The Redis stream usually delivers the newest changes. If changes may be missing (`_urgent`), read the newest
        # changes from Postgres.
        until = standing.state.rev if self._urgent else ledger.expected
        if ledger.complete >= until:
            return _Found(standing)
        aggregation = model.aggregations[name]
        try:
            async with connection.transaction():
                rows = await read_changed(connection, aggregation, standing.state, ledger.mark, but=ledger.seen)
        except Exception as error:
            if not of_one_table(error):
                raise
            # If `rows` is None, `_settle` makes the subscribers read a snapshot.
            log.warning("%s: changes of %s cannot be read: %s", self._pipeline, name, error)
            return _Found(standing, True)
        return _Found(standing, True, rows)

    def _settle(self, name: str, read: _Found) -> None:
        state, table = read.standing.state, read.standing.table
        ledger = self._ledgers.get(name)
        if ledger is None or _replaced(ledger, read.standing):
            self._ledgers[name] = Ledger(name, table, state.rev, state.closed_until_ms)
            if ledger is not None:
                self.progress = Progress()
                self._lose(name)
            return
        if read.asked:
            self._offer(ledger.fill(state.rev, keyed(read.rows or [])))
            if read.rows is None:
                self._lose(name)
        ledger.look(state.rev, state.closed_until_ms)

    def _offer(self, change: Change | None) -> None:
        if change is not None:
            for subscriber in self._subscribers:
                subscriber.offer(change)

    def _lose(self, name: str) -> None:
        for subscriber in self._subscribers:
            subscriber.lose(name)

    def _advance(self, watermark_ms: int | None, closed_until_ms: dict[str, int | None]) -> None:
        before = self.progress
        closed = dict(before.closed_until_ms)
        for name, value in closed_until_ms.items():
            closed[name] = _later(closed.get(name), value)
        progress = Progress(
            watermark_ms=_later(before.watermark_ms, watermark_ms),
            closed_until_ms=closed,
            marks={name: ledger.mark for name, ledger in self._ledgers.items()},
            degraded=bool(self._stream_error or self._database_error),
        )
        if progress != before:
            self.progress = progress
            for subscriber in self._subscribers:
                subscriber.advance(progress)


def _later(one: int | None, other: int | None) -> int | None:
    return max((value for value in (one, other) if value is not None), default=None)


def _replaced(ledger: Ledger, standing: Standing) -> bool:
    return standing.table != ledger.table or standing.state.rev < ledger.complete


def of_another_version(entry: Entry, model: PipelineModel) -> bool:
    """Return whether a stream entry and the model have different versions of the aggregation."""
    aggregation = model.aggregations.get(entry.aggregation)
    return aggregation is not None and entry.version not in (None, aggregation.version)


def _differ(before: PipelineModel, after: PipelineModel) -> bool:
    one, other = before.config, after.config
    return (one.aggregations, one.spec.aggregations, one.spec.auth) != (
        other.aggregations,
        other.spec.aggregations,
        other.spec.auth,
    )


class Upstreams:
    """The `Upstream` object of each pipeline."""

    def __init__(self, catalog: Catalog, database: Database, client: redis.asyncio.Redis | None, guard: Guard) -> None:
        self._parts = (catalog, database, client, guard)
        self._upstreams: dict[str, Upstream] = {}
        self.stopping = False

    def get(self, pipeline: str) -> Upstream:
        """Return the `Upstream` of a pipeline, which reads the pipeline's changes."""
        if pipeline not in self._upstreams:
            self._upstreams[pipeline] = Upstream(*self._parts, pipeline)
        return self._upstreams[pipeline]

    async def leave(self) -> None:
        """Disconnect all clients, and wait for at most LEAVE_SECONDS."""
        self.stopping = True
        for upstream in self._upstreams.values():
            upstream.leave(STOPPING)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LEAVE_SECONDS):
                for upstream in self._upstreams.values():
                    await upstream.deserted()

    async def stop(self) -> None:
        """Disconnect all clients, and stop reading changes."""
        await self.leave()
        for upstream in self._upstreams.values():
            await upstream.stop()
