"""The Quix Streams application of the Python stage.

Each Kafka transaction contains records of the stage topic and positions in the source topic.
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
from tidemill_contract.stage_records import Origin
from tidemill_processor.stage import metrics
from tidemill_processor.stage.calls import CallMemory
from tidemill_processor.stage.rewriting import Rewriter

log = logging.getLogger(__name__)

COMMIT_RECORDS = 10_000
"""The maximum number of source records in a transaction."""

ABORT_SECONDS = 5.0
"""After partitions were lost, aborting the transaction may take at most this many seconds."""
LEAVE_SECONDS = 5.0
"""How long (seconds) the process may take to leave the consumer group."""
_MARGIN_MS = 10_000
"""A transaction's timeout is the call timeout plus the flush interval plus this many milliseconds."""
_MIN_POLL_MS = 300_000

_CONSUMER: Mapping[str, Any] = {
    "fetch.queue.backoff.ms": 5,
    "queued.max.messages.kbytes": 32_768,
    "fetch.message.max.bytes": 4 * 1024 * 1024,
    "allow.auto.create.topics": False,
    # New partitions of the topic are detected within 10 s.
    "topic.metadata.refresh.interval.ms": 10_000,
    "isolation.level": "read_committed",
    # If a broker does not answer a fetch within 30 s, the consumer reconnects.
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


class _LeavingApplication(Application):
    """An application that leaves its consumer group when it stops. So other processes take over at once."""

    leaves = True

    def _on_lost(self, consumer: Any, topic_partitions: list[Any]) -> None:
        # Abort the transaction, because another process may already read the lost partitions.
        self._processing_context.producer.abort_transaction(ABORT_SECONDS)
        self._processing_context.init_checkpoint()  # type: ignore[no-untyped-call]
        super()._on_lost(consumer, topic_partitions)

    def _run_dataframe(self, sink: Any = None) -> None:
        super()._run_dataframe(sink)
        # `super()._run_dataframe` has committed all records, but has not closed the consumer.
        if not self.leaves:
            return
        with suppress(KafkaException):
            self._consumer.unsubscribe()  # type: ignore[no-untyped-call]
            deadline = time.monotonic() + LEAVE_SECONDS
            while self._consumer.assignment() and time.monotonic() < deadline:
                self._consumer.poll(0.1)


class StageApplication:
    """A Quix Streams application that rewrites the records of one pipeline's source topic."""

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
        self._application = _LeavingApplication(
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
            on_message_processed=self._on_processed if given_up else None,
            consumer_extra_config={
                **connection,
                **_CONSUMER,
                **static,
                "session.timeout.ms": settings.session_timeout_ms,
                "heartbeat.interval.ms": max(500, settings.session_timeout_ms // 6),
                "max.poll.interval.ms": max(_MIN_POLL_MS, 2 * timeout_ms),
            },
            producer_extra_config={
                **connection,
                **_PRODUCER,
                # Kafka aborts the transaction of a killed stage after this time. A call of the user's function is part
                # of the transaction.
                "transaction.timeout.ms": timeout_ms + flush_ms + _MARGIN_MS,
                # When a process starts with the same id, Kafka aborts the open transaction of the previous process.
                "transactional.id": f"{group}.{settings.instance or uuid.uuid4()}",
            },
        )
        topic = self._application.topic(config.events_topic, value_deserializer="bytes", key_deserializer="bytes")
        frame = self._application.dataframe(topic)
        # Do not use `to_topic`, which cannot choose the partition. Output records keep their source record's partition.
        self._context = frame.processing_context
        self._producer = self._context.producer
        frame.update(self._rewrite, metadata=True)

    def run(self) -> None:
        """Process records until `stop()` is called, or until the process gets SIGTERM or SIGINT.

        Raises:
            Exception: Kafka has failed, and the open transaction is lost.
        """
        self._application.run()

    def stop(self, *, leave: bool = True) -> None:
        """Let `run` return after the current record, and leave the consumer group if `leave` is true."""
        self._application.leaves = leave
        self._application.stop()

    def _on_processed(self, _topic: str, partition: int, offset: int) -> None:
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
                headers=cast(Any, record.headers),  # Kafka allows null header values, but the type annotation does not
                partition=at.partition,
            )
        metrics.count_record(rewritten.outcome, len(rewritten.records), seconds)
