"""The three idempotent Kafka producers of ingest.

- For requests without an `Idempotency-Key`: the producer discards records after the publish timeout, or once Kafka
  counts as down. Clients then send the records again.
- For requests with an `Idempotency-Key`: the producer retries until the outcome is known.
- For clients that do not wait: even if Kafka is down, the producer keeps records until the publish timeout.
"""

from __future__ import annotations

import logging
import weakref
from typing import Any

from confluent_kafka import KafkaError, Producer

from tidemill_chassis.kafka_clients import FAST_RECONNECT, platform_connection
from tidemill_chassis.resilience.config import Guard
from tidemill_chassis.resilience.failures import kafka_fatal
from tidemill_contract.events.fields import MAX_RECORD_BYTES
from tidemill_contract.runtime import WorkloadSettings

log = logging.getLogger(__name__)

QUEUE_MESSAGES = 200_000
QUEUE_BYTES = 256 * 1024 * 1024
PERSISTENT_TIMEOUT_SECONDS = 24 * 3600
"""How long (seconds) records of requests with an Idempotency-Key are retried."""
_MAX_RETRIES = 2**31 - 1
_OTHER_NAMES = ("message.timeout.ms", "message.send.max.retries")
"""Older names of the settings `delivery.timeout.ms` and `retries`, which librdkafka accepts too."""
_MIN_ANSWER_SECONDS = 10.0
_UNWRITTEN_ERRORS = frozenset(
    {
        "_PURGE_QUEUE",
        "_QUEUE_FULL",
        "_UNKNOWN_TOPIC",
        "_UNKNOWN_PARTITION",
        "_INVALID_ARG",
        "UNKNOWN_TOPIC_OR_PART",
        "TOPIC_EXCEPTION",
        "TOPIC_AUTHORIZATION_FAILED",
        "CLUSTER_AUTHORIZATION_FAILED",
        "MSG_SIZE_TOO_LARGE",
        "RECORD_LIST_TOO_LARGE",
        "INVALID_MSG",
        "INVALID_MSG_SIZE",
        "INVALID_RECORD",
        "INVALID_TIMESTAMP",
        "POLICY_VIOLATION",
    }
)


def proves_unwritten(error: KafkaError) -> bool:
    """Return True if the error proves the absence of the record from Kafka."""
    return error.name() in _UNWRITTEN_ERRORS


class ProducerHolder:
    """Holds a Kafka producer, and replaces the producer after a fatal error."""

    def __init__(self, settings: dict[str, Any]) -> None:
        # Without a weak reference, this callback would keep the Kafka client in memory forever.
        weak_on_error = weakref.WeakMethod(self.on_error)
        self._settings = {**settings, "error_cb": lambda error: (method := weak_on_error()) and method(error)}
        self.producer = Producer(self._settings)
        self._retired: list[Producer] = []
        self._fatal = False

    def poll(self) -> bool:
        """Call the callbacks of delivery reports, and return whether the producer was replaced after a fatal error."""
        self.producer.poll(0)
        replaced = self._fatal
        if replaced:
            log.error("the Kafka producer had a fatal error and is replaced")
            self.replace_and_purge()
        if self._retired:
            for old in self._retired:
                old.poll(0)
            self._retired = [old for old in self._retired if len(old)]
        return replaced

    def purge(self) -> None:
        """Discard all records, and call their delivery callbacks."""
        for producer in (self.producer, *self._retired):
            producer.purge()
            producer.poll(0)

    def on_error(self, error: KafkaError) -> None:
        """Note a fatal error, so that the next poll replaces the producer."""
        if kafka_fatal(error):
            self._fatal = True

    def replace(self) -> None:
        """Use a new producer for new records. The old producer still sends the records in its queue."""
        if len(self.producer) and not self._retired:
            self._retired.append(self.producer)
            self.producer = Producer(self._settings)

    def purge_retired(self) -> None:
        """Discard the undelivered records of replaced producers."""
        for old in self._retired:
            old.purge()

    def replace_and_purge(self) -> None:
        """Use a new producer for new records, and discard the records of the old producer."""
        old, self.producer = self.producer, Producer(self._settings)
        old.purge()
        self._retired.append(old)
        self._fatal = False


def persistent_config(settings: dict[str, Any], publish_seconds: float) -> dict[str, Any]:
    """Return the settings of the producer for requests with an Idempotency-Key."""
    return {
        **{name: value for name, value in settings.items() if name not in _OTHER_NAMES},
        "delivery.timeout.ms": PERSISTENT_TIMEOUT_SECONDS * 1000,
        "retries": _MAX_RETRIES,
        # If a broker does not answer within `socket.timeout.ms`, the Kafka client repeats the request.
        "socket.timeout.ms": int(max(_MIN_ANSWER_SECONDS, publish_seconds) * 1000),
    }


def config(settings: WorkloadSettings, guard: Guard, publish_seconds: float) -> dict[str, Any]:
    """Return the settings of the producer for requests without an Idempotency-Key."""
    policy = guard.policy
    return {
        "enable.idempotence": True,
        "acks": "all",
        "linger.ms": 5,
        "batch.size": 512 * 1024,
        "compression.type": "lz4",
        "message.max.bytes": MAX_RECORD_BYTES,
        "delivery.timeout.ms": int(publish_seconds * 1000),
        # An idempotent producer requires at least one retry.
        "retries": max(1, policy.retries),
        "retry.backoff.ms": max(1, int(policy.initial_seconds * 1000)),
        "retry.backoff.max.ms": max(1, int(policy.max_seconds * 1000)),
        **FAST_RECONNECT,
        # Report a missing topic after 5 s. The default of 30 s is too long for an HTTP request.
        "topic.metadata.propagation.max.ms": 5000,
        # Make librdkafka's queue twice as large as the sink's limits. The sink's limits are then reached first.
        "queue.buffering.max.messages": 2 * QUEUE_MESSAGES,
        "queue.buffering.max.kbytes": 2 * QUEUE_BYTES // 1024,
        "partitioner": "murmur2_random",
        "log_level": 3,
        **platform_connection(settings),
    }
