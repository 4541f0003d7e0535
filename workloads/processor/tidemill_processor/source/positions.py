"""Determines where to read each partition: at the stored position, or else at `startFrom`.

If a topic was deleted and created again, the partition gets a new epoch. Offsets that Kafka deleted before they were
read are recorded in the table `_lost`.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Mapping
from typing import Any

import psycopg

from tidemill_contract.runtime import PipelineConfig
from tidemill_contract.tables import offsets
from tidemill_contract.times import epoch_ms, read_start
from tidemill_processor.database import Database
from tidemill_processor.source.consumer import Source
from tidemill_processor.transaction import Position

log = logging.getLogger(__name__)

TRUNCATED_SECONDS = 10.0
"""Kafka has lost records if a partition's end stays below the stored position for this many seconds."""


class PositionStore:
    """Reads and repairs the positions of a pipeline's partitions."""

    def __init__(self, database: Database, config: PipelineConfig, source: Source, start_from: str = "") -> None:
        self._schema, self._reader = database.schema, database.reader
        # With a Python stage, `startFrom` applies to the stage, not to the processors.
        staged = config.read_topic != config.events_topic
        self._start_from = start_from or ("earliest" if staged else config.spec.source.topic.start_from)
        self._source, self._replays = source, bool(start_from)
        self._short_since: dict[int, float] = {}

    def resolve(
        self, connection: psycopg.Connection[Any], partitions: Iterable[int], topic_ids: Mapping[int, str]
    ) -> dict[int, Position]:
        """Return the positions at which to read `partitions`. Omit partitions that cannot be read yet.

        Raises:
            KafkaException, psycopg.Error: Kafka or Postgres failed.
        """
        query = offsets.read(self._schema, self._reader)
        wanted = [partition for partition in partitions if partition in topic_ids]
        # Forget partitions that are no longer assigned.
        self._short_since = {p: since for p, since in self._short_since.items() if p in wanted}
        positions = {}
        for partition, known_id, epoch, next_offset, former in connection.execute(query, (wanted,)).fetchall():
            topic_id = topic_ids[partition]
            if topic_id in former:
                log.warning("topic %s: a broker returned the id of a deleted topic; asking again", self._source.topic)
                continue
            position = self._position(connection, partition, known_id, epoch, next_offset, topic_id)
            if position is not None:
                positions[partition] = position
        missing = sorted(set(wanted) - set(positions))
        if missing:
            log.info("partitions %s cannot be read yet", missing)
        return positions

    def unread_partitions(self, connection: psycopg.Connection[Any], topic_ids: Mapping[int, str]) -> frozenset[int]:
        """Return the partitions that no processor has read yet. `topic_ids` has the topic id of each partition.

        Raises:
            psycopg.Error: Postgres failed.
        """
        query = offsets.changed_topics(self._schema, self._reader)
        return frozenset(
            partition for (partition,) in connection.execute(query, (list(topic_ids), list(topic_ids.values())))
        )

    def _position(
        self,
        connection: psycopg.Connection[Any],
        partition: int,
        known_id: str | None,
        epoch: int,
        next_offset: int | None,
        topic_id: str,
    ) -> Position | None:
        low, high = self._source.offset_range(partition)
        before = (known_id, epoch, next_offset)
        if next_offset is None:
            return self._set_position(
                connection, partition, before, topic_id, epoch, self._first_offset(partition, low, high)
            )
        if known_id is not None and known_id != topic_id:
            log.error(
                "topic %s was created again; partition %d starts epoch %d", self._source.topic, partition, epoch + 1
            )
            self._record_loss(connection, partition, epoch, next_offset, None, "topic_recreated")
            return self._set_position(connection, partition, before, topic_id, epoch + 1, low)
        if next_offset < low:
            log.error("partition %d: offsets %d to %d were deleted before they were read", partition, next_offset, low)
            self._record_loss(connection, partition, epoch, next_offset, low, "expired")
            return self._set_position(connection, partition, before, topic_id, epoch, low)
        if next_offset <= high:
            self._short_since.pop(partition, None)
        else:
            since = self._short_since.setdefault(partition, time.monotonic())
            if time.monotonic() - since < TRUNCATED_SECONDS:
                return None
            del self._short_since[partition]
            log.error(
                "partition %d ends at %d, but was read up to %d: Kafka lost records", partition, high, next_offset
            )
            self._record_loss(connection, partition, epoch, high, next_offset, "truncated")
            return self._set_position(connection, partition, before, topic_id, epoch + 1, high)
        if known_id is None:  # events may arrive in a new partition before the partition's row is written
            return self._set_position(connection, partition, before, topic_id, epoch, next_offset)
        return Position(next_offset, epoch)

    def _first_offset(self, partition: int, low: int, high: int) -> int:
        added = not self._replays and self._source.slots.is_added(partition)
        match "earliest" if added else self._start_from:
            case "earliest":
                return low
            case "latest":
                return high
            case moment:
                return self._source.offset_at(partition, epoch_ms(read_start(moment)))

    def _set_position(
        self,
        connection: psycopg.Connection[Any],
        partition: int,
        before: tuple[str | None, int, int | None],
        topic_id: str,
        epoch: int,
        offset: int,
    ) -> Position | None:
        update = offsets.set_position(self._schema, self._reader)
        moved = connection.execute(update, (topic_id, topic_id, epoch, offset, partition, *before)).rowcount
        return Position(offset, epoch) if moved else None

    def _record_loss(
        self, connection: psycopg.Connection[Any], partition: int, epoch: int, first: int, end: int | None, reason: str
    ) -> None:
        connection.execute(
            offsets.insert_lost_range(self._schema, self._reader), (partition, epoch, first, end, reason)
        )

    def confirm_ends(
        self, connection: psycopg.Connection[Any], caught_up: dict[int, Position], age_seconds: float
    ) -> None:
        """Record that the partitions in `caught_up` had no unread records `age_seconds` ago."""
        if not caught_up:
            return
        connection.execute(
            offsets.confirm_ends(self._schema, self._reader),
            (
                age_seconds,
                list(caught_up),
                [p.next_offset for p in caught_up.values()],
                [p.epoch for p in caught_up.values()],
            ),
        )
