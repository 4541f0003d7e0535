"""Deletes old event ids (`spec.source.dedupe`), a limited number at a time.

If dedupe was removed from the spec, all ids are deleted. All replicas can delete ids at the same time. Each replica
skips the rows that another replica is deleting.
"""

from __future__ import annotations

from typing import Any

import psycopg

from tidemill_contract.duration import parse_ms
from tidemill_contract.runtime import PipelineConfig
from tidemill_contract.tables import readers
from tidemill_contract.tables.inputs import dedupe
from tidemill_contract.tables.readers import LIVE
from tidemill_processor.database import Database

MAX_DELETED_IDS = 10_000
"""The maximum number of ids that one pass deletes for each `reader` in `_dedupe`."""
END_OF_TIME = 2**63 - 1


class EventIdCleaner:
    """Deletes the old event ids of one pipeline."""

    def __init__(self, database: Database, config: PipelineConfig) -> None:
        self._schema = database.schema
        self._multi_topic = config.spec.source.is_multi_topic
        self._max_disorder_ms = parse_ms(config.spec.source.event_time.max_disorder)

    @classmethod
    def of(
        cls, connection: psycopg.Connection[Any], database: Database, config: PipelineConfig
    ) -> EventIdCleaner | None:
        """Return an `EventIdCleaner`, or None if the pipeline has never used dedupe."""
        row = connection.execute(dedupe.exists(database.schema)).fetchone()
        return cls(database, config) if row is not None and row[0] else None

    def run(self, connection: psycopg.Connection[Any]) -> int:
        """Delete old ids, and return the number of deleted ids.

        If at least `MAX_DELETED_IDS` ids were deleted, call this method again, because old ids may remain.
        """
        row = connection.execute(readers.watermark(self._schema), (LIVE,)).fetchone()
        watermark = row[0] if row is not None else None
        deleted = 0
        progress = connection.execute(dedupe.progress(self._schema, multi_topic=self._multi_topic)).fetchall()
        for reader, exists, follows, reached, unread in progress:
            if not exists:
                until = END_OF_TIME  # the replay was cancelled
            elif watermark is None or (not follows and unread):
                continue
            elif follows or reached is None:
                until = watermark
            else:
                until = min(watermark, reached - self._max_disorder_ms)
            deleted += connection.execute(
                dedupe.delete_expired(self._schema, MAX_DELETED_IDS), (reader, until)
            ).rowcount
        return deleted
