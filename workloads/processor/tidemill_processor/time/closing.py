"""Advances the watermark and closes windows, in short transactions that any replica may run.

The aggregation's lock protects its windows and `closed_until`, the time up to which windows are closed.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import psycopg

from tidemill_contract.duration import parse_ms
from tidemill_contract.runtime import PipelineConfig
from tidemill_contract.tables import aggregations, offsets, readers
from tidemill_processor.database import AggregationStore, Database
from tidemill_processor.keeper.duties import Duty, RunDuty, run_directly
from tidemill_processor.time.watermark import PartitionTime, ReaderTime, advance, closed_until


@dataclass(frozen=True)
class Clock:
    """The watermark, and the times up to which windows are closed, all in epoch milliseconds."""

    watermark: int | None
    closed_until: dict[str, int | None]
    newly_closed: dict[str, int]


class Closer:
    """Advances the watermark and closes windows."""

    def __init__(self, database: Database, stores: list[AggregationStore], config: PipelineConfig) -> None:
        self._schema, self._reader = database.schema, database.reader
        self._database = database
        self._stores = stores
        times, self._multi_topic = config.spec.source.event_time, config.spec.source.is_multi_topic
        self._max_disorder_ms = parse_ms(times.max_disorder)
        self._idle_timeout_ms = parse_ms(times.idle_timeout)

    def run(self, connection: psycopg.Connection[Any], run_duty: RunDuty = run_directly) -> Clock:
        """Advance the watermark, and then close the windows of each aggregation."""
        watermark = self._advance(connection)
        until = dict(connection.execute(aggregations.closed_until(self._schema)).fetchall())
        closed: dict[str, int | None] = {store.name: until[store.id] for store in self._stores}
        newly_closed: dict[str, int] = {}
        if watermark is not None:
            for store in self._stores:
                duty = Duty("close", store.name, store.version)
                run_duty(connection, duty, partial(self._close, connection, store, watermark, closed, newly_closed))
        return Clock(watermark, closed, newly_closed)

    def _close(
        self,
        connection: psycopg.Connection[Any],
        store: AggregationStore,
        watermark: int,
        closed: dict[str, int | None],
        newly_closed: dict[str, int],
    ) -> int:
        until = closed_until(watermark, grace_ms=store.layout.grace_ms, grid=store.layout.grid)
        before = closed[store.name]
        if before is not None and until <= before:
            return 0
        with connection.transaction():
            connection.execute(self._database.lock_sql(store.id))
            if connection.execute(aggregations.close(self._schema), (until, store.id, until)).rowcount:
                newly_closed[store.name] = until
        closed[store.name] = until
        return 1

    def _advance(self, connection: psycopg.Connection[Any]) -> int | None:
        with connection.transaction():
            row = connection.execute(readers.lock(self._schema, self._reader)).fetchone()
            if row is None:
                stored = connection.execute(readers.watermark(self._schema), (self._reader,)).fetchone()
                return stored[0] if stored else None
            before, now_ms = ReaderTime(*row[:6]), row[6]
            after = advance(
                before,
                self._partitions(connection),
                max_disorder_ms=self._max_disorder_ms,
                idle_timeout_ms=self._idle_timeout_ms,
                now_ms=now_ms,
            )
            if after != before:
                connection.execute(
                    readers.set_watermark(self._schema, self._reader),
                    (
                        after.watermark, after.candidate, *[after.candidate_at] * 2, *[after.active_since] * 2,
                        *[after.idle_since] * 2, after.idle_base,
                    ),
                )  # fmt: skip
            return after.watermark

    def _partitions(self, connection: psycopg.Connection[Any]) -> list[PartitionTime]:
        query = offsets.event_times(self._schema, self._reader, multi_topic=self._multi_topic)
        return [PartitionTime(p, latest, tuple(s), last, end) for p, latest, s, last, end in connection.execute(query)]
