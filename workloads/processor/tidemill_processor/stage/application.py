"""The Quix Streams application of the stage.

Each Kafka transaction contains records of the stage topic, and positions in the source topic.
"""

from __future__ import annotations

import logging
import tempfile
import time
import uuid
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, cast

from confluent_kafka import KafkaException
from quixstreams import Application, message_context
from quixstreams.kafka import ConnectionConfig

from tidemill_contract import names
from tidemill_contract.duration import parse_ms
from tidemill_contract.events.fields import MAX_RECORD_BYTES
from tidemill_contract.runtime import PipelineConfig, WorkloadSettings
from tidemill_contract.staged import Origin
from tidemill_processor.stage import metrics
from tidemill_processor.stage.calls import CallMemory
from tidemill_processor.stage.rewriting import Rewriter

log = logging.getLogger(__name__)

COMMIT_RECORDS = 10_000
"""A transaction has at most this many records of the source topic."""

ABORT_SECONDS = 5.0
"""The maximum time for aborting the transaction of lost partitions."""
LEAVE_SECONDS = 5.0
"""The maximum time for leaving the consumer group."""
_ROOM_MS = 10_000
"""How much longer than one call and one flush interval a transaction may be open."""
_LEAST_POLL_MS = 300_000

_CONSUMER: Mapping[str, Any] = {
    "fetch.queue.backoff.ms": 5,
    "queued.max.messages.kbytes": 32_768,
    "fetch.message.max.bytes": 4 * 1024 * 1024,
    "allow.auto.create.topics": False,
    # Detect new partitions of the topic soon.
    "topic.metadata.refresh.interval.ms": 10_000,
    "isolation.level": "read_committed",
    # A fetch from a broker whose packets are lost ends after this time, and the consumer connects again.
    "socket.timeout.ms": 30_000,
    "log_level": 3,
}
_PRODUCER: Mapping[str, Any] = {
    "acks": "all",
    "linger.ms": 5,
    "compression.type": "lz4",
    "message.max.bytes": MAX_RECORD_BYTES,
    "topic.metadata.refresh.interval.ms": 10_000,
    "log_level": 3,
}


class _Leaving(Application):
    """An application that leaves its consumer group when it stops, so that other processes take over at once.

    A member with a name (`group.instance.id`) does not leave when its consumer is closed: Kafka waits for a session for
    its return. When partitions are lost, their open transaction is aborted.
    """

    leaves = True

    def _on_lost(self, consumer: Any, topic_partitions: list[Any]) -> None:
        # Another process may read these partitions already. If this process joined the group again, it would otherwise
        # commit the records and positions of the open transaction as a valid member.
        self._processing_context.producer.abort_transaction(ABORT_SECONDS)
        self._processing_context.init_checkpoint()  # type: ignore[no-untyped-call]
        super()._on_lost(consumer, topic_partitions)

    def _run_dataframe(self, sink: Any = None) -> None:
        super()._run_dataframe(sink)
        # Everything is committed now, and the consumer is still open.
        if not self.leaves:
            return
        with suppress(KafkaException):
            self._consumer.unsubscribe()  # type: ignore[no-untyped-call]
            deadline = time.monotonic() + LEAVE_SECONDS
            while self._consumer.assignment() and time.monotonic() < deadline:
                self._consumer.poll(0.1)


class StageApplication:
    """A Quix Streams application that rewrites the records of one pipeline's source topic.

    Args:
        settings: the process's settings.
        config: the pipeline.
        connection: client settings.
        rewriter: makes the records of the stage topic.
        calls: gets the current call of the function.
        topic_id: Kafka's id of the source topic.
        given_up: why the function does not get a record, by partition and offset.
    """

    def __init__(
        self,
        settings: WorkloadSettings,
        config: PipelineConfig,
        connection: Mapping[str, Any],
        *,
        rewriter: Rewriter,
        calls: CallMemory,
        topic_id: str,
        given_up: Mapping[tuple[int, int], str],
    ) -> None:
        self._rewriter, self._calls, self._topic_id, self._given_up = rewriter, calls, topic_id, given_up
        self._target = config.read_topic
        group = names.consumer_group(config.namespace, config.name, "stage")
        python = config.spec.transform.python
        assert python is not None  # noqa: S101 - the pipeline has a stage
        timeout_ms, flush_ms = parse_ms(python.timeout), parse_ms(config.spec.processor.flush_interval)
        static = {"group.instance.id": settings.instance} if settings.instance else {}
        self._application = _Leaving(
            broker_address=ConnectionConfig.from_librdkafka_dict(dict(connection), ignore_extras=True),
            consumer_group=group,
            auto_offset_reset="earliest",
            processing_guarantee="exactly-once",
            commit_interval=flush_ms / 1000,
            commit_every=COMMIT_RECORDS,
            consumer_poll_timeout=0.2,
            auto_create_topics=False,
            use_changelog_topics=False,
            state_dir=tempfile.gettempdir(),
            loglevel=None,
            on_message_processed=self._processed if given_up else None,
            consumer_extra_config={
                **connection,
                **_CONSUMER,
                **static,
                "session.timeout.ms": settings.session_timeout_ms,
                "heartbeat.interval.ms": max(500, settings.session_timeout_ms // 6),
                "max.poll.interval.ms": max(_LEAST_POLL_MS, 2 * timeout_ms),
            },
            producer_extra_config={
                **connection,
                **_PRODUCER,
                # A call may take as long as `timeout`, so the transaction must not end sooner. Processors cannot read
                # beyond an open transaction: if a stage is killed and none of its name follows, Kafka ends its
                # transaction after this time.
                "transaction.timeout.ms": timeout_ms + flush_ms + _ROOM_MS,
                # A process that starts with the same id ends the open transaction of its predecessor.
                "transactional.id": f"{group}.{settings.instance or uuid.uuid4()}",
            },
        )
        topic = self._application.topic(config.events_topic, value_deserializer="bytes", key_deserializer="bytes")
        frame = self._application.dataframe(topic)
        # `to_topic` cannot choose the partition, and each record has to keep its source record's partition.
        self._context = frame.processing_context
        self._producer = self._context.producer
        frame.update(self._rewrite, metadata=True)

    def run(self) -> None:
        """Process records until `stop()` is called, or until the process gets SIGTERM or SIGINT.

        Raises:
            Exception: Kafka has failed. Nothing in the open transaction is kept.
        """
        self._application.run()

    def stop(self, *, leave: bool = True) -> None:
        """Let `run` return after the current record. Any thread may call this.

        Args:
            leave: whether to leave the group, so that other processes take over. Otherwise, this process has to return
                within the session timeout.
        """
        self._application.leaves = leave
        self._application.stop()

    def _processed(self, _topic: str, partition: int, offset: int) -> None:
        """Commit right after a record that was given up, so that it does not come again if the next call is ended."""
        if (partition, offset) in self._given_up:
            self._context.commit_checkpoint(force=True)

    def _rewrite(self, value: bytes | None, key: bytes | None, timestamp: int, headers: Any) -> None:
        at = message_context()
        began = time.perf_counter()
        origin = Origin(self._topic_id, at.offset, timestamp)
        if self._given_up and (why := self._given_up.get((at.partition, at.offset))) is not None:
            rewritten = self._rewriter.refuse(value, key, headers, origin, why=why)
        else:
            self._calls.begin(at.partition, at.offset)
            try:
                rewritten = self._rewriter.rewrite(value, key, headers, origin)
            finally:
                self._calls.end()
        seconds = time.perf_counter() - began
        for record in rewritten.records:
            self._producer.produce(
                topic=self._target,
                value=record.value,
                key=record.key,
                headers=cast(Any, record.headers),  # a header may be null, despite the annotation
                partition=at.partition,
            )
        metrics.note(rewritten.outcome, len(rewritten.records), seconds)
