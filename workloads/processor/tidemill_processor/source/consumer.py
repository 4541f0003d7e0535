"""Reads the source topic with Quix Streams' consumer.

Newly assigned partitions are paused. The loop reads the partitions' positions from Postgres, seeks, and resumes the
partitions.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from confluent_kafka import KafkaError, KafkaException, TopicPartition
from quixstreams import Application
from quixstreams.kafka import ConnectionConfig

from tidemill_chassis.kafka_clients import FAST_RECONNECT
from tidemill_chassis.resilience.failures import kafka_fatal
from tidemill_contract import names
from tidemill_contract.runtime import PipelineConfig, WorkloadSettings
from tidemill_processor.source.clusters import REQUEST_SECONDS, SourceLogin
from tidemill_processor.source.seeks import Seeks
from tidemill_processor.source.slots import Slots, assigned_slots, slots_of, topic_partitions, with_slots
from tidemill_processor.source.stage_topic import wrap_staged
from tidemill_processor.source.topic_admin import TopicAdmin

log = logging.getLogger(__name__)

CONSUMER_TUNING: Mapping[str, Any] = {
    # Fetching pauses when the queue of records is full. The default pause (1 s) would slow down a fast consumer.
    "fetch.queue.backoff.ms": 5,
    "queued.min.messages": 200_000,
    # Limit the memory for prefetched records.
    "queued.max.messages.kbytes": 32_768,
    "fetch.message.max.bytes": 4 * 1024 * 1024,
    # If a broker does not answer a fetch within 30 s, the consumer reconnects.
    "socket.timeout.ms": 30_000,
    **FAST_RECONNECT,
    "enable.partition.eof": True,
    "statistics.interval.ms": 0,
    "max.poll.interval.ms": 300_000,
    "allow.auto.create.topics": False,
    "partition.assignment.strategy": "range",
}

# A consumer of several topics looks for new partitions every 15 s.
_MULTI_TOPIC_TUNING: Mapping[str, Any] = {"topic.metadata.refresh.interval.ms": 15_000}

LEAVE_SECONDS = 3.0
"""The maximum time (seconds) to leave the consumer group."""


@dataclass
class PollResult:
    """The result of one consume call.

    Attributes:
        messages: the records of ready partitions.
        out_of_range: the partitions in which Kafka no longer has the requested offset.
        error: the first error that concerns the connection or the topic, or None.
    """

    messages: list[Any] = field(default_factory=list)
    out_of_range: set[int] = field(default_factory=set)
    error: KafkaError | None = None


class Source:
    """Consumes one topic as a member of the pipeline's consumer group.

    Attributes:
        heard_at: when Kafka last answered a request for offsets (monotonic seconds).
        lost_at: when the consumer group removed this process, or None while the process is a member.
    """

    def __init__(self, settings: WorkloadSettings, config: PipelineConfig) -> None:
        self._settings, self._config = settings, config
        self.login = SourceLogin(settings, config)
        self._connection, self._connection_changed = self.login.current(), False
        self.slots, self.topic = slots_of(config)
        self._multi_topic, self._staged = config.spec.source.is_multi_topic, config.spec.transform.python is not None
        self._assigned_partitions: list[TopicPartition] = []
        self._application = _application(settings, config, self._connection)
        self._consumer = self._application.get_consumer(auto_commit_enable=False)
        self._admin = TopicAdmin(self._connection)
        self.generation, self.heard_at = 0, 0.0
        self.assigned: frozenset[int] = frozenset()
        self._ready: set[int] = set()
        self._ends_read: dict[int, int] = {}
        self._seeks = Seeks()
        self.lost_at: float | None = None
        self._last_assigned: frozenset[int] = frozenset({0})

    def subscribe(self, slots: Slots | None = None) -> None:
        """Join the consumer group for the topics of `slots` (by default, the current slots)."""
        topics = list((self.slots if slots is None else slots).topics)
        if not topics:  # none of the listed topics exists
            self._consumer.unsubscribe()  # type: ignore[no-untyped-call]
            return
        self._consumer.subscribe(topics, on_assign=self._on_assign, on_revoke=self._on_revoke, on_lost=self._on_lost)

    def update_slots(self, slots: Slots) -> None:
        """Use a new mapping of partitions to slots (unique numbers).

        If the mapping has changed, pause all partitions.
        """
        if slots == self.slots:
            return
        if slots.topics != self.slots.topics:
            self.subscribe(slots)  # If `subscribe` fails, the next call of `update_slots` tries again.
        log.info("topics: %s", ", ".join(slots.topics) or "none")
        self.pause()
        self.slots = slots
        self.assigned = assigned_slots(self.slots, self._assigned_partitions)
        self._forget()

    def refresh_login(self) -> None:
        """Use changed client settings.

        Call this method regularly, in the same thread as `end_offsets`.
        """
        if self.login.has_changed():
            log.info("the login for the Kafka cluster %s has changed", self.login.servers)
            self._connection = self.login.current()
            self._admin.connect(self._connection)
            self._connection_changed = True

    def replace_consumer(self) -> None:
        """Replace the consumer after a fatal error. The partitions are assigned again."""
        self._on_revoke(self._consumer, [])
        self._consumer.close()  # type: ignore[no-untyped-call]
        self._consumer = self._application.get_consumer(auto_commit_enable=False)
        self.subscribe()

    def _on_assign(self, consumer: Any, partitions: list[TopicPartition]) -> None:
        for partition in partitions:
            # Set an absolute offset, because a logical offset (such as OFFSET_STORED) could override the loop's seek.
            partition.offset = 0
        consumer.assign(partitions)
        consumer.pause(partitions)
        self._assigned_partitions, self.assigned = partitions, assigned_slots(self.slots, partitions)
        self._last_assigned, self.lost_at = self.assigned or self._last_assigned, None
        self._forget()

    def _on_revoke(self, consumer: Any, partitions: list[TopicPartition]) -> None:
        self._assigned_partitions, self.assigned = [], frozenset()
        self._forget()

    def _on_lost(self, consumer: Any, partitions: list[TopicPartition]) -> None:
        self.lost_at = time.monotonic()
        self._on_revoke(consumer, partitions)

    def _forget(self) -> None:
        self.generation += 1
        self._ready.clear()
        self._ends_read.clear()
        self._seeks.clear()

    @property
    def ready(self) -> frozenset[int]:
        """The partitions that are being read."""
        return frozenset(self._ready)

    def poll(self, limit: int, timeout_seconds: float) -> PollResult:
        """Wait up to `timeout_seconds` for up to `limit` records. An error is returned in `error`."""
        if self._connection_changed:
            self._connection_changed = False
            self._application = _application(self._settings, self._config, self._connection)
            self.replace_consumer()
        polled = PollResult()
        generation = self.generation
        try:
            messages = self._consumer.consume(limit, timeout_seconds)
        except KafkaException as error:
            polled.error = error.args[0]
            return polled
        if generation != self.generation:
            # If the assignment changed during `consume`, drop all records. The dropped records are read again.
            polled.error = next((fatal for message in messages if kafka_fatal(fatal := message.error())), None)
            return polled
        if self._multi_topic:
            messages = with_slots(messages, self.slots)  # type: ignore[assignment]
        if self._seeks.requested:
            # Pause partitions that started at a wrong offset, until `start_reading` seeks again.
            self.pause(self._seeks.find_failed(messages))
        # Remove messages with an error, because the value of such a message is the error's text.
        failed = [message for message in messages if message.error() is not None]
        for message in failed:
            self._handle_error(message, message.error(), polled)
        records = [message for message in messages if message.error() is None] if failed else messages
        ready = self._ready
        if not ready.issuperset({message.partition() for message in records}):
            records = [message for message in records if message.partition() in ready]
        polled.messages = wrap_staged(records) if self._staged else records
        return polled

    def _handle_error(self, message: Any, error: KafkaError, polled: PollResult) -> None:
        code = error.code()
        if code == KafkaError._PARTITION_EOF:
            if message.partition() in self._ready:
                self._ends_read[message.partition()] = message.offset()
        elif code in (KafkaError._AUTO_OFFSET_RESET, KafkaError.OFFSET_OUT_OF_RANGE):
            polled.out_of_range.add(message.partition())
        elif polled.error is None or kafka_fatal(error):
            polled.error = error

    def start_reading(self, positions: Mapping[int, int]) -> None:
        """Start reading partitions at the offsets in `positions`. The partitions must be assigned and paused.

        Raises:
            KafkaException: seeking failed with an error other than `_STATE`. With `_STATE`, the partition stays paused.
        """
        for partition, offset in positions.items():
            try:
                self._consumer.seek(*topic_partitions(self.slots, [partition], offset))
            except KafkaException as error:
                if error.args[0].code() == KafkaError._STATE:
                    continue
                raise
            self._consumer.resume(topic_partitions(self.slots, [partition]))
            self._ready.add(partition)
            self._seeks.requested[partition] = offset

    def pause(self, partitions: Iterable[int] | None = None) -> None:
        """Pause partitions, by default all, and drop their prefetched records."""
        chosen = [p for p in (self.ready if partitions is None else partitions) if p in self.assigned]
        self._ready.difference_update(chosen)
        for partition in chosen:
            self._ends_read.pop(partition, None)
            self._seeks.requested.pop(partition, None)
        if chosen:
            try:
                self._consumer.pause(topic_partitions(self.slots, chosen))
            except KafkaException as error:
                log.info("pausing %s: %s", chosen, error)

    def report_offsets(self, offsets: Mapping[int, int]) -> None:
        """Report offsets to Kafka, for tools that show lag. Failures are only logged."""
        reported = [
            at
            for p, offset in offsets.items()
            if p in self.assigned
            for at in topic_partitions(self.slots, [p], offset)
        ]
        if not reported:
            return
        try:
            self._consumer.commit(offsets=reported, asynchronous=True)
        except KafkaException as error:
            log.debug("offsets not reported: %s", error)

    def end_offsets(self) -> dict[int, int]:
        """Return the end offsets of the assigned partitions.

        Without an assignment, return the end offsets of the previously assigned partitions.

        Raises:
            KafkaException: no end is known.
        """
        slots = self.assigned or self._last_assigned
        return self._admin.end_offsets({at: p for p in slots if (at := self.slots.topic_and_partition(p)) is not None})

    def missing_ends(self, ends: Mapping[int, int]) -> frozenset[int]:
        """Return the partitions for which `ends` has no end offset."""
        missing = (self.assigned or self._last_assigned) - ends.keys()
        return frozenset(p for p in missing if self.slots.topic_and_partition(p) is not None)

    def last_end_reached(self, partition: int) -> int:
        """Return the end offset that the consumer last reached in a partition, or -1."""
        return self._ends_read.get(partition, -1)

    def describe(self) -> dict[str, tuple[str, int]]:
        """Return the id and the number of partitions of each topic. In a list of topics, missing topics are left out.

        Raises:
            KafkaException: Kafka is not reachable, or the pipeline's only topic does not exist.
        """
        return self._admin.describe(self.slots.topics, multi_topic=self._multi_topic)

    def offset_range(self, partition: int) -> tuple[int, int]:
        """Return the first available offset and the end offset of a partition.

        Raises:
            KafkaException: Kafka is not reachable.
        """
        (topic_partition,) = topic_partitions(self.slots, [partition])
        low, high = self._consumer.get_watermark_offsets(topic_partition, timeout=REQUEST_SECONDS)
        self.heard_at = time.monotonic()
        return low, high

    def offset_at(self, partition: int, time_ms: int) -> int:
        """Return the offset of the first record at or after a wall time (epoch ms).

        Without such a record, return the end offset.

        Raises:
            KafkaException: Kafka is not reachable.
        """
        (topic_partition,) = topic_partitions(self.slots, [partition], time_ms)
        offset = self._consumer.offsets_for_times([topic_partition], timeout=REQUEST_SECONDS)[0].offset
        return int(offset) if offset >= 0 else self.offset_range(partition)[1]

    def close(self) -> None:
        """Leave the consumer group, so that other members take over at once."""
        with suppress(KafkaException):
            self._consumer.unsubscribe()  # type: ignore[no-untyped-call]
            deadline = time.monotonic() + LEAVE_SECONDS
            while self.assigned and time.monotonic() < deadline:
                self._consumer.consume(1, 0.1)
        self._consumer.close()  # type: ignore[no-untyped-call]


def _application(settings: WorkloadSettings, config: PipelineConfig, connection: dict[str, Any]) -> Application:
    return Application(
        broker_address=ConnectionConfig.from_librdkafka_dict(connection),
        consumer_group=names.consumer_group(config.namespace, config.name, settings.reader),
        auto_offset_reset="error",
        auto_create_topics=False,
        loglevel=None,
        consumer_extra_config={
            **CONSUMER_TUNING,
            "session.timeout.ms": settings.session_timeout_ms,
            "heartbeat.interval.ms": max(500, settings.session_timeout_ms // 6),
            **(_MULTI_TOPIC_TUNING if config.spec.source.is_multi_topic else {}),
            **({"group.instance.id": settings.instance} if settings.instance else {}),
        },
    )
