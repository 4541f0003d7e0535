"""Events to Kafka: one idempotent producer, one future a request, a bounded queue, and a breaker in front.

The producer is polled by a thread of its own; a request's delivery reports count down there, and the last one wakes the
request. A fatal producer error makes a new producer; until it works, the service is not ready.
"""

from __future__ import annotations

import asyncio
import json
import logging
import threading
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from confluent_kafka import KafkaError, KafkaException, Producer
from tidemill_contract import metrics
from tidemill_contract.resilience import Guard
from tidemill_contract.runtime import WorkloadSettings

log = logging.getLogger(__name__)

QUEUE_MESSAGES = 200_000
QUEUE_KBYTES = 256 * 1024
BUSY_SHARE = 0.8
"""Above this share of the queue new requests are refused before they are decoded."""
HEALTH_SECONDS = 5.0


class BufferFullError(Exception):
    """The producer's queue takes no more now."""


@dataclass(frozen=True)
class Outgoing:
    """One record to produce; `index` is its event's place in the request."""

    index: int
    value: bytes
    key: bytes | None = None
    headers: Sequence[tuple[str, bytes]] | None = None


@dataclass
class Delivery:
    """What became of a request's records: failed ones by index with the error; places where they were asked for."""

    failed: dict[int, str] = field(default_factory=dict)
    places: dict[int, tuple[int, int]] = field(default_factory=dict)


class _Pending:
    """Counts a request's delivery reports down; lives in the poll thread."""

    def __init__(self, records: Sequence[Outgoing], loop: asyncio.AbstractEventLoop) -> None:
        self.future: asyncio.Future[Delivery] = loop.create_future()
        self._loop = loop
        self._left = len(records)
        self._records = records
        self._delivery = Delivery()
        self._refused: dict[bytes, list[str]] = defaultdict(list)

    def delivered(self, error: KafkaError | None, message: Any) -> None:
        """The cheap report: which record it is matters only if it failed, and equal records are the same to a sender."""
        if error is not None:
            self._refused[message.value()].append(error.str())
        self._count()

    def reporter(self, index: int) -> Any:
        """A report that notes the record's place."""

        def delivered(error: KafkaError | None, message: Any) -> None:
            if error is not None:
                self._delivery.failed[index] = error.str()
            else:
                self._delivery.places[index] = message.partition(), message.offset()
            self._count()

        return delivered

    def _count(self) -> None:
        self._left -= 1
        if self._left:
            return
        if self._refused:
            for record in self._records:
                if errors := self._refused.get(record.value):
                    self._delivery.failed[record.index] = errors.pop()
        self._loop.call_soon_threadsafe(self._settle)

    def _settle(self) -> None:
        if not self.future.done():
            self.future.set_result(self._delivery)


class Sink:
    """The producer of an ingest service.

    Args:
        settings: where Kafka is.
        guard: the kafka_producer guard; its timeout is the publish timeout.
    """

    def __init__(self, settings: WorkloadSettings, guard: Guard) -> None:
        extra = json.loads(settings.kafka_config.read_text()) if settings.kafka_config else {}
        self._guard = guard
        self._config = {
            "bootstrap.servers": settings.kafka_brokers,
            "enable.idempotence": True,
            "acks": "all",
            "linger.ms": 5,
            "batch.size": 512 * 1024,
            "compression.type": "lz4",
            "message.max.bytes": 2 * 1024 * 1024,
            "delivery.timeout.ms": int(guard.timeout_seconds * 1000),
            "queue.buffering.max.messages": QUEUE_MESSAGES,
            "queue.buffering.max.kbytes": QUEUE_KBYTES,
            "partitioner": "murmur2_random",
            "error_cb": self._on_error,
            "log_level": 3,
            **extra,
        }
        self._fatal = threading.Event()
        self._producer = Producer(self._config)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._poll, name="producer", daemon=True)
        self._checked_at = -HEALTH_SECONDS
        self._checked = "not asked yet"
        self._checking: asyncio.Future[str] | None = None

    def start(self) -> None:
        """Begin to poll."""
        self._thread.start()

    def close(self) -> int:
        """Send what is queued, then end; the number of records that could not be sent."""
        left = self._producer.flush(self._guard.timeout_seconds)
        self._stopping.set()
        self._thread.join(5)
        return int(left)

    @property
    def busy(self) -> bool:
        """Whether the queue is so full that a request is better refused at once."""
        return len(self._producer) > BUSY_SHARE * QUEUE_MESSAGES

    async def send(self, topic: str, records: Sequence[Outgoing], *, places: bool, timeout: float) -> Delivery:
        """Produce records and wait until each is acknowledged by all in-sync replicas, or has failed.

        Raises:
            BreakerOpen: Kafka has been failing; nothing was sent.
            BufferFullError: the queue is full before the first record; nothing was sent.
            TimeoutError: not all reports came in time; what is acknowledged later is not known here.
        """
        if self._fatal.is_set():
            raise BufferFullError("the producer is being made anew")
        ticket = self._guard.admit()
        pending = _Pending(records, asyncio.get_running_loop())
        sent = self._produce(topic, records, pending, places=places)
        if not sent:
            self._guard.settle(ticket, BufferError("queue full"))
            raise BufferFullError("the queue to Kafka is full")
        try:
            delivery = await asyncio.wait_for(asyncio.shield(pending.future), timeout)
        except TimeoutError:
            self._guard.settle(ticket, KafkaException(KafkaError(KafkaError._TIMED_OUT)))
            raise
        except BaseException:
            self._guard.settle(ticket, asyncio.CancelledError())
            raise
        error = KafkaException(KafkaError(KafkaError._MSG_TIMED_OUT)) if delivery.failed else None
        self._guard.settle(ticket, error)
        return delivery

    def _produce(self, topic: str, records: Sequence[Outgoing], pending: _Pending, *, places: bool) -> bool:
        produce = self._producer.produce
        shared = pending.delivered
        for number, record in enumerate(records):
            report = pending.reporter(record.index) if places else shared
            try:
                if record.headers:
                    produce(topic, record.value, record.key, on_delivery=report, headers=list(record.headers))
                else:
                    produce(topic, record.value, record.key, on_delivery=report)
            except (BufferError, KafkaException) as error:
                if number == 0 and isinstance(error, BufferError):
                    return False
                reason = error.args[0] if isinstance(error, KafkaException) else KafkaError(KafkaError._QUEUE_FULL)
                report(reason, _Unsent(record.value))
        return True

    def _poll(self) -> None:
        while not self._stopping.is_set():
            self._producer.poll(0.05)
            metrics.PRODUCER_QUEUE.set(len(self._producer))
            if self._fatal.is_set():
                self._renew()

    def _renew(self) -> None:
        """A producer that met a fatal error answers for what it has, then makes way for a new one."""
        log.error("the producer met a fatal error and is made anew")
        old = self._producer
        old.purge()
        old.flush(5)
        self._producer = Producer(self._config)
        self._fatal.clear()

    def _on_error(self, error: KafkaError) -> None:
        if error.fatal():
            self._fatal.set()

    async def check(self) -> str:
        """What is wrong with Kafka; empty if it answered within the last few seconds."""
        if self._fatal.is_set():
            return "the producer is being made anew"
        if time.monotonic() - self._checked_at > HEALTH_SECONDS:
            self._checked_at = time.monotonic()
            self._checked = await asyncio.to_thread(self._ask)
        return self._checked

    def _ask(self) -> str:
        try:
            self._producer.list_topics(timeout=4)
        except KafkaException as error:
            return str(error.args[0].str())
        return ""


@dataclass(frozen=True)
class _Unsent:
    """Stands for the message of a record that never reached the queue."""

    content: bytes

    def value(self) -> bytes:
        """The record's value, as a message has it."""
        return self.content
