"""The source topic, through Quix Streams' consumer: which partitions we own, where we read, where they end.

The assign callback does no I/O and never raises: it assigns, pauses and bumps a generation. The loop then reads the
positions, seeks and resumes; until then a partition is not `ready`, and what comes of it is dropped (it comes again).
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterable, Mapping
from concurrent.futures import wait
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from confluent_kafka import KafkaError, KafkaException, Producer, TopicCollection, TopicPartition
from confluent_kafka.admin import AdminClient, OffsetSpec
from quixstreams import Application
from quixstreams.kafka import ConnectionConfig

from tidemill_chassis.resilience.failures import kafka_fatal
from tidemill_contract import names
from tidemill_contract.events.decoder import MAX_RECORD_BYTES
from tidemill_contract.files import read_text
from tidemill_contract.runtime import PipelineConfig, WorkloadSettings

log = logging.getLogger(__name__)

CONSUMER_TUNING: Mapping[str, Any] = {
    # The default of 1 s stalls a fast consumer whenever its queue was full.
    "fetch.queue.backoff.ms": 5,
    "queued.min.messages": 200_000,
    # Prefetch is memory: bound it.
    "queued.max.messages.kbytes": 32_768,
    "fetch.message.max.bytes": 4 * 1024 * 1024,
    "enable.partition.eof": True,
    "statistics.interval.ms": 0,
    "max.poll.interval.ms": 300_000,
    "allow.auto.create.topics": False,
    "partition.assignment.strategy": "range",
}

PRODUCER_TUNING: Mapping[str, Any] = {
    "acks": "all",
    "enable.idempotence": True,
    "linger.ms": 20,
    # A report a record costs as much as encoding it; what matters is whether one failed.
    "delivery.report.only.error": True,
    "compression.type": "lz4",
    # What the topics take: a window of long texts is a long record, and one that is refused holds up all after it.
    "message.max.bytes": MAX_RECORD_BYTES,
    "partitioner": "murmur2_random",
    "log_level": 3,
}


ASK_SECONDS = 5.0
"""How long an answer of Kafka to a question may take."""
LEAVE_SECONDS = 3.0
"""How long leaving the group may take."""
GAP_SIGHTINGS = 2
"""How often the same gap behind a sought offset must be met before it is believed to be one."""


@dataclass
class Polled:
    """What one consume call brought.

    Attributes:
        messages: records of ready partitions.
        out_of_range: partitions whose position Kafka no longer holds.
        failed: the first error that is about the connection or the topic, if any.
    """

    messages: list[Any] = field(default_factory=list)
    out_of_range: set[int] = field(default_factory=set)
    failed: KafkaError | None = None


class Source:
    """Consumes one topic as a member of the pipeline's consumer group.

    Attributes:
        heard_at: when a question about an offset was answered last (monotonic seconds).
        lost_at: since when the group counts us out, as we did not reach its coordinator; None: it does not.
    """

    def __init__(self, settings: WorkloadSettings, config: PipelineConfig) -> None:
        extra = json.loads(read_text(settings.kafka_config)) if settings.kafka_config else {}
        self._connection = {"bootstrap.servers": settings.kafka_brokers, **extra}
        self.topic = config.events_topic
        self._application = Application(
            broker_address=ConnectionConfig.from_librdkafka_dict(self._connection),
            consumer_group=names.consumer_group(config.namespace, config.name, settings.reader),
            auto_offset_reset="error",
            auto_create_topics=False,
            loglevel=None,
            consumer_extra_config={
                **CONSUMER_TUNING,
                "session.timeout.ms": settings.session_timeout_ms,
                "heartbeat.interval.ms": max(500, settings.session_timeout_ms // 6),
                **({"group.instance.id": settings.instance} if settings.instance else {}),
            },
        )
        self._consumer = self._application.get_consumer(auto_commit_enable=False)
        self._admin = AdminClient(self._connection)
        self.generation = 0
        self.assigned: frozenset[int] = frozenset()
        self._ready: set[int] = set()
        self._ends_read: dict[int, int] = {}
        self._sought: dict[int, int] = {}
        self._gaps: dict[int, list[tuple[int, int]]] = {}
        self.heard_at = 0.0
        self.lost_at: float | None = None
        self._had: frozenset[int] = frozenset({0})

    def producer(self) -> Producer:
        """A producer to the same cluster. Not Quix' own, which polls after every record: a fifth of all our CPU."""
        return Producer({**self._connection, **PRODUCER_TUNING})

    def subscribe(self) -> None:
        """Join the consumer group; a member joins again, and keeps its place in it."""
        self._consumer.subscribe(
            [self.topic], on_assign=self._on_assign, on_revoke=self._on_revoke, on_lost=self._on_lost
        )

    def renew(self) -> None:
        """Another consumer in place of one that can do no more; partitions are assigned anew."""
        self._on_revoke(self._consumer, [])
        self._consumer.close()  # type: ignore[no-untyped-call]
        self._consumer = self._application.get_consumer(auto_commit_enable=False)
        self.subscribe()

    def _on_assign(self, consumer: Any, partitions: list[TopicPartition]) -> None:
        for partition in partitions:
            # Paused and sought before anything is read. An absolute offset: the answer to a question for the group's or
            # the end's would come after the seek, and now and then win over it.
            partition.offset = 0
        consumer.assign(partitions)
        consumer.pause(partitions)
        self.assigned = frozenset(p.partition for p in partitions)
        self._had, self.lost_at = self.assigned or self._had, None
        self._forget()

    def _on_revoke(self, consumer: Any, partitions: list[TopicPartition]) -> None:
        self.assigned = frozenset()
        self._forget()

    def _on_lost(self, consumer: Any, partitions: list[TopicPartition]) -> None:
        self.lost_at = time.monotonic()
        self._on_revoke(consumer, partitions)

    def _forget(self) -> None:
        self.generation += 1
        self._ready.clear()
        self._ends_read.clear()
        self._sought.clear()
        self._gaps.clear()

    @property
    def ready(self) -> frozenset[int]:
        """Partitions that have been sought and resumed."""
        return frozenset(self._ready)

    def poll(self, limit: int, timeout_seconds: float) -> Polled:
        """At most `limit` records, waiting at most `timeout_seconds`. Callbacks run in here.

        A failed consume call is told in `failed`; it is never raised.
        """
        polled = Polled()
        generation = self.generation
        try:
            messages = self._consumer.consume(limit, timeout_seconds)
        except KafkaException as error:
            polled.failed = error.args[0]
            return polled
        if generation != self.generation:
            # Some of it may be of an assignment that is gone; all of it comes again, but for what ends the consumer.
            polled.failed = next((found for message in messages if kafka_fatal(found := message.error())), None)
            return polled
        if self._sought:
            self._prove(messages)
        # An error message's value is the error's text: it must never be taken for a record.
        troubled = [message for message in messages if message.error() is not None]
        for message in troubled:
            self._note(message, message.error(), polled)
        records = [message for message in messages if message.error() is None] if troubled else messages
        ready = self._ready
        if not ready.issuperset({message.partition() for message in records}):
            records = [message for message in records if message.partition() in ready]
        polled.messages = records
        return polled

    def _prove(self, messages: list[Any]) -> None:
        """Look whether partitions are read from where they were sought to; stop those that are not, to seek again.

        Nothing may stand at that offset any more (compaction, transaction markers), so what is found every time is
        believed in the end.
        """
        for message in messages:
            partition, error = message.partition(), message.error()
            sought = self._sought.get(partition)
            if sought is None or (error is not None and error.code() != KafkaError._PARTITION_EOF):
                continue
            del self._sought[partition]
            gaps, gap = self._gaps.setdefault(partition, []), (sought, message.offset())
            if gap[0] != gap[1] and (gap[1] < sought or gaps.count(gap) < GAP_SIGHTINGS):
                log.info("partition %d was sought to %d and came from %d; seeking again", partition, *gap)
                gaps.append(gap)
                self.stop([partition])

    def _note(self, message: Any, error: KafkaError, polled: Polled) -> None:
        code = error.code()
        if code == KafkaError._PARTITION_EOF:
            if message.partition() in self._ready:
                self._ends_read[message.partition()] = message.offset()
        elif code in (KafkaError._AUTO_OFFSET_RESET, KafkaError.OFFSET_OUT_OF_RANGE):
            polled.out_of_range.add(message.partition())
        elif polled.failed is None or kafka_fatal(error):
            polled.failed = error

    def start(self, positions: Mapping[int, int]) -> None:
        """Read these (assigned, paused) partitions from these offsets on.

        A partition that librdkafka has not set up yet cannot be sought: it stays as it is, for the next try.

        Raises:
            KafkaException: seeking failed for another reason.
        """
        for partition, offset in positions.items():
            try:
                self._consumer.seek(TopicPartition(self.topic, partition, offset))
            except KafkaException as error:
                if error.args[0].code() == KafkaError._STATE:
                    continue
                raise
            self._consumer.resume([TopicPartition(self.topic, partition)])
            self._ready.add(partition)
            self._sought[partition] = offset

    def stop(self, partitions: Iterable[int] | None = None) -> None:
        """Pause partitions, by default all that are read, and drop what was fetched of them, until `start`."""
        mine = [p for p in (self.ready if partitions is None else partitions) if p in self.assigned]
        self._ready.difference_update(mine)
        for partition in mine:
            self._ends_read.pop(partition, None)
            self._sought.pop(partition, None)
        if mine:
            try:
                self._consumer.pause([TopicPartition(self.topic, p) for p in mine])
            except KafkaException as error:
                log.info("pausing %s: %s", mine, error)

    def report_offsets(self, offsets: Mapping[int, int]) -> None:
        """Tell Kafka how far we are. For lag tools only: nothing here relies on it, so a failure is just logged."""
        mine = [TopicPartition(self.topic, p, offset) for p, offset in offsets.items() if p in self.assigned]
        if not mine:
            return
        try:
            self._consumer.commit(offsets=mine, asynchronous=True)
        except KafkaException as error:
            log.debug("offsets not reported: %s", error)

    def ends(self) -> dict[int, int]:
        """End offsets of our partitions; while there are none, of those we had last. For a thread of its own.

        Those that a broker does not tell in time are left out: it may be the only one that is away.

        Raises:
            KafkaException: none is known.
        """
        asked = {TopicPartition(self.topic, p): OffsetSpec.latest() for p in self.assigned or self._had}
        futures = self._admin.list_offsets(asked, request_timeout=ASK_SECONDS)
        done, _ = wait(futures.values(), ASK_SECONDS + 1)
        answers = {tp.partition: future for tp, future in futures.items() if future in done and not future.exception()}
        # A leader that does not answer in time is no error for librdkafka: the offset is an invalid one.
        told = {partition: end for partition, future in answers.items() if (end := future.result().offset) >= 0}
        if len(told) < len(futures):
            # The client believes for minutes what it heard of leaders that may be others by now.
            self._admin = AdminClient(self._connection)
        if not told:
            _result(next(iter(futures.values())), 0.0)
            raise KafkaException(KafkaError(KafkaError._TIMED_OUT, "no leader told the end of its partition"))
        return told

    def untold(self, ends: Mapping[int, int]) -> frozenset[int]:
        """Partitions of which no end was told."""
        return (self.assigned or self._had) - ends.keys()

    def end_read(self, partition: int) -> int:
        """Where the consumer last met the partition's end, behind any transaction markers; -1: not yet."""
        return self._ends_read.get(partition, -1)

    def describe(self) -> tuple[str, int]:
        """The topic's id, which changes when a topic is made anew, and the number of its partitions.

        Raises:
            KafkaException: it does not exist or Kafka is not reachable.
        """
        admin = self._admin  # a look at ends may put another in its place, and that would end this question
        described = admin.describe_topics(TopicCollection([self.topic]), request_timeout=ASK_SECONDS)
        topic = _result(described[self.topic])
        return str(topic.topic_id), len(topic.partitions)

    def range_of(self, partition: int) -> tuple[int, int]:
        """First offset held and end offset of a partition.

        Raises:
            KafkaException: Kafka is not reachable.
        """
        low, high = self._consumer.get_watermark_offsets(TopicPartition(self.topic, partition), timeout=ASK_SECONDS)
        self.heard_at = time.monotonic()
        return low, high

    def offset_at(self, partition: int, time_ms: int) -> int:
        """The first offset at or after a wall time; the end if there is none.

        Raises:
            KafkaException: Kafka is not reachable.
        """
        asked = [TopicPartition(self.topic, partition, time_ms)]
        found = self._consumer.offsets_for_times(asked, timeout=ASK_SECONDS)[0].offset
        return int(found) if found >= 0 else self.range_of(partition)[1]

    def close(self) -> None:
        """Leave the group, so that others take over at once: who has a name of its own is waited for otherwise."""
        with suppress(KafkaException):
            self._consumer.unsubscribe()  # type: ignore[no-untyped-call]
            deadline = time.monotonic() + LEAVE_SECONDS
            while self.assigned and time.monotonic() < deadline:
                self._consumer.consume(1, 0.1)
        self._consumer.close()  # type: ignore[no-untyped-call]


def _result(future: Any, seconds: float = ASK_SECONDS + 1) -> Any:
    """What the admin client answers.

    Raises:
        KafkaException: it has no answer, or does not say so in time.
    """
    try:
        return future.result(timeout=seconds)
    except TimeoutError:
        raise KafkaException(KafkaError(KafkaError._TIMED_OUT)) from None
