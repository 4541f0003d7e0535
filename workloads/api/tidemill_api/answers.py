"""Answers to queries: from the cache, else from one snapshot of the database, encoded once."""

from __future__ import annotations

import datetime as dt
import hashlib
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from tidemill_api import aggregate_query as aq
from tidemill_api.cache import Answer, AnswerCache, Slot
from tidemill_api.catalog import PipelineModel
from tidemill_api.database import Connection, Database, as_problem
from tidemill_api.describe import describe, time_ms
from tidemill_api.listings import ListingQuery, shown_row
from tidemill_api.problems import unavailable
from tidemill_api.rows import CSV, RowEncoder, page_body
from tidemill_api.selection import Binder
from tidemill_api.values import EPOCH
from tidemill_contract import names
from tidemill_contract.duration import parse_ms
from tidemill_contract.resilience import Deadline

FETCH_ROWS = 2_000
READ_LIMIT = 5_000
QUICK_SECONDS = 1.0
"""How long descriptions and lists may be reused."""


@dataclass(frozen=True)
class State:
    """What the database says of an aggregation, in the snapshot that its rows are read in."""

    id: int
    rev: int
    closed_until_ms: int | None
    watermark_ms: int | None

    @property
    def closed_until(self) -> dt.datetime | None:
        """As a time."""
        return None if self.closed_until_ms is None else EPOCH + dt.timedelta(milliseconds=self.closed_until_ms)


async def read_state(connection: Connection, model: PipelineModel, aggregation: str, version: int) -> State:
    """The state of an aggregation.

    Raises:
        Problem: its tables are not there yet.
    """
    cursor = await connection.execute(
        f"SELECT a.id, a.rev, a.closed_until, r.watermark FROM {model.schema}._aggregations AS a"
        f" LEFT JOIN {model.schema}._readers AS r ON r.reader = a.reader WHERE a.name = %s AND a.version = %s",
        (aggregation, version),
    )
    row = await cursor.fetchone()
    if row is None:
        raise unavailable(f"{aggregation} is not set up yet; try again in a moment", 5, code="pipeline_not_ready")
    return State(*row)


async def read_windows(
    connection: Connection, query: aq.AggregateQuery, state: State
) -> tuple[list[tuple[Any, ...]], str]:
    """The rows of a query (one more than its limit, if there are more), and its statement."""
    reduced = aq.narrowed(query)
    binder = Binder()
    horizon = aq.horizon_sql(reduced, binder)
    if horizon is not None:
        cursor = await connection.execute(horizon, binder.values)
        found = await cursor.fetchone()
        reduced = aq.within(reduced, found[0] if found else None)
    binder = Binder()
    text = aq.statement(reduced, binder, state.closed_until)
    cursor = await connection.execute(text, binder.values)
    return await cursor.fetchall(), text


class Answers:
    """Answers every kind of query, through the cache."""

    def __init__(self, database: Database, cache: AnswerCache) -> None:
        self._database, self._cache = database, cache

    async def aggregates(
        self, model: PipelineModel, query: aq.AggregateQuery, deadline: Deadline | None
    ) -> tuple[Slot, bool]:
        """A page of windows as JSON, and whether it is stale.

        Raises:
            Problem: the database is away and no earlier answer is known.
        """

        async def compute(known: Answer | None) -> Answer | None:
            started = time.time()

            async def work(connection: Connection) -> Answer | None:
                state = await read_state(connection, model, query.model.name, query.model.version)
                final = query.final_by(state.closed_until_ms)
                # A final answer changes with nothing but retention; another watermark alone is worth no query, but
                # is told.
                version = (
                    f"{state.id}/final"
                    if final
                    else f"{state.id}/{state.rev}/{state.closed_until_ms}/{state.watermark_ms}"
                )
                if known is not None and known.version == version:
                    return None
                rows, _ = await read_windows(connection, query, state)
                return _window_answer(query, rows, state, version, final=final, started=started)

            return await self._database.run(model.name, work, deadline=deadline, retry=known is None)

        ttl = parse_ms(model.config.spec.api.cache_ttl) / 1000
        return await self._get(model, f"aggregates\n{query.model.name}\n{query.key}", "aggregates", ttl, compute)

    async def listing(self, model: PipelineModel, query: ListingQuery, deadline: Deadline | None) -> tuple[Slot, bool]:
        """A page of anomalies, events or dead letters as JSON, and whether it is stale."""

        async def compute(known: Answer | None) -> Answer | None:
            started = time.time()

            async def work(connection: Connection) -> list[tuple[Any, ...]]:
                binder = Binder()
                cursor = await connection.execute(query.statement(model.schema, binder), binder.values)
                return await cursor.fetchall()

            rows = await self._database.run(model.name, work, deadline=deadline, retry=known is None)
            return _listing_answer(query, rows, started)

        kind = query.listing.kind
        ttl = min(QUICK_SECONDS, parse_ms(model.config.spec.api.cache_ttl) / 1000)
        return await self._get(model, query.key, kind, ttl, compute)

    async def describe(self, model: PipelineModel, deadline: Deadline | None) -> tuple[Slot, bool]:
        """A pipeline's description as JSON, and whether it is stale."""

        async def compute(known: Answer | None) -> Answer | None:
            started = time.time()
            body = msgspec.json.encode(
                await self._database.run(
                    model.name, lambda c: describe(c, model), deadline=deadline, retry=known is None
                )
            )
            return _answer(body, started, rows=0)

        ttl = min(QUICK_SECONDS, parse_ms(model.config.spec.api.cache_ttl) / 1000)
        return await self._get(model, "describe", "pipelines", ttl, compute)

    async def _get(
        self, model: PipelineModel, what: str, operation: str, ttl: float, compute: Any
    ) -> tuple[Slot, bool]:
        config = model.config
        key = f"{names.redis_prefix(config.namespace, config.name)}\n{config.generation}\n{what}"
        try:
            return await self._cache.get(key, operation, ttl, compute)
        except Exception as error:
            problem = as_problem(error, model.name)
            if problem is None:
                raise
            raise problem from error

    async def stream_windows(self, model: PipelineModel, query: aq.AggregateQuery, media: str) -> AsyncIterator[bytes]:
        """Windows as NDJSON or CSV, piece by piece, from a server-side cursor."""
        async with self._database.pool(model.name).stream() as connection:
            state = await read_state(connection, model, query.model.name, query.model.version)
            binder = Binder()
            text = aq.statement(aq.narrowed(query), binder, state.closed_until)
            encoder = RowEncoder(query.columns)
            async for piece in _pieces(connection, text, binder, encoder, query.page.limit, media):
                yield piece

    async def stream_listing(self, model: PipelineModel, query: ListingQuery, media: str) -> AsyncIterator[bytes]:
        """A listing as NDJSON or CSV, piece by piece, from a server-side cursor."""
        async with self._database.pool(model.name).stream() as connection:
            binder = Binder()
            encoder = RowEncoder(query.listing.columns, dict(query.listing.converters))
            text = query.statement(model.schema, binder)
            async for piece in _pieces(connection, text, binder, encoder, query.page.limit, media):
                yield piece


async def _pieces(
    connection: Connection, text: str, binder: Binder, encoder: RowEncoder, limit: int, media: str
) -> AsyncIterator[bytes]:
    if media == CSV:
        yield encoder.csv([], header=True)
    left = limit
    async with connection.cursor(name="rows") as cursor:
        await cursor.execute(text, binder.values)
        while left > 0:
            rows = await cursor.fetchmany(min(FETCH_ROWS, left))
            if not rows:
                return
            left -= len(rows)
            yield encoder.csv(rows) if media == CSV else encoder.ndjson(rows)


def _window_answer(
    query: aq.AggregateQuery,
    rows: Sequence[tuple[Any, ...]],
    state: State,
    version: str,
    *,
    final: bool,
    started: float,
) -> Answer:
    shown = rows[: query.page.limit]
    cursor = query.page.cursor(aq.row_of(query, shown[-1])) if len(rows) > len(shown) else None
    encoder = RowEncoder(query.columns)
    body = page_body(
        query.columns,
        [encoder.record(row) for row in shown],
        cursor,
        watermark=time_ms(state.watermark_ms),
        closed_until=time_ms(state.closed_until_ms),
        stats={"rows": len(shown), "elapsed_ms": round((time.time() - started) * 1000, 1)},
    )
    return _answer(body, started, rows=len(shown), version=f"{version}", salt=query.key, final=final)


def _listing_answer(query: ListingQuery, rows: Sequence[tuple[Any, ...]], started: float) -> Answer:
    shown = rows[: query.page.limit]
    listing = query.listing
    cursor = query.page.cursor(shown_row(listing, shown[-1])) if len(rows) > len(shown) else None
    encoder = RowEncoder(listing.columns, dict(listing.converters))
    records = [encoder.record(row) for row in shown]
    # The time taken is no part of what an ETag stands for.
    version = hashlib.sha256(msgspec.json.encode(records)).hexdigest()
    stats = {"rows": len(shown), "elapsed_ms": round((time.time() - started) * 1000, 1)}
    body = page_body(listing.columns, records, cursor, stats=stats)
    return _answer(body, started, rows=len(shown), version=version, salt=query.key)


def _answer(
    body: bytes, started: float, *, rows: int, version: str = "", salt: str = "", final: bool = False
) -> Answer:
    digest = hashlib.sha256(f"{version}\n{salt}".encode() if version else body).hexdigest()[:24]
    return Answer(body, f'W/"{digest}"', version, rows, final, started)
