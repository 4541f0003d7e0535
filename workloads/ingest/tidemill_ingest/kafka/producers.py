"""The three producers of ingest, which differ in how long they retry a record.

All producers are idempotent: if a producer repeats a record, Kafka still appends it once. But a record that was sent
and then discarded may be in Kafka.

- For requests without an `Idempotency-Key`, the producer discards a record after the publish timeout. The response says
  so, and the client sends the record again. If the producer kept the record, the queue would contain a copy for each
  attempt during an outage.
- For requests with an `Idempotency-Key`, the outcome must be known before the next attempt. So a second producer
  retries until the outcome is known.
- For requests whose client does not wait, there is a third producer. When Kafka goes down, the first producer discards
  its records at once, because their clients send them again. The third producer keeps its records until the publish
  timeout.
"""

from __future__ import annotations

import logging
import weakref
from typing import Any

from confluent_kafka import KafkaError, Producer

from tidemill_chassis.kafka_clients import RECONNECTING, own_connection
from tidemill_chassis.resilience.config import Guard
from tidemill_chassis.resilience.failures import kafka_fatal
from tidemill_contract.events.fields import MAX_RECORD_BYTES
from tidemill_contract.runtime import WorkloadSettings

log = logging.getLogger(__name__)

QUEUE_MESSAGES = 200_000
QUEUE_BYTES = 256 * 1024 * 1024
SURE_SECONDS = 24 * 3600
"""The time for which the producer for requests with an Idempotency-Key retries. Keys are kept for the same time."""
_MOST_RETRIES = 2**31 - 1
_OTHER_NAMES = ("message.timeout.ms", "message.send.max.retries")
"""The other names of `delivery.timeout.ms` and `retries` in the client's settings."""
_LEAST_ANSWER_SECONDS = 10.0
_DEFINITE = frozenset(
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


def is_definite(error: KafkaError) -> bool:
    """Return whether a record with this error is certainly not in Kafka, because it was not sent or was refused."""
    return error.name() in _DEFINITE


class Line:
    """A producer that is replaced after a fatal error.

    Attributes:
        producer: the current producer.
    """

    def __init__(self, settings: dict[str, Any]) -> None:
        # Use a weak reference. The Kafka client keeps this callback, so with a strong reference neither this object nor
        # the client would ever be released.
        told = weakref.WeakMethod(self.on_error)
        self._settings = {**settings, "error_cb": lambda error: (method := told()) and method(error)}
        self.producer = Producer(self._settings)
        self._retired: list[Producer] = []
        self._fatal = False

    def poll(self) -> bool:
        """Call the callbacks of delivery reports. Return whether the producer was replaced after a fatal error."""
        self.producer.poll(0)
        renewed = self._fatal
        if renewed:
            log.error("the producer had a fatal error and is replaced")
            self.renew()
        if self._retired:
            for old in self._retired:
                old.poll(0)
            self._retired = [old for old in self._retired if len(old)]
        return renewed

    def purge(self) -> None:
        """Discard all records, and call their delivery callbacks."""
        for producer in (self.producer, *self._retired):
            producer.purge()
            producer.poll(0)

    def on_error(self, error: KafkaError) -> None:
        """Note a fatal error, so that the next poll replaces the producer. Ignore other errors."""
        if kafka_fatal(error):
            self._fatal = True

    def replace(self) -> None:
        """Send further records through a new producer. The former producer still sends the records that it has.

        Do nothing if the producer has no records, or if there is already a former producer.
        """
        if len(self.producer) and not self._retired:
            self._retired.append(self.producer)
            self.producer = Producer(self._settings)

    def give_up_retired(self) -> None:
        """Discard the records of former producers."""
        for old in self._retired:
            old.purge()

    def renew(self) -> None:
        """Replace the producer, and discard its records.

        The next polls call the delivery callbacks of these records.
        """
        old, self.producer = self.producer, Producer(self._settings)
        old.purge()
        self._retired.append(old)
        self._fatal = False


def sure(settings: dict[str, Any], publish_seconds: float) -> dict[str, Any]:
    """Return the settings of the producer for requests with an Idempotency-Key.

    These settings are derived from `settings`, which are the settings of the producer for other requests.
    """
    return {
        **{name: value for name, value in settings.items() if name not in _OTHER_NAMES},
        "delivery.timeout.ms": SURE_SECONDS * 1000,
        "retries": _MOST_RETRIES,
        # After this time, the client repeats a request that the broker has not answered. The default of a minute is too
        # long.
        "socket.timeout.ms": int(max(_LEAST_ANSWER_SECONDS, publish_seconds) * 1000),
    }


def config(settings: WorkloadSettings, guard: Guard, publish_seconds: float) -> dict[str, Any]:
    """Return the settings of the producer for requests without an Idempotency-Key.

    The producer discards a record that is not acknowledged within `publish_seconds`.
    """
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
        **RECONNECTING,
        # A missing topic is reported after 5 s, because the default of 30 s is too long for a request.
        "topic.metadata.propagation.max.ms": 5000,
        # The sink limits the queue to fewer records, so these limits of the client are not reached in normal operation.
        "queue.buffering.max.messages": 2 * QUEUE_MESSAGES,
        "queue.buffering.max.kbytes": 2 * QUEUE_BYTES // 1024,
        "partitioner": "murmur2_random",
        "log_level": 3,
        **own_connection(settings),
    }
