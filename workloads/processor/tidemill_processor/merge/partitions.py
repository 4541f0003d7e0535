"""Creates the time partitions that a batch needs, and stores raw events in them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import polars as pl
import psycopg

from tidemill_contract.calendars import DAY_MS
from tidemill_contract.duration import parse_ms
from tidemill_contract.runtime import PipelineConfig
from tidemill_contract.tables import events, readers
from tidemill_contract.tables.definition import NO_ELEMENT
from tidemill_contract.tables.readers import LIVE
from tidemill_contract.tables.time_partitions import new_partitions, partition_days
from tidemill_contract.times import rfc3339_ms
from tidemill_processor.batches.batch import DATA, ELEMENT, OFFSET, PARTITION, TIME, Batch
from tidemill_processor.database import Database

MAX_CREATED_AT_ONCE = 20
"""The maximum number of partitions to create in one transaction, because each partition needs several locks."""


class Partitions:
    """Creates the missing time partitions of tables."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._existing_days: dict[str, set[int]] = {}

    def ensure(self, connection: psycopg.Connection[Any], table: str, width: int, times: pl.Series) -> None:
        """Create the partitions of `width` days that a table needs for `times` (epoch ms).

        Call this method before the batch's transaction, because creating partitions takes locks.
        """
        existing = self._existing_days.setdefault(table, set())
        days = set((times // DAY_MS).unique().to_list()) - existing
        if not days:
            return
        partitions = new_partitions(days, width, self._spans(connection, table))
        for start in range(0, len(partitions), MAX_CREATED_AT_ONCE):
            chunk = partitions[start : start + MAX_CREATED_AT_ONCE]
            firsts, widths = [first for first, _ in chunk], [end - first for first, end in chunk]
            call = f"SELECT {self._database.schema}.ensure_partitions(%s, %s::integer[], %s::integer[])"
            connection.execute(call, (table, firsts, widths))
        existing |= days

    def _spans(self, connection: psycopg.Connection[Any], table: str) -> list[tuple[int, int]]:
        epoch = "date '1970-01-01'"
        query = (
            f"SELECT split_part(bound, '''', 2)::date - {epoch}, split_part(bound, '''', 4)::date - {epoch}"
            " FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid, pg_get_expr(c.relpartbound, c.oid) bound"
            " WHERE i.inhparent = %s::regclass"
        )
        return connection.execute(query, (self._database.qualified(table),)).fetchall()


class RawEventStore:
    """Stores raw events if the spec asks for raw events."""

    def __init__(self, database: Database, config: PipelineConfig, partitions: Partitions) -> None:
        self._database, self._partitions = database, partitions
        self._enabled = config.spec.events.store and database.reader == LIVE
        self._retention_ms = parse_ms(config.spec.events.retention)

    def prepare(self, connection: psycopg.Connection[Any], batch: Batch) -> pl.DataFrame | None:
        """Create the partitions for a batch's raw events. Return the events to store, or None if there are none."""
        if not self._enabled or DATA not in batch.frame.columns or not batch.frame.height:
            return None
        row = connection.execute(readers.watermark(self._database.schema), (LIVE,)).fetchone()
        element = pl.col(ELEMENT) if batch.origins is not None else pl.lit(NO_ELEMENT)
        frame = batch.frame.select(TIME, PARTITION, OFFSET, element.alias(ELEMENT), DATA)
        if row is not None and row[0] is not None:
            frame = frame.filter(pl.col(TIME) >= row[0] - self._retention_ms)
        self._partitions.ensure(connection, events.TABLE.name, partition_days(self._retention_ms), frame[TIME])
        return frame

    def store(self, connection: psycopg.Connection[Any], frame: pl.DataFrame | None, epochs: Mapping[int, int]) -> None:
        """Store the raw events in the batch's transaction."""
        if frame is None or not frame.height:
            return
        with connection.cursor().copy(events.copy(self._database.schema)) as copy:
            for time, partition, offset, element, data in frame.iter_rows():
                copy.write_row((rfc3339_ms(time), epochs[partition], partition, offset, element, data))
