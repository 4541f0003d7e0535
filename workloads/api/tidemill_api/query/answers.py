"""Answers queries from the cache, or from one snapshot of the database."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar

import msgspec

from tidemill_api import metrics
from tidemill_api.cache import Answer, AnswerCache, CacheEntry
from tidemill_api.catalog import PipelineModel
from tidemill_api.database import Connection, Database
from tidemill_api.database_errors import as_problem
from tidemill_api.describe import describe
from tidemill_api.formats.base import Writer, WriterFactory
from tidemill_api.formats.offload import run_encoder
from tidemill_api.query import sql
from tidemill_api.query.aggregate import MAX_FILL_ROWS, MAX_STREAM_ROWS, AggregateQuery, fill_problem
from tidemill_api.query.listings import ListingQuery, row_dict
from tidemill_api.query.pages import AggregationState, listing_answer, make_answer, window_answer
from tidemill_api.query.selection import Binder
from tidemill_chassis.resilience.config import Deadline
from tidemill_chassis.web.problems import unavailable
from tidemill_contract import names
from tidemill_contract.duration import parse_ms
from tidemill_contract.functions.fill_history import FillHistory
from tidemill_contract.tables import aggregations

T = TypeVar("T")
FETCH_ROWS = 2_000
MAX_UNVERSIONED_TTL_SECONDS = 1.0
"""Seconds for which the cache answers requests for descriptions and listings without a query to the database."""


async def read_state(connection: Connection, model: PipelineModel, aggregation: str, version: int) -> AggregationState:
    """Read the state of an aggregation.

    Raises:
        Problem: the tables of the aggregation do not exist yet.
    """
    cursor = await connection.execute(aggregations.state(model.schema), (aggregation, version))
    row = await cursor.fetchone()
    if row is None:
        raise unavailable("pipeline_not_ready", f"{aggregation} is not set up yet; try again in a moment", 5)
    identity, rev, closed_until, watermark, *history = row
    fill_history = FillHistory.read(*history)
    # A new spec can give the same names a new meaning. The identity therefore contains the generation of the spec.
    return AggregationState(
        f"{identity}/{model.config.generation}/{fill_history.layout_number}", rev, closed_until, watermark, fill_history
    )


async def read_windows(
    connection: Connection, query: AggregateQuery, state: AggregationState
) -> tuple[list[tuple[Any, ...]], str]:
    """Return the rows and the SQL of a query. More than `limit` rows mean that another page follows."""
    reduced = sql.narrow_to_cursor(_mask_incomplete(query, state))
    binder = Binder()
    horizon = sql.horizon_sql(reduced, binder)
    if horizon is not None:
        cursor = await connection.execute(horizon, binder.values)
        row = await cursor.fetchone()
        reduced = sql.limit_to_horizon(reduced, row[0] if row else None)
    binder = Binder()
    text = sql.statement(reduced, binder, state.closed_until)
    cursor = await connection.execute(text, binder.values)
    rows = await cursor.fetchall()
    if not rows:
        await _check_fill_rows(connection, reduced)
    return rows, text


async def _check_fill_rows(connection: Connection, query: AggregateQuery) -> None:
    if query.fill == "none":
        return
    binder = Binder()
    cursor = await connection.execute(sql.count_groups_sql(query, binder), binder.values)
    row = await cursor.fetchone()
    groups = row[0] if row else 0
    if groups * query.windows_per_group > MAX_FILL_ROWS:
        raise fill_problem(query, groups)


def _mask_incomplete(query: AggregateQuery, state: AggregationState) -> AggregateQuery:
    return replace(query, model=query.model.mask_incomplete(state.fill_history))


@dataclass(frozen=True)
class Stream:
    """A streamed answer.

    Attributes:
        pieces: the body, as chunks of bytes.
        cursor: the cursor of further rows, or an empty text if there are no further rows.
    """

    pieces: AsyncGenerator[bytes, None]
    cursor: str = ""


class Answers:
    """Answers all kinds of queries, from the cache or the database."""

    def __init__(self, database: Database, cache: AnswerCache) -> None:
        self._database, self._cache = database, cache

    async def get_windows(
        self, model: PipelineModel, query: AggregateQuery, deadline: Deadline | None
    ) -> tuple[CacheEntry, bool]:
        """Return a page of windows as JSON, and whether the page is stale.

        Raises:
            Problem: the database does not answer, and there is no older answer.
        """

        async def compute(cached: Answer | None) -> Answer | None:
            started = time.time()

            async def work(connection: Connection) -> tuple[list[tuple[Any, ...]], AggregationState, str, bool] | None:
                state = await read_state(connection, model, query.model.name, query.model.version)
                final = query.is_final(state.closed_until_ms)
                # New events do not change a final answer. The version of a final answer has neither revision nor
                # watermark.
                version = (
                    f"{state.identity}/final"
                    if final
                    else f"{state.identity}/{state.rev}/{state.closed_until_ms}/{state.watermark_ms}"
                )
                if cached is not None and cached.version == version:
                    return None
                rows, _ = await read_windows(connection, query, state)
                return rows, state, version, final

            page = await self._database.run(model.name, work, deadline=deadline, retry=cached is None)
            if page is None:
                return None
            rows, state, version, final = page
            return await run_encoder(
                query.columns,
                rows,
                lambda: window_answer(query, rows, state, version, final=final, started=started),
            )

        ttl = parse_ms(model.config.spec.api.cache_ttl) / 1000
        # A replay can change the aggregation's version without a new spec. The cache key needs the version.
        query_key = f"aggregates\n{query.model.name}\n{query.model.version}\n{query.key}"
        return await self._get(model, query_key, "aggregates", ttl, compute)

    async def get_listing(
        self, model: PipelineModel, query: ListingQuery, deadline: Deadline | None
    ) -> tuple[CacheEntry, bool]:
        """Return a page of anomalies, events or dead letters as JSON, and whether the page is stale.

        Raises:
            Problem: the database does not answer, and there is no older answer.
        """

        async def compute(cached: Answer | None) -> Answer | None:
            started = time.time()

            async def work(connection: Connection) -> list[tuple[Any, ...]]:
                binder = Binder()
                cursor = await connection.execute(query.statement(model.schema, binder), binder.values)
                return await cursor.fetchall()

            rows = await self._database.run(model.name, work, deadline=deadline, retry=cached is None)
            return await run_encoder(query.listing.columns, rows, lambda: listing_answer(query, rows, started))

        kind = query.listing.kind
        ttl = min(MAX_UNVERSIONED_TTL_SECONDS, parse_ms(model.config.spec.api.cache_ttl) / 1000)
        return await self._get(model, query.key, kind, ttl, compute)

    async def get_description(self, model: PipelineModel, deadline: Deadline | None) -> tuple[CacheEntry, bool]:
        """Return a pipeline's description as JSON, and whether the description is stale.

        Raises:
            Problem: the database does not answer, and there is no older answer.
        """

        async def compute(cached: Answer | None) -> Answer | None:
            started = time.time()
            body = msgspec.json.encode(
                await self._database.run(
                    model.name, lambda c: describe(c, model), deadline=deadline, retry=cached is None
                )
            )
            return make_answer(body, started, rows=0)

        ttl = min(MAX_UNVERSIONED_TTL_SECONDS, parse_ms(model.config.spec.api.cache_ttl) / 1000)
        return await self._get(model, "describe", "pipelines", ttl, compute)

    async def _get(
        self, model: PipelineModel, query_key: str, operation: str, ttl: float, compute: Any
    ) -> tuple[CacheEntry, bool]:
        config = model.config
        key = f"{names.redis_prefix(config.namespace, config.name)}\n{config.generation}\n{query_key}"
        try:
            return await self._cache.get(key, operation, ttl, compute)
        except Exception as error:
            problem = as_problem(error, model.name)
            if problem is None:
                raise
            raise problem from error

    async def stream_windows(
        self, model: PipelineModel, query: AggregateQuery, writer_factory: WriterFactory, deadline: Deadline | None
    ) -> Stream:
        """Return windows as a stream.

        The method reads the first rows before it returns. An early error can then set the status code.

        Raises:
            Problem: the database does not answer, or is busy.
        """
        cursors: list[str] = []

        async def pieces() -> AsyncGenerator[bytes, None]:
            async with self._database.stream(model.name, deadline) as connection:
                state = await read_state(connection, model, query.model.name, query.model.version)
                binder, masked = Binder(), _mask_incomplete(query, state)
                narrowed = sql.narrow_to_cursor(masked)
                text = sql.statement(narrowed, binder, state.closed_until)
                if query.page.limit < MAX_STREAM_ROWS:
                    last_query, last_binder = replace(narrowed, page=replace(query.page, limit=1)), Binder()
                    last_text = sql.statement(last_query, last_binder, state.closed_until)
                    last_row = await _row_before_next_page(connection, last_text, last_binder, query.page.limit)
                    cursors.extend([query.page.cursor(sql.row_dict(query, last_row))] if last_row else [])
                rows = _check_if_empty(
                    self._read_batches(connection, text, binder, query.page.limit),
                    lambda: _check_fill_rows(connection, masked),
                )
                async for piece in _encode_batches(rows, writer_factory(query.columns, {}), "aggregates"):
                    yield piece

        return Stream(await _start_stream(pieces(), model.name), *cursors)

    async def stream_listing(
        self, model: PipelineModel, query: ListingQuery, writer_factory: WriterFactory, deadline: Deadline | None
    ) -> Stream:
        """Return a listing as a stream.

        The method reads the first rows before it returns. An early error can then set the status code.

        Raises:
            Problem: the database does not answer, or is busy.
        """
        listing = query.listing
        cursors: list[str] = []

        async def pieces() -> AsyncGenerator[bytes, None]:
            async with self._database.stream(model.name, deadline) as connection:
                binder = Binder()
                text = query.statement(model.schema, binder)
                if query.page.limit < MAX_STREAM_ROWS:
                    last_query, last_binder = replace(query, page=replace(query.page, limit=1)), Binder()
                    last_text = last_query.statement(model.schema, last_binder)
                    last_row = await _row_before_next_page(connection, last_text, last_binder, query.page.limit)
                    cursors.extend([query.page.cursor(row_dict(listing, last_row))] if last_row else [])
                rows = self._read_batches(connection, text, binder, query.page.limit)
                writer = writer_factory(listing.columns, listing.converters)
                async for piece in _encode_batches(rows, writer, listing.kind):
                    yield piece

        return Stream(await _start_stream(pieces(), model.name), *cursors)

    async def _read_batches(
        self, connection: Connection, text: str, binder: Binder, limit: int
    ) -> AsyncGenerator[list[tuple[Any, ...]], None]:
        rows_left, seconds = limit, self._database.guard.timeout_seconds
        async with connection.cursor(name="rows") as cursor:
            async with asyncio.timeout(seconds):
                await cursor.execute(text, binder.values)
            while rows_left > 0:
                async with asyncio.timeout(seconds):
                    rows = await cursor.fetchmany(min(FETCH_ROWS, rows_left))
                if not rows:
                    return
                rows_left -= len(rows)
                yield rows


async def _row_before_next_page(
    connection: Connection, text: str, binder: Binder, limit: int
) -> tuple[Any, ...] | None:
    cursor = await connection.execute(f"{text} OFFSET {limit - 1}", binder.values)
    rows = await cursor.fetchall()
    return rows[0] if len(rows) > 1 else None


async def _check_if_empty(batches: AsyncIterator[T], check: Callable[[], Awaitable[None]]) -> AsyncGenerator[T, None]:
    empty = True
    async for batch in batches:
        empty = False
        yield batch
    if empty:
        await check()


async def _encode_batches(
    batches: AsyncIterator[list[tuple[Any, ...]]], writer: Writer, kind: str
) -> AsyncGenerator[bytes, None]:
    # Send the head of the body together with the first rows. Before the head is sent, a failed query can still set the
    # status code.
    counter, head = metrics.EVENTS_QUERIED.labels(kind), writer.head()
    async for rows in batches:
        counter.inc(len(rows))
        yield head + await run_encoder(writer.columns, rows, partial(writer.batch, rows))
        head = b""
    yield head + writer.tail()


async def _start_stream(pieces: AsyncGenerator[bytes, None], pipeline: str) -> AsyncGenerator[bytes, None]:
    try:
        first = await anext(pieces, b"")
    except Exception as error:
        raise as_problem(error, pipeline) or error from error

    async def all_pieces() -> AsyncGenerator[bytes, None]:
        async with contextlib.aclosing(pieces):
            yield first
            async for piece in pieces:
                yield piece

    return all_pieces()
