"""Encodes pages of windows and listings, with cursor and ETag."""

from __future__ import annotations

import datetime as dt
import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from tidemill_api.cache import Answer
from tidemill_api.describe import format_epoch_ms
from tidemill_api.formats.json import page_body
from tidemill_api.formats.rows import RowEncoder
from tidemill_api.query import sql
from tidemill_api.query.aggregate import AggregateQuery
from tidemill_api.query.listings import ListingQuery, row_dict
from tidemill_api.query.values import EPOCH
from tidemill_contract.functions.fill_history import FillHistory


@dataclass(frozen=True)
class AggregationState:
    """The state of an aggregation, read in the same snapshot as its rows.

    Attributes:
        identity: a text that is different for each spec and each table.
        fill_history: for each column of the table, the periods in which processors filled the column.
    """

    identity: str
    rev: int
    closed_until_ms: int | None
    watermark_ms: int | None
    fill_history: FillHistory

    @property
    def closed_until(self) -> dt.datetime | None:
        """The time up to which windows are closed."""
        return None if self.closed_until_ms is None else EPOCH + dt.timedelta(milliseconds=self.closed_until_ms)


def window_answer(
    query: AggregateQuery,
    rows: Sequence[tuple[Any, ...]],
    state: AggregationState,
    version: str,
    *,
    final: bool,
    started: float,
) -> Answer:
    """Return the answer with a page of windows."""
    page_rows = rows[: query.page.limit]
    cursor = query.page.cursor(sql.row_dict(query, page_rows[-1])) if len(rows) > len(page_rows) else None
    encoder = RowEncoder(query.columns)
    body = page_body(
        query.columns,
        [encoder.record(row) for row in page_rows],
        cursor,
        watermark=format_epoch_ms(state.watermark_ms),
        closed_until=format_epoch_ms(state.closed_until_ms),
        stats={"rows": len(page_rows), "elapsed_ms": round((time.time() - started) * 1000, 1)},
    )
    return make_answer(body, started, rows=len(page_rows), version=f"{version}", salt=query.key, final=final)


def listing_answer(query: ListingQuery, rows: Sequence[tuple[Any, ...]], started: float) -> Answer:
    """Return the answer with a page of a listing."""
    page_rows = rows[: query.page.limit]
    listing = query.listing
    cursor = query.page.cursor(row_dict(listing, page_rows[-1])) if len(rows) > len(page_rows) else None
    encoder = RowEncoder(listing.columns, listing.converters)
    records = [encoder.record(row) for row in page_rows]
    # The ETag depends only on the rows, and not on `elapsed_ms`.
    version = hashlib.sha256(msgspec.json.encode(records)).hexdigest()
    stats = {"rows": len(page_rows), "elapsed_ms": round((time.time() - started) * 1000, 1)}
    body = page_body(listing.columns, records, cursor, stats=stats)
    return make_answer(body, started, rows=len(page_rows), version=version, salt=query.key)


def make_answer(
    body: bytes, started: float, *, rows: int, version: str = "", salt: str = "", final: bool = False
) -> Answer:
    """Return an answer with an ETag.

    The ETag is a hash of `version` and `salt`. If `version` is empty, the ETag is a hash of the body.
    """
    digest = hashlib.sha256(f"{version}\n{salt}".encode() if version else body).hexdigest()[:24]
    return Answer(body, f'W/"{digest}"', version, rows, final, started)
