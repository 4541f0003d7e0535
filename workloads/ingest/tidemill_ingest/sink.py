"""Records to Kafka: one idempotent producer, one future a request, a bounded queue, and a breaker in front.

Everything here runs on the event loop, which also polls the producer: a thread that polls would fight it for the
interpreter at every delivery report. A fatal producer error makes a new producer.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from confluent_kafka import KafkaError, KafkaException, Producer

from tidemill_contract import metrics
from tidemill_contract.event import MAX_RECORD_BYTES
from tidemill_contract.resilience import Guard
from tidemill_contract.runtime import WorkloadSettings
from tidemill_ingest.records import Records

log = logging.getLogger(__name__)

QUEUE_MESSAGES = 200_000
QUEUE_BYTES = 256 * 1024 * 1024
BUSY_SHARE = 0.8
"""Above this share of the queue new requests are refused before they are decoded."""
_POLL_SECONDS, _IDLE_SECONDS = 0.002, 0.1
_ANSWER_SECONDS = 1.0
"""How long before the end of a request its records are given up by Kafka's client, so that there is an answer."""


class QueueFullError(Exception):
    """The producer's queue takes no more now; nothing was sent."""


class KafkaDownError(Exception):
    """Kafka is known not to answer; nothing was sent."""


@dataclass
class Delivery:
    """What became of records: failed ones by index with the error; places (partition, offset) where asked for."""

    failed: dict[int, KafkaError] = field(default_factory=dict)
    places: dict[int, tuple[int, int]] = field(default_factory=dict)


class Pending:
    """The records of one request on their way; counts their delivery reports down.

    Attributes:
        future: done with `delivery` when all reports have come.
        delivery: what is known so far.
    """

    def __init__(self, records: Records, on_done: Callable[[Delivery], None]) -> None:
        self.future: asyncio.Future[Delivery] = asyncio.get_running_loop().create_future()
        self._values = records.values
        self._left = len(records.values)
        self._on_done = on_done
        self.delivery = Delivery()
        self._refused: dict[bytes, list[KafkaError]] = defaultdict(list)

    def report(self, error: KafkaError | None, message: Any) -> None:
        """The cheap report: which record it is matters only if it failed; equal records are the same to a sender."""
        if error is not None:
            self._refused[message.value()].append(error)
        self._left -= 1
        if not self._left:
            self._end()

    def reporter(self, index: int) -> Callable[[KafkaError | None, Any], None]:
        """A report that notes the record's place."""

        def report(error: KafkaError | None, message: Any) -> None:
            if error is not None:
                self.delivery.failed[index] = error
            else:
                self.delivery.places[index] = message.partition(), message.offset()
            self._left -= 1
            if not self._left:
                self._end()

        return report

    def unsent(self, index: int, error: KafkaError) -> None:
        """Counts as the report of a record that never reached the queue."""
        self.delivery.failed[index] = error
        self._left -= 1
        if not self._left:
            self._end()

    def _end(self) -> None:
        failed = self.delivery.failed
        if self._refused:
            for index, value in enumerate(self._values):
                errors = self._refused.get(value)
                if errors and index not in failed:
                    failed[index] = errors.pop()
        self._on_done(self.delivery)
        if not self.future.done():
            self.future.set_result(self.delivery)


class Sink:
    """The producer of an ingest service.

    Args:
        settings: where Kafka is.
        guard: the kafka_producer guard; its timeout is the publish timeout, its repeats are the client's.
        request_seconds: how long a request may take; no record is tried for longer.

    Attributes:
        publish_seconds: how long a record is tried.
        down: why Kafka is known not to answer; empty while it does, or is not known not to.
        acknowledged_at: when Kafka last acknowledged a request's records (monotonic seconds).
    """

    def __init__(self, settings: WorkloadSettings, guard: Guard, *, request_seconds: float) -> None:
        self._guard = guard
        self.publish_seconds = max(1.0, min(guard.timeout_seconds, request_seconds - _ANSWER_SECONDS))
        self._config = {**_config(settings, guard, self.publish_seconds), "error_cb": self._on_error}
        self._producer = Producer(self._config)
        self._retired: list[Producer] = []
        self._timer: asyncio.TimerHandle | None = None
        self._fatal = False
        self._requests = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._records = self._bytes = 0
        self.down = ""
        self.acknowledged_at = float("-inf")

    def start(self) -> None:
        """Begin to poll, on the loop that runs."""
        self._tick()

    async def close(self, seconds: float) -> int:
        """Send what is queued, for so long at most, then end; the number of records that could not be sent."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._idle.wait(), seconds)
        if self._timer is not None:
            self._timer.cancel()
        left = self._records
        self._producer.purge()
        self._producer.poll(0)
        return left

    @property
    def producer(self) -> Producer:
        """The producer of now; another one after a fatal error."""
        return self._producer

    @property
    def queued(self) -> int:
        """Records of requests that are not all acknowledged yet."""
        return self._records

    @property
    def busy(self) -> bool:
        """Whether the queue is so full that a request is better refused at once."""
        return self._records > BUSY_SHARE * QUEUE_MESSAGES or self._bytes > BUSY_SHARE * QUEUE_BYTES

    def submit(self, topic: str, records: Records, *, places: bool) -> Pending:
        """Queue records; the future of what is returned tells when each is acknowledged by Kafka, or has failed.

        Raises:
            BreakerOpen: Kafka has been failing; nothing was sent.
            KafkaDownError: Kafka does not answer; nothing was sent.
            QueueFullError: there is no room for all of them; nothing was sent.
        """
        ticket = self._guard.admit()
        if self.down:
            # An attempt that is known to fail counts as one that failed.
            self._guard.settle(ticket, KafkaException(KafkaError(KafkaError._ALL_BROKERS_DOWN)))
            raise KafkaDownError(self.down)
        count, size = len(records.values), sum(map(len, records.values))
        if self._records + count > QUEUE_MESSAGES or self._bytes + size > QUEUE_BYTES:
            self._guard.settle(ticket, BufferError("queue full"))
            raise QueueFullError("the queue to Kafka is full")

        def done(delivery: Delivery) -> None:
            self._requests -= 1
            self._records -= count
            self._bytes -= size
            if not self._requests:
                self._idle.set()
            self._settle(ticket, delivery, count)

        pending = Pending(records, done)
        self._requests += 1
        self._records += count
        self._bytes += size
        self._idle.clear()
        self._produce(topic, records, pending, places=places)
        if self._timer is not None and self._requests == 1:
            self._timer.cancel()
            self._tick()
        return pending

    def _produce(self, topic: str, records: Records, pending: Pending, *, places: bool) -> None:
        produce, keys, headers = self._producer.produce, records.keys, records.headers
        report: Any = pending.report
        for index, value in enumerate(records.values):
            if places:
                report = pending.reporter(index)
            key = keys[index] if keys is not None else None
            try:
                if index in headers:
                    produce(topic, value, key, on_delivery=report, headers=headers[index])
                else:
                    produce(topic, value, key, on_delivery=report)
            except BufferError:
                pending.unsent(index, KafkaError(KafkaError._QUEUE_FULL))
            except KafkaException as error:
                self._on_error(error.args[0])
                pending.unsent(index, error.args[0])

    def _settle(self, ticket: int, delivery: Delivery, count: int) -> None:
        if len(delivery.failed) < count:
            self.acknowledged_at = time.monotonic()
        errors = [KafkaException(error) for error in delivery.failed.values()]
        blamed = next((error for error in errors if self._guard.policy.is_failure(error)), None)
        self._guard.settle(ticket, blamed or (errors[0] if errors else None))

    def _tick(self) -> None:
        """Serve delivery reports, and come again."""
        self._producer.poll(0)
        if self._fatal:
            self._renew()
        for old in self._retired:
            old.poll(0)
        self._retired = [old for old in self._retired if len(old)]
        metrics.PRODUCER_QUEUE.set(self._records)
        pause = _POLL_SECONDS if self._requests else _IDLE_SECONDS
        self._timer = asyncio.get_running_loop().call_later(pause, self._tick)

    def _renew(self) -> None:
        """A producer that met a fatal error answers for what it has, and makes way for a new one."""
        log.error("the producer met a fatal error and is made anew")
        old, self._producer = self._producer, Producer(self._config)
        old.purge()
        self._retired.append(old)
        self._fatal = False
        self.down = "the producer was made anew and has not reached Kafka yet"

    def _on_error(self, error: KafkaError) -> None:
        if error.fatal() or error.code() == KafkaError._FATAL:
            self._fatal = True


def _config(settings: WorkloadSettings, guard: Guard, publish_seconds: float) -> dict[str, Any]:
    extra = json.loads(settings.kafka_config.read_text()) if settings.kafka_config else {}
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
