"""The producers: one gives a record up after the publish timeout, the other tries until its outcome is known.

Both are idempotent: however often the client repeats a record within one life of a producer, Kafka appends it once. But
a record that is given up while it is under way may have been written. A sender without an `Idempotency-Key` is told so,
and is better off than if a copy of each of its attempts waited here for the end of an outage. With a key there is one
attempt, and whether it succeeded has to be known before another is made: so it is not given up. Records whose sender
does not wait have a producer of their own: while Kafka is away those that are waited for are given up sooner.
"""

from __future__ import annotations

import json
import logging
import weakref
from typing import Any

from confluent_kafka import KafkaError, Producer

from tidemill_chassis.resilience.config import Guard
from tidemill_chassis.resilience.failures import kafka_fatal
from tidemill_contract.events.decoder import MAX_RECORD_BYTES
from tidemill_contract.files import read_text
from tidemill_contract.runtime import WorkloadSettings

log = logging.getLogger(__name__)

QUEUE_MESSAGES = 200_000
QUEUE_BYTES = 256 * 1024 * 1024
SURE_SECONDS = 24 * 3600
"""How long the patient producer tries: as long as keys are known."""
_MOST_RETRIES = 2**31 - 1
_OTHER_NAMES = ("message.timeout.ms", "message.send.max.retries")
"""Names of the client for the same two settings."""
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
    """Whether a record that failed so is surely not in Kafka: it never left, or the broker refused it."""
    return error.name() in _DEFINITE


class Line:
    """A producer that is made anew after a fatal error.

    Attributes:
        producer: the one of now.
    """

    def __init__(self, settings: dict[str, Any]) -> None:
        # A client keeps its callback. One that led back to us would keep both alive, and the threads of the client.
        told = weakref.WeakMethod(self.on_error)
        self._settings = {**settings, "error_cb": lambda error: (method := told()) and method(error)}
        self.producer = Producer(self._settings)
        self._retired: list[Producer] = []
        self._fatal = False

    def poll(self) -> bool:
        """Serve delivery reports; whether another producer was made."""
        self.producer.poll(0)
        renewed = self._fatal
        if renewed:
            log.error("the producer met a fatal error and is made anew")
            self.renew()
        if self._retired:
            for old in self._retired:
                old.poll(0)
            self._retired = [old for old in self._retired if len(old)]
        return renewed

    def purge(self) -> None:
        """Give up what is queued and under way, and report it."""
        for producer in (self.producer, *self._retired):
            producer.purge()
            producer.poll(0)

    def on_error(self, error: KafkaError) -> None:
        """Told by the client, or met when a record was queued."""
        if kafka_fatal(error):
            self._fatal = True

    def replace(self) -> None:
        """Another producer takes what comes from now on; this one goes on with what it has. One at a time."""
        if len(self.producer) and not self._retired:
            self._retired.append(self.producer)
            self.producer = Producer(self._settings)

    def give_up_retired(self) -> None:
        """Producers that were replaced give up what they have."""
        for old in self._retired:
            old.purge()

    def renew(self) -> None:
        """The producer gives up what it has, tells so when it is polled, and makes way for a new one."""
        old, self.producer = self.producer, Producer(self._settings)
        old.purge()
        self._retired.append(old)
        self._fatal = False


def sure(settings: dict[str, Any], publish_seconds: float) -> dict[str, Any]:
    """The settings of the patient producer, given those of the other."""
    return {
        **{name: value for name, value in settings.items() if name not in _OTHER_NAMES},
        "delivery.timeout.ms": SURE_SECONDS * 1000,
        "retries": _MOST_RETRIES,
        # A broker that went without a word is asked again after this, not after the default of a minute.
        "socket.timeout.ms": int(max(_LEAST_ANSWER_SECONDS, publish_seconds) * 1000),
    }


def config(settings: WorkloadSettings, guard: Guard, publish_seconds: float) -> dict[str, Any]:
    """The settings of the producer of records without a key, which are tried for so long."""
    extra = json.loads(read_text(settings.kafka_config)) if settings.kafka_config else {}
    policy = guard.policy
    return {
        "bootstrap.servers": settings.kafka_brokers,
        "enable.idempotence": True,
        "acks": "all",
        "linger.ms": 5,
        "batch.size": 512 * 1024,
        "compression.type": "lz4",
        "message.max.bytes": MAX_RECORD_BYTES,
        "delivery.timeout.ms": int(publish_seconds * 1000),
        # Idempotence needs at least one.
        "retries": max(1, policy.retries),
        "retry.backoff.ms": max(1, int(policy.initial_seconds * 1000)),
        "retry.backoff.max.ms": max(1, int(policy.max_seconds * 1000)),
        "reconnect.backoff.max.ms": 2000,
        # A topic that is missing is told soon, not after the default of 30 s.
        "topic.metadata.propagation.max.ms": 5000,
        # Room is counted here, a request at a time; the client's own limits are only a last resort.
        "queue.buffering.max.messages": 2 * QUEUE_MESSAGES,
        "queue.buffering.max.kbytes": 2 * QUEUE_BYTES // 1024,
        "partitioner": "murmur2_random",
        "log_level": 3,
        **extra,
    }
