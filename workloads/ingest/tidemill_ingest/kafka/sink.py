"""Sends records to Kafka with idempotent producers, a limited queue and a circuit breaker.

The sink polls the producers on the event loop. A separate thread would compete for Python's global lock.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from itertools import count as numbers
from typing import Any

from confluent_kafka import KafkaError, KafkaException, Producer

from tidemill_chassis.resilience.config import Guard
from tidemill_contract.runtime import WorkloadSettings
from tidemill_ingest import metrics
from tidemill_ingest.kafka import producers
from tidemill_ingest.kafka.outcomes import Delivery, Pending, Ticket
from tidemill_ingest.kafka.queue import Queue, QueueFullError, TopicFullError
from tidemill_ingest.quota import IN_FLIGHT_BYTES
from tidemill_ingest.records import Records

LATELY_SECONDS = 5.0
_POLL_SECONDS, _IDLE_SECONDS = 0.002, 0.1
_ANSWER_SECONDS = 1.0
"""Kafka's client stops sending records this many seconds before a request's deadline."""


class KafkaDownError(Exception):
    """Raised if Kafka does not answer. Nothing was sent."""


class Sink:
    """Sends records to Kafka, with three producers for different kinds of requests.

    Attributes:
        publish_seconds: the publish timeout of requests without an Idempotency-Key.
        down: why Kafka counts as down, or an empty text.
        acknowledged_at: when Kafka last acknowledged records (monotonic seconds).
        asked_at: when a request last tried to send records (monotonic seconds).
    """

    def __init__(
        self,
        settings: WorkloadSettings,
        guard: Guard,
        *,
        request_seconds: float,
        in_flight_bytes: int = IN_FLIGHT_BYTES,
    ) -> None:
        self._guard = guard
        self.publish_seconds = max(1.0, min(guard.timeout_seconds, request_seconds - _ANSWER_SECONDS))
        self._queue = Queue(in_flight_bytes)
        config = producers.config(settings, guard, self.publish_seconds)
        self._quick = producers.Line(config)
        self._sure = producers.Line(producers.sure(config, self.publish_seconds))
        self._config = config
        self._unwaited: producers.Line | None = None
        self._away: asyncio.Future[None] | None = None
        self.asked_at = float("-inf")
        self._unheard_since: float | None = None
        """The time of the first request after Kafka's latest acknowledgement. Without such a request, None."""
        self._tried_at = float("-inf")
        self._timer: asyncio.TimerHandle | None = None
        self._numbers = numbers()
        self._began: dict[int, float] = {}
        """The start time (monotonic seconds) of each request that waits for Kafka, by the request's number."""
        self._idle = asyncio.Event()
        self._idle.set()
        self.down = ""
        self.acknowledged_at = float("-inf")

    def start(self) -> None:
        """Start to poll the producers on the running event loop."""
        self._tick()

    async def close(self, seconds: float) -> int:
        """Send queued records for at most `seconds`, and return the number of records that were not sent."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._idle.wait(), seconds)
        if self._timer is not None:
            self._timer.cancel()
        left = self._queue.records
        for line in self._lines():
            line.purge()
        return left

    def _lines(self) -> tuple[producers.Line, ...]:
        return (self._quick, self._sure) if self._unwaited is None else (self._quick, self._sure, self._unwaited)

    @property
    def away(self) -> asyncio.Future[None]:
        """A future that is done as soon as Kafka is down."""
        if self._away is None or (self._away.done() and not self.down):
            self._away = asyncio.get_running_loop().create_future()
        return self._away

    def give_up(self, why: str) -> None:
        """Regard Kafka as down: answer waiting requests, and refuse new requests."""
        if not self.down and len(self._quick.producer):
            self._quick.renew()
        self.down = why
        if not self.away.done():
            self.away.set_result(None)

    def replace(self) -> None:
        """Use new producers for new records. New producers read the metadata of topics again."""
        for line in self._lines():
            line.replace()

    def give_up_retired(self) -> None:
        """Discard the unsent records of replaced producers, except for requests with an Idempotency-Key."""
        for line in self._lines():
            if line is not self._sure:
                line.give_up_retired()

    @property
    def producer(self) -> Producer:
        """The producer for requests without an Idempotency-Key."""
        return self._quick.producer

    @property
    def queued(self) -> int:
        """The number of records in the queue."""
        return self._queue.records

    @property
    def busy(self) -> bool:
        """Whether the queue is so full that requests are refused at once."""
        return self._queue.busy

    @property
    def waited(self) -> float:
        """The seconds that the oldest request has waited for an acknowledgement, or 0 without a waiting request."""
        return time.monotonic() - next(iter(self._began.values())) if self._began else 0.0

    @property
    def unheard(self) -> float:
        """How many seconds Kafka has left requests unanswered. Without recent requests, 0."""
        return 0.0 if self._unheard_since is None or self._idles else time.monotonic() - self._unheard_since

    @property
    def _idles(self) -> bool:
        return not self._began and time.monotonic() - self._tried_at > LATELY_SECONDS

    def submit(self, topic: str, records: Records, *, places: bool, sure: bool = False, waited: bool = True) -> Pending:
        """Queue records. The result's `future` is done when Kafka has acknowledged or refused all records.

        Args:
            topic: the topic.
            records: the records.
            places: whether the result contains the partition and offset of each record.
            sure: whether to retry until the outcome of each record is known.
            waited: whether a client waits for the outcome and can send the records again.

        Raises:
            BreakerOpen: Kafka has been failing. Nothing was sent.
            KafkaDownError: Kafka does not answer. Nothing was sent.
            QueueFullError: the queue has no room for all records. Nothing was sent.
            TopicFullError: the topic's share of the queue has no room for all records. Nothing was sent.
        """
        now = time.monotonic()
        if self._unheard_since is None or self._idles:
            self._unheard_since = now
        self.asked_at = self._tried_at = now
        ticket = self._guard.admit()
        count, size = len(records.values), sum(map(len, records.values))
        try:
            if self.down:
                raise KafkaDownError(self.down)
            self._queue.reserve(topic, count, size)
        except (KafkaDownError, QueueFullError, TopicFullError) as error:
            # The circuit breaker counts a failure only if Kafka is down. A full queue is not a failure.
            down = isinstance(error, KafkaDownError)
            self._guard.settle(ticket, KafkaException(KafkaError(KafkaError._ALL_BROKERS_DOWN)) if down else error)
            raise
        self._idle.clear()
        settle = Ticket(self._guard, ticket)
        number = next(self._numbers)
        self._began[number] = now

        def done(delivery: Delivery) -> None:
            del self._began[number]
            self._queue.release(topic, count, size)
            if not self._began:
                self._idle.set()
            heard, self._tried_at = settle.done(delivery), time.monotonic()
            if len(delivery.failed) < count:
                self.acknowledged_at = self._tried_at
            if len(delivery.failed) < count or heard:
                self._unheard_since = None

        pending = Pending(records, done)
        if sure:
            settle.expire_after(self.publish_seconds)
        self._produce(self._line(sure=sure, waited=waited), topic, records, pending, places=places)
        if self._timer is not None and len(self._began) == 1:
            self._timer.cancel()
            self._tick()
        return pending

    def _line(self, *, sure: bool, waited: bool) -> producers.Line:
        if sure:
            return self._sure
        if waited:
            return self._quick
        if self._unwaited is None:
            self._unwaited = producers.Line(self._config)
        return self._unwaited

    def _produce(self, line: producers.Line, topic: str, records: Records, pending: Pending, *, places: bool) -> None:
        produce, keys, headers = line.producer.produce, records.keys, records.headers
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
                line.on_error(error.args[0])
                pending.unsent(index, error.args[0])

    def _tick(self) -> None:
        for line in self._lines():
            if line.poll():
                self.down = "the producer was replaced, and the new producer has not reached Kafka yet"
        metrics.PRODUCER_QUEUE.set(self._queue.records)
        pause = _POLL_SECONDS if self._began else _IDLE_SECONDS
        self._timer = asyncio.get_running_loop().call_later(pause, self._tick)
