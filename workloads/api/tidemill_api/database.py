"""Reads from Postgres.

Each request reads one snapshot of the database in a read-only transaction.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import psycopg

from tidemill_api import metrics
from tidemill_api.database_errors import QueryTooLong, affects_all_pipelines, is_not_ready
from tidemill_api.pipeline_guards import PipelineGuards
from tidemill_chassis.postgres import KEEPALIVE, MARGIN_SECONDS, BoundedAsyncConnection
from tidemill_chassis.resilience.config import BreakerOpen, Deadline, DeadlineExceeded, Guard
from tidemill_chassis.web.problems import unavailable
from tidemill_contract.runtime import WorkloadSettings

T = TypeVar("T")
Connection = psycopg.AsyncConnection[tuple[Any, ...]]
Work = Callable[[Connection], Awaitable[T]]
MAX_CONNECTIONS = 4
IDLE_SECONDS = 60.0
CONNECT_SECONDS = 5
MAX_STREAMS, SLOT_SECONDS = 2, 10.0
"""MAX_STREAMS limits the concurrent streamed answers of a pipeline. SLOT_SECONDS limits the wait for a connection."""
QUERY_SHARE = 0.8
"""Postgres ends a query after this share of the guard's timeout. The error then arrives within the timeout."""


class Pool:
    """The Postgres connections of one pipeline, which use the pipeline's read-only login."""

    def __init__(self, settings: WorkloadSettings, pipeline: str, query_seconds: float) -> None:
        self._settings, self._pipeline, self._query_seconds = settings, pipeline, query_seconds
        self.slots, self.stream_slots = asyncio.Semaphore(MAX_CONNECTIONS), asyncio.Semaphore(MAX_STREAMS)
        self._idle: list[tuple[BoundedAsyncConnection, float]] = []
        self._closed = False

    async def run(self, work: Work[T]) -> T:
        """Run `work` in a read-only transaction with one snapshot of the database, and return its result.

        Raises:
            psycopg.Error: Postgres cannot be reached, or returns an error.
        """
        connection, reused = await self._acquire()
        try:
            return await self._run_in_transaction(connection, work)
        except psycopg.OperationalError:
            # The connection may have broken while it was idle, so repeat the work on a new connection.
            if not reused or not connection.closed:
                raise
            await self.close_idle()
        return await self._run_in_transaction(await self._connect(), work)

    async def _run_in_transaction(self, connection: BoundedAsyncConnection, work: Work[T]) -> T:
        healthy = False
        try:
            async with connection.transaction():
                result = await self._run_with_timeout(connection, work)
            healthy = True
            return result
        except psycopg.Error:
            healthy = not connection.closed
            raise
        finally:
            # Do not reuse a connection with an interrupted statement.
            await self._release(connection, healthy)

    async def _run_with_timeout(self, connection: BoundedAsyncConnection, work: Work[T]) -> T:
        timer = asyncio.timeout(self._query_seconds + MARGIN_SECONDS / 2)
        try:
            async with timer:
                return await work(connection)
        except TimeoutError:
            # Postgres itself ends each statement after `statement_timeout`, unless Postgres hangs.
            if not timer.expired() or time.monotonic() - connection.statement_sent_at >= self._query_seconds:
                raise
            raise QueryTooLong(self._query_seconds) from None

    @asynccontextmanager
    async def stream(self) -> AsyncIterator[Connection]:
        """Yield a connection inside a transaction."""
        connection, _ = await self._acquire()
        healthy = False
        try:
            async with connection.transaction():
                yield connection
            healthy = True
        finally:
            await self._release(connection, healthy)

    async def _acquire(self) -> tuple[BoundedAsyncConnection, bool]:
        while self._idle:
            connection, idle_since = self._idle.pop()
            if not connection.closed and time.monotonic() - idle_since < IDLE_SECONDS:
                return connection, True
            await self._close(connection)
        return await self._connect(), False

    async def _release(self, connection: BoundedAsyncConnection, healthy: bool) -> None:
        if healthy and not connection.closed and not self._closed:
            self._idle.append((connection, time.monotonic()))
        else:
            await asyncio.shield(self._close(connection))

    async def _connect(self) -> BoundedAsyncConnection:
        login = self._settings.credentials(self._pipeline, "reader")
        connection = await BoundedAsyncConnection.connect(
            host=self._settings.postgres_host,
            port=self._settings.postgres_port,
            dbname=self._settings.postgres_database,
            **self._settings.postgres_tls,
            user=login.user,
            password=login.password,
            autocommit=False,
            connect_timeout=CONNECT_SECONDS,
            **KEEPALIVE,
            application_name=f"tidemill-api/{self._pipeline}",
            options=f"-c TimeZone=UTC -c statement_timeout={int(self._query_seconds * 1000)}"
            " -c client_min_messages=warning -c idle_in_transaction_session_timeout=60000"
            " -c default_transaction_read_only=on -c default_transaction_isolation=repeatable\\ read -c jit=off",
        )
        connection.answer_seconds = self._query_seconds + MARGIN_SECONDS
        metrics.DB_CONNECTIONS.inc()
        return connection

    async def _close(self, connection: Connection) -> None:
        metrics.DB_CONNECTIONS.dec()
        await connection.close()

    async def close_idle(self) -> None:
        """Close the idle connections."""
        idle, self._idle = self._idle, []
        for connection, _ in idle:
            await self._close(connection)

    async def close_expired(self) -> None:
        """Close the connections that have been idle for IDLE_SECONDS."""
        now = time.monotonic()
        old = [entry for entry in self._idle if now - entry[1] >= IDLE_SECONDS]
        self._idle = [entry for entry in self._idle if now - entry[1] < IDLE_SECONDS]
        for connection, _ in old:
            await self._close(connection)

    async def close(self) -> None:
        """Close idle connections now, and busy connections when their work ends."""
        self._closed = True
        await self.close_idle()


class Database:
    """The Postgres connections of all pipelines.

    Attributes:
        error: the latest failure of Postgres, or an empty text after a success.
        has_answered: whether Postgres has ever answered.
    """

    def __init__(self, settings: WorkloadSettings, guard: Guard) -> None:
        self._settings, self.guard = settings, guard
        self._pools: dict[str, Pool] = {}
        self._guards = PipelineGuards(guard)
        self.error = ""
        self.has_answered = False

    def pool(self, pipeline: str) -> Pool:
        """Return the connections of a pipeline."""
        pool = self._pools.get(pipeline)
        if pool is None:
            pool = self._pools[pipeline] = Pool(self._settings, pipeline, self.guard.timeout_seconds * QUERY_SHARE)
        return pool

    async def run(self, pipeline: str, work: Work[T], *, deadline: Deadline | None = None, retry: bool = True) -> T:
        """Call `work` with a connection of the pipeline, with retries, and return the result of `work`.

        Raises:
            QueryTooLong: the query took too long.
            OSError: the pipeline's credentials do not exist.
            Problem: there are too many concurrent queries (503).
        """
        pool = self.pool(pipeline)
        async with _slot(pool.slots, deadline):
            try:
                result: T = await self._guards.get(pipeline).acall(pool.run, work, deadline=deadline, retry=retry)
            except Exception as error:
                self._record_error(error)
                raise
        self._record_success()
        return result

    @asynccontextmanager
    async def stream(self, pipeline: str, deadline: Deadline | None = None) -> AsyncIterator[Connection]:
        """Yield a connection inside a transaction, for a streamed answer.

        Raises:
            OSError: the pipeline's credentials do not exist.
            Problem: there are too many concurrent queries (503).
        """
        pool = self.pool(pipeline)
        async with _slot(pool.stream_slots, deadline):
            guard = self._guards.get(pipeline)
            ticket = guard.admit()
            try:
                async with pool.stream() as connection:
                    yield connection
            except BaseException as error:
                self._record_error(error)
                guard.record_result(ticket, error)
                raise
            guard.record_result(ticket)
            self._record_success()

    async def is_reachable(self, pipelines: Sequence[str]) -> bool:
        """Return whether Postgres answers a query.

        If no pipeline has a login yet, return whether Postgres accepts a TCP connection.
        """
        for pipeline in pipelines:
            try:
                # Do not count the probe towards the limit of concurrent queries.
                await self.guard.aprobe(self.pool(pipeline).run, _ping)
                self._mark_reachable()
                return True
            except Exception as error:
                if not is_not_ready(error):
                    if not isinstance(error, BreakerOpen):
                        self.error = str(error) or type(error).__name__
                    return False
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                _, writer = await asyncio.open_connection(self._settings.postgres_host, self._settings.postgres_port)
        except OSError as error:
            self.error = str(error) or type(error).__name__
            return False
        writer.close()
        self._mark_reachable()
        return True

    def _mark_reachable(self) -> None:
        if self.error:
            self._guards.clear()
        self.error, self.has_answered = "", True

    def _record_success(self) -> None:
        self.guard.record_success()
        self._mark_reachable()

    def _record_error(self, error: BaseException) -> None:
        if not isinstance(error, BreakerOpen | DeadlineExceeded) and affects_all_pipelines(error):
            self.guard.record_failure(error)
            self.error = str(error) or type(error).__name__

    async def close_unused(self, pipelines: set[str]) -> None:
        """Close idle connections after IDLE_SECONDS, and all connections of pipelines not in `pipelines`."""
        for name, pool in list(self._pools.items()):
            if name in pipelines:
                await pool.close_expired()
            else:
                self._guards.forget(name)
                await self._pools.pop(name).close()

    async def close(self) -> None:
        """Close all connections."""
        for pool in self._pools.values():
            await pool.close()


async def _ping(connection: Connection) -> None:
    await connection.execute("SELECT 1")


@asynccontextmanager
async def _slot(slots: asyncio.Semaphore, deadline: Deadline | None) -> AsyncIterator[None]:
    seconds = SLOT_SECONDS if deadline is None else min(SLOT_SECONDS, deadline.remaining())
    try:
        async with asyncio.timeout(seconds):
            await slots.acquire()
    except TimeoutError:
        raise unavailable("busy", "too many concurrent queries of this pipeline; try again later", 2) from None
    try:
        yield
    finally:
        slots.release()
