"""The partitions of this process in the consumer group, and the positions for reading them."""

from __future__ import annotations

import logging
import time
from typing import Any

import psycopg
from confluent_kafka import KafkaException

from tidemill_contract.runtime import PipelineConfig
from tidemill_contract.tables.readers import LIVE
from tidemill_processor import metrics
from tidemill_processor.batches.batch import Batch
from tidemill_processor.database import Database
from tidemill_processor.database_link import DatabaseLink
from tidemill_processor.replay import Handover, ReadSchedule
from tidemill_processor.source.backlog import Backlog
from tidemill_processor.source.consumer import Source
from tidemill_processor.source.kafka_health import KafkaHealth
from tidemill_processor.source.positions import PositionStore
from tidemill_processor.source.rejoining import Rejoiner
from tidemill_processor.source.slots import SeveralTopics
from tidemill_processor.transaction import CommitResult, Position

log = logging.getLogger(__name__)

TOPIC_CHECK_SECONDS = 10.0
REPORT_SECONDS = 2.0


class Assignment:
    """The partitions of this process, with their committed positions and their backlog."""

    def __init__(
        self,
        config: PipelineConfig,
        database: Database,
        source: Source,
        kafka: KafkaHealth,
        link: DatabaseLink,
        start_from: str = "",
    ) -> None:
        self._source, self._kafka, self._link = source, kafka, link
        self._position_store = PositionStore(database, config, source, start_from)
        self._rejoiner = Rejoiner(source.subscribe)
        self._schedule = ReadSchedule()
        # A replay commits no offsets to Kafka. Kafka deletes an empty consumer group sooner if the group lacks offsets.
        self._reports_positions = database.reader == LIVE
        self._schema, self._multi_topic = database.schema, config.spec.source.is_multi_topic
        self._topic_ids: dict[str, str] = {}
        self._slot_topic_ids: dict[int, str] = {}
        self._topic_checked_at = -TOPIC_CHECK_SECONDS
        self._reported_at = 0.0
        self.partitions: frozenset[int] = frozenset()
        self.positions: dict[int, Position] = {}
        self.backlog = Backlog(source, self.positions)

    @property
    def _handover(self) -> Handover | None:
        return self._link.committer.handover if self._link.committer is not None else None

    def start_reading(self, excluded: frozenset[int] = frozenset()) -> None:
        """Start to read newly assigned partitions, except those in `excluded`."""
        connection, source = self._link.connection, self._source
        assert connection is not None  # noqa: S101 - the caller has opened it
        waiting = source.assigned - source.ready - excluded
        stale = time.monotonic() - self._topic_checked_at >= TOPIC_CHECK_SECONDS
        if not (waiting or stale):
            return
        try:
            if stale:
                self._check_topic(connection)
                waiting = source.assigned - source.ready - excluded
            if waiting and self._handover is not None:
                waiting = self._schedule.readable(self._handover, connection, waiting)
            if waiting and self._slot_topic_ids:
                positions = self._position_store.resolve(connection, waiting, self._slot_topic_ids)
                self.positions.update(positions)
                source.start_reading({p: position.next_offset for p, position in positions.items()})
        except KafkaException as error:
            self._kafka.record_failure(error.args[0])
        except psycopg.Error as error:
            self._link.drop(error)

    def _check_topic(self, connection: psycopg.Connection[Any]) -> None:
        self._topic_checked_at = time.monotonic()
        if self._multi_topic:
            self._source.update_slots(SeveralTopics.read(connection, self._schema))
            self.apply_rebalance()
        described = self._source.describe()
        self._kafka.record_answer(self._topic_checked_at)
        if any(self._topic_ids.get(topic, topic_id) != topic_id for topic, (topic_id, _) in described.items()):
            # A consumer cannot read a topic that was deleted and created again, so replace the consumer.
            self._source.replace_consumer()
        self._topic_ids |= {topic: topic_id for topic, (topic_id, _) in described.items()}
        self._slot_topic_ids = self._source.slots.topic_ids(described)
        has_other_members = len(self._source.assigned) < len(self._slot_topic_ids)
        unread = (
            self._position_store.unread_partitions(connection, self._slot_topic_ids)
            if has_other_members
            else frozenset()
        )
        self._rejoiner.update(unread - self._source.assigned)

    def apply_rebalance(self) -> None:
        """Forget all positions if a rebalance changed the assigned partitions."""
        assigned = self._source.assigned
        if assigned == self.partitions:
            return
        metrics.REBALANCES.inc()
        # Read the positions from Postgres again, because other processes may have advanced them.
        self.positions.clear()
        self.partitions = assigned

    def advance(self, batch: Batch, committed: CommitResult) -> None:
        """Update the positions after a batch was committed."""
        self.positions.update(committed.positions)
        self._stop_handed_over(committed.handed_over)
        # A replay stops at the position of the live processors.
        ahead = [p for p, at in committed.positions.items() if at.next_offset < batch.next_offsets[p]]
        self._source.pause(ahead)
        self._schedule.postpone(ahead)

    def hand_over(self) -> None:
        """Let live processors take over the partitions that the replay has read completely."""
        handover, connection, ready = self._handover, self._link.connection, self._source.ready
        if handover is None or connection is None:
            return
        try:
            offsets = {p: position.next_offset for p, position in self.positions.items() if p in ready}
            handed_over = handover.hand_over_finished(
                connection, offsets, {p: self._source.last_end_reached(p) for p in offsets}
            )
        except psycopg.Error as error:
            self._link.drop(error)
            return
        self._stop_handed_over(handed_over)

    def _stop_handed_over(self, partitions: frozenset[int]) -> None:
        if partitions:
            log.info("live processors take over partitions %s", sorted(partitions))
            self._source.pause(partitions)

    def confirm_ends(self) -> None:
        """If Kafka has reported new end offsets, store which partitions have no unread records."""
        answer = self.backlog.take_new_ends()
        if answer is None or self._link.connection is None:
            return
        ends, asked_at = answer
        positions = {p: self.positions[p] for p in self._source.ready if p in self.positions and p in ends}
        caught_up = {
            p: position for p, position in positions.items() if self.backlog.reached_offset(p, position) >= ends[p]
        }
        try:
            self._position_store.confirm_ends(self._link.connection, caught_up, time.monotonic() - asked_at)
        except psycopg.Error as error:
            self._link.drop(error)

    def report_positions(self, *, force: bool = False) -> None:
        """Report the positions to Kafka every two seconds, or at once if `force` is true."""
        if self._reports_positions and (force or time.monotonic() - self._reported_at >= REPORT_SECONDS):
            self._reported_at = time.monotonic()
            ready = self._source.ready
            self._source.report_offsets({p: at.next_offset for p, at in self.positions.items() if p in ready})
