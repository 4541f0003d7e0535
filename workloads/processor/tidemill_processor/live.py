"""Live changes to Redis, only while somebody listens. Redis down costs nothing but the liveliness."""

from __future__ import annotations

import datetime as dt
import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import psycopg
import redis

from tidemill_contract import metrics, names
from tidemill_contract.runtime import PipelineConfig
from tidemill_processor.closing import Clock
from tidemill_processor.database import AggregationStore, Database
from tidemill_processor.transaction import Change
from tidemill_processor.windows import WindowReader

log = logging.getLogger(__name__)

MAX_ROWS = 5_000
STREAM_LENGTH = 10_000
ASK_SECONDS = 1.0


class Live:
    """Publishes what commits changed and what passes closed.

    `note` is called by the committing thread, `run` by the keeper's.
    """

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
        self._asked_at = -ASK_SECONDS

    def note(self, changes: Sequence[Change]) -> None:
        """Remember what a commit changed, if somebody listens."""
        if not self._listening:
            return
        with self._lock:
            for change in changes:
                self._changes.setdefault(change.aggregation, []).append(change)

    def run(self, connection: psycopg.Connection[Any], clock: Clock) -> None:
        """Publish what was noted.

        Raises:
            redis.RedisError, BreakerOpen: Redis is not there; what was noted is dropped, and the next start says so.
        """
        try:
            if not self._ask():
                return
            with self._lock:
                changes, self._changes = self._changes, {}
            for name, list_ in changes.items():
                self._publish(connection, name, list_, clock)
            for name, until in clock.newly_closed.items():
                self._send({
                    "aggregation": name, "version": self._stores[name].version, "closed_until": until,
                    "watermark": clock.watermark, "rows": [],
                })  # fmt: skip
        except Exception:
            self._listening = False
            raise

    def _ask(self) -> bool:
        if time.monotonic() - self._asked_at < ASK_SECONDS:
            return self._listening
        self._asked_at = time.monotonic()
        listening = bool(self._call(self._redis.exists, self._listeners))
        if listening and not self._listening:
            self._send({"begin": True})
        if not listening:
            with self._lock:
                self._changes.clear()
        self._listening = listening
        return listening

    def _publish(self, connection: psycopg.Connection[Any], name: str, changes: list[Change], clock: Clock) -> None:
        store, reader = self._stores[name], self._readers[name]
        first = min(c.first_pane for c in changes) - store.layout.reach_ms
        last = max(c.last_pane for c in changes)
        with connection.transaction():
            # A newer processor may feed other columns than we read; listeners then find these revisions by themselves.
            if self._database.newer_generation(connection) is not None:
                return
            rows = list(reader.read(connection, first, last, revs=[c.rev for c in changes], limit=MAX_ROWS + 1))
        closed = clock.closed.get(name)
        for row in rows:
            row["closed"] = closed is not None and _epoch_ms(row["window_end"]) <= closed
        self._send({
            "aggregation": name, "version": store.version,
            "rev": max(c.rev for c in changes), "revs": [c.rev for c in changes],
            "watermark": clock.watermark, "closed_until": closed,
            "rows": rows[:MAX_ROWS], "truncated": len(rows) > MAX_ROWS,
        })  # fmt: skip
        metrics.LIVE_PUBLISHED.inc(min(len(rows), MAX_ROWS))

    def _send(self, entry: dict[str, Any]) -> None:
        self._call(
            self._redis.xadd, self._stream, {"d": msgspec.json.encode(entry)}, maxlen=STREAM_LENGTH, approximate=True
        )


def _epoch_ms(text: str) -> int:
    return round(dt.datetime.fromisoformat(text).timestamp() * 1000)
