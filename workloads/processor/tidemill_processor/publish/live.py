"""Sends the live changes of a pipeline to Redis while at least one client listens."""

from __future__ import annotations

import datetime as dt
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import msgspec
import psycopg
import redis

from tidemill_contract import names
from tidemill_contract.runtime import PipelineConfig
from tidemill_processor import metrics
from tidemill_processor.database import AggregationStore, Database
from tidemill_processor.errors import is_permanent
from tidemill_processor.keeper.duties import Duty, RunDuty, run_directly
from tidemill_processor.time.closing import Clock
from tidemill_processor.transaction import Change
from tidemill_processor.windows.reader import WindowReader

log = logging.getLogger(__name__)

MAX_ROWS = 5_000
ENTRY_BYTES = 256 * 1024
"""The maximum size in bytes of the rows in one stream entry. Larger changes are divided into several entries."""
CHANGE_BYTES = 4 * 1024 * 1024
"""The rows of a change are sent only up to this total size in bytes. The API reads larger changes in Postgres."""
STREAM_LENGTH = 10_000
STREAM_BYTES = 16 * 1024 * 1024
"""The maximum total size (bytes) of the stream entries from one processor. Beyond it, the oldest are removed."""
CHECK_SECONDS = 1.0

Entry = dict[str, Any]


class LiveSender:
    """Sends changed rows, and the times up to which windows are closed, to live clients."""

    def __init__(
        self,
        database: Database,
        stores: list[AggregationStore],
        config: PipelineConfig,
        client: redis.Redis,
        call: Callable[..., Any],
    ) -> None:
        self._database = database
        self._stores = {store.name: store for store in stores}
        self._readers = {store.name: WindowReader(database, store) for store in stores}
        self._listeners = names.live_listeners(config.namespace, config.name)
        self._stream = names.live_stream(config.namespace, config.name)
        self._redis = client
        self._call = call
        self._lock = threading.Lock()
        self._changes: dict[str, list[Change]] = {}
        self._listening = False
        self._checked_at = -CHECK_SECONDS
        self._written: deque[tuple[bytes, int]] = deque()
        self._bytes = 0

    def add(self, changes: Sequence[Change]) -> None:
        """Remember the changes of a commit if a client is listening."""
        if not self._listening:
            return
        with self._lock:
            for change in changes:
                self._changes.setdefault(change.aggregation, []).append(change)

    def run(self, connection: psycopg.Connection[Any], clock: Clock, run_duty: RunDuty = run_directly) -> None:
        """Send the remembered changes. If Redis does not answer, the changes are dropped.

        Raises:
            redis.RedisError, BreakerOpen: Redis does not answer.
        """
        try:
            if not self._check_listeners():
                return
            with self._lock:
                changes, self._changes = self._changes, {}
            for name, list_ in changes.items():
                entries: list[Entry] = []
                duty = Duty("live", name, self._stores[name].version)
                run_duty(connection, duty, partial(self._read, connection, name, list_, clock, entries))
                # If a live entry is lost, the API notices the missing revision, and reads the tables in Postgres.
                for entry in entries:
                    self._send(entry)
            for name, until in clock.newly_closed.items():
                self._send({
                    "aggregation": name, "version": self._stores[name].version, "closed_until": until,
                    "watermark": clock.watermark, "rows": [],
                })  # fmt: skip
        except Exception:
            self._listening = False
            raise

    def _check_listeners(self) -> bool:
        if time.monotonic() - self._checked_at < CHECK_SECONDS:
            return self._listening
        self._checked_at = time.monotonic()
        listening = bool(self._call(self._redis.exists, self._listeners))
        if listening and not self._listening:
            self._send({"begin": True})
        if not listening:
            with self._lock:
                self._changes.clear()
        self._listening = listening
        return listening

    def _read(
        self,
        connection: psycopg.Connection[Any],
        name: str,
        changes: list[Change],
        clock: Clock,
        entries: list[Entry],
    ) -> int:
        store, closed = self._stores[name], clock.closed_until.get(name)
        revs = [c.rev for c in changes]
        first = min(c.first_pane for c in changes) - store.layout.max_lookback_ms
        last = max(c.last_pane for c in changes)
        whole: Entry = {
            "aggregation": name, "version": store.version, "rev": max(revs), "revs": revs,
            "watermark": clock.watermark, "closed_until": closed, "rows": [], "truncated": True,
        }  # fmt: skip
        try:
            with connection.transaction():
                # Do not read rows if there is a newer configuration, because the rows may have unknown columns.
                if self._database.newer_generation(connection) is not None:
                    return 0
                rows = list(self._readers[name].read(connection, first, last, revs=revs, limit=MAX_ROWS + 1))
            for row in rows:
                row["closed"] = closed is not None and _epoch_ms(row["window_end"]) <= closed
            pieces = _pieces([msgspec.json.encode(row) for row in rows])
        except Exception as error:
            if is_permanent(error):
                entries.append(whole)
            raise
        if pieces is None:
            entries.append(whole)
            return 0
        *before, rest = pieces
        part = {"part_of": name, "version": store.version, "rev": max(revs)}
        entries += [{**part, "rows": piece} for piece in before]
        entries.append({**whole, "rows": rest, "truncated": bool(before), "parts": len(before)})
        metrics.LIVE_PUBLISHED.inc(len(rows))
        return len(rows)

    def _send(self, entry: Entry) -> None:
        text = msgspec.json.encode(entry)
        oldest = self._written[0][0] if self._written else None
        bound = {"minid": oldest} if oldest else {"maxlen": STREAM_LENGTH}
        written = self._call(self._redis.xadd, self._stream, {"d": text}, approximate=True, **bound)
        self._written.append((written, len(text)))
        self._bytes += len(text)
        while len(self._written) > STREAM_LENGTH or self._bytes > STREAM_BYTES:
            self._bytes -= self._written.popleft()[1]


def _pieces(rows: list[bytes]) -> list[list[msgspec.Raw]] | None:
    pieces: list[list[msgspec.Raw]] = [[]]
    room = ENTRY_BYTES
    if len(rows) > MAX_ROWS or sum(map(len, rows)) > CHANGE_BYTES:
        return None
    for row in rows:
        if len(row) > ENTRY_BYTES:
            return None
        if room < len(row):
            pieces.append([])
            room = ENTRY_BYTES
        pieces[-1].append(msgspec.Raw(row))
        room -= len(row)
    return pieces


def _epoch_ms(text: str) -> int:
    return round(dt.datetime.fromisoformat(text).timestamp() * 1000)
