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
from tidemill_processor.stage.rewriting import Rewriter
from tidemill_processor.stage.watch import SLOW_SECONDS

log = logging.getLogger(__name__)

COMMIT_RECORDS = 10_000
"""A transaction has at most this many records of the source topic."""

LEAVE_SECONDS = 5.0
"""The maximum time for leaving the consumer group."""

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
    # Processors cannot read beyond an open transaction. If a stage is killed, Kafka aborts its transaction after this
    # time.
    "transaction.timeout.ms": int(SLOW_SECONDS * 1000),
    "log_level": 3,
}


class _Leaving(Application):
    """An application that leaves its consumer group when it stops, so that other processes take over at once.

    A static member (with a `group.instance.id`) does not leave when its consumer is closed: Kafka waits for its return,
    until the session timeout.
    """

    leaves = True

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
        topic_id: Kafka's id of the source topic.
    """

    def __init__(
        self,
        settings: WorkloadSettings,
        config: PipelineConfig,
        connection: Mapping[str, Any],
        *,
        rewriter: Rewriter,
        topic_id: str,
    ) -> None:
        self._rewriter, self._topic_id = rewriter, topic_id
        self._target = config.read_topic
        group = names.consumer_group(config.namespace, config.name, "stage")
        static = {"group.instance.id": settings.instance} if settings.instance else {}
        self._application = _Leaving(
            broker_address=ConnectionConfig.from_librdkafka_dict(dict(connection), ignore_extras=True),
            consumer_group=group,
            auto_offset_reset="earliest",
            processing_guarantee="exactly-once",
            commit_interval=parse_ms(config.spec.processor.flush_interval) / 1000,
            commit_every=COMMIT_RECORDS,
            consumer_poll_timeout=0.2,
            auto_create_topics=False,
            use_changelog_topics=False,
            state_dir=tempfile.gettempdir(),
            loglevel=None,
            consumer_extra_config={
                **connection,
                **_CONSUMER,
                **static,
                "session.timeout.ms": settings.session_timeout_ms,
                "heartbeat.interval.ms": max(500, settings.session_timeout_ms // 6),
            },
            producer_extra_config={
                **connection,
                **_PRODUCER,
                # A process that starts with the same id aborts the open transaction of its predecessor.
                "transactional.id": f"{group}.{settings.instance or uuid.uuid4()}",
            },
        )
        topic = self._application.topic(config.events_topic, value_deserializer="bytes", key_deserializer="bytes")
        frame = self._application.dataframe(topic)
        # `to_topic` cannot choose the partition, and each record has to keep its source record's partition.
        self._producer = frame.processing_context.producer
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

    def _rewrite(self, value: bytes | None, key: bytes | None, timestamp: int, headers: Any) -> None:
        at = message_context()
        began = time.perf_counter()
        origin = Origin(self._topic_id, at.offset, timestamp)
        rewritten = self._rewriter.rewrite(value, key, headers, origin)
        metrics.FUNCTION_SECONDS.inc(time.perf_counter() - began)
        metrics.STAGE_RECORDS.labels(rewritten.outcome).inc()
        for record in rewritten.records:
            self._producer.produce(
                topic=self._target,
                value=record.value,
                key=record.key,
                headers=cast(Any, record.headers),  # a header may be null, despite the annotation
                partition=at.partition,
            )
        metrics.STAGE_WRITTEN.inc(len(rewritten.records))
