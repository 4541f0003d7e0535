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
from tidemill_ingest.kafka.outcomes import BreakerReporter, Delivery, PendingDelivery
from tidemill_ingest.kafka.queue import Queue, QueueFullError, TopicFullError
from tidemill_ingest.quota import IN_FLIGHT_BYTES
from tidemill_ingest.records import Records

IDLE_AFTER_SECONDS = 5.0
_BUSY_POLL_SECONDS, _IDLE_POLL_SECONDS = 0.002, 0.1
_ANSWER_MARGIN_SECONDS = 1.0
"""Kafka's client stops sending records this many seconds before a request's deadline."""


class KafkaDownError(Exception):
    """Raised if Kafka does not answer. Nothing was sent."""


class Sink:
    """Sends records to Kafka, with three producers for different kinds of requests.

    Attributes:
        publish_seconds: the publish timeout of requests without an Idempotency-Key.
        down_reason: why Kafka counts as down, or an empty text.
        acknowledged_at: when Kafka last acknowledged records (monotonic seconds).
        last_submit_at: when a request last tried to send records (monotonic seconds).
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
        self.publish_seconds = max(1.0, min(guard.timeout_seconds, request_seconds - _ANSWER_MARGIN_SECONDS))
        self._queue = Queue(in_flight_bytes)
        config = producers.config(settings, guard, self.publish_seconds)
        self._quick = producers.ProducerHolder(config)
        self._persistent = producers.ProducerHolder(producers.persistent_config(config, self.publish_seconds))
        self._config = config
        self._no_wait: producers.ProducerHolder | None = None
        self._down_signal: asyncio.Future[None] | None = None
        self.last_submit_at = float("-inf")
        self._silent_since: float | None = None
        """The time of the first request after Kafka's latest acknowledgement. Without such a request, None."""
        self._last_activity_at = float("-inf")
        self._timer: asyncio.TimerHandle | None = None
        self._request_numbers = numbers()
        self._start_times: dict[int, float] = {}
        """The start time (monotonic seconds) of each request that waits for Kafka, by the request's number."""
        self._nothing_pending = asyncio.Event()
        self._nothing_pending.set()
        self.down_reason = ""
        self.acknowledged_at = float("-inf")

    def start(self) -> None:
        """Start to poll the producers on the running event loop."""
        self._tick()

    async def close(self, seconds: float) -> int:
        """Send queued records for at most `seconds`, and return the number of records that were not sent."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._nothing_pending.wait(), seconds)
        if self._timer is not None:
            self._timer.cancel()
        unsent = self._queue.records
        for holder in self._holders():
            holder.purge()
        return unsent

    def _holders(self) -> tuple[producers.ProducerHolder, ...]:
        holders = (self._quick, self._persistent)
        return holders if self._no_wait is None else (*holders, self._no_wait)

    @property
    def down_signal(self) -> asyncio.Future[None]:
        """A future that is done as soon as Kafka is down."""
        if self._down_signal is None or (self._down_signal.done() and not self.down_reason):
            self._down_signal = asyncio.get_running_loop().create_future()
        return self._down_signal

    def mark_down(self, reason: str) -> None:
        """Regard Kafka as down: answer waiting requests, and refuse new requests."""
        if not self.down_reason and len(self._quick.producer):
            self._quick.replace_and_purge()
        self.down_reason = reason
        if not self.down_signal.done():
            self.down_signal.set_result(None)

    def replace_producers(self) -> None:
        """Use new producers for new records. New producers read the metadata of topics again."""
        for holder in self._holders():
            holder.replace()

    def purge_retired(self) -> None:
        """Discard the unsent records of replaced producers, except for requests with an Idempotency-Key."""
        for holder in self._holders():
            if holder is not self._persistent:
                holder.purge_retired()

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
    def oldest_wait_seconds(self) -> float:
        """The seconds that the oldest request has waited for an acknowledgement, or 0 without a waiting request."""
        return time.monotonic() - next(iter(self._start_times.values())) if self._start_times else 0.0

    @property
    def silent_seconds(self) -> float:
        """How many seconds Kafka has left requests unanswered. Without recent requests, 0."""
        return 0.0 if self._silent_since is None or self._is_idle else time.monotonic() - self._silent_since

    @property
    def _is_idle(self) -> bool:
        return not self._start_times and time.monotonic() - self._last_activity_at > IDLE_AFTER_SECONDS

    def submit(
        self,
        topic: str,
        records: Records,
        *,
        with_offsets: bool,
        keep_retrying: bool = False,
        client_waits: bool = True,
    ) -> PendingDelivery:
        """Queue records. The result's `future` is done when Kafka has acknowledged or refused all records.

        Args:
            topic: the topic.
            records: the records.
            with_offsets: whether the result contains the partition and offset of each record.
            keep_retrying: whether to retry until the outcome of each record is known.
            client_waits: whether a client waits for the outcome and can send the records again.

        Raises:
            BreakerOpen: Kafka has been failing. Nothing was sent.
            KafkaDownError: Kafka does not answer. Nothing was sent.
            QueueFullError: the queue has no room for all records. Nothing was sent.
            TopicFullError: the topic's share of the queue has no room for all records. Nothing was sent.
        """
        now = time.monotonic()
        if self._silent_since is None or self._is_idle:
            self._silent_since = now
        self.last_submit_at = self._last_activity_at = now
        ticket = self._guard.admit()
        count, size = len(records.values), sum(map(len, records.values))
        try:
            if self.down_reason:
                raise KafkaDownError(self.down_reason)
            self._queue.reserve(topic, count, size)
        except (KafkaDownError, QueueFullError, TopicFullError) as error:
            # The circuit breaker counts a failure only if Kafka is down. A full queue is not a failure.
            down = isinstance(error, KafkaDownError)
            self._guard.record_result(
                ticket, KafkaException(KafkaError(KafkaError._ALL_BROKERS_DOWN)) if down else error
            )
            raise
        self._nothing_pending.clear()
        reporter = BreakerReporter(self._guard, ticket)
        number = next(self._request_numbers)
        self._start_times[number] = now

        def on_done(delivery: Delivery) -> None:
            del self._start_times[number]
            self._queue.release(topic, count, size)
            if not self._start_times:
                self._nothing_pending.set()
            broker_refused, self._last_activity_at = reporter.report(delivery), time.monotonic()
            if len(delivery.failed) < count:
                self.acknowledged_at = self._last_activity_at
            if len(delivery.failed) < count or broker_refused:
                self._silent_since = None

        pending = PendingDelivery(records, on_done)
        if keep_retrying:
            reporter.expire_after(self.publish_seconds)
        holder = self._holder_for(keep_retrying=keep_retrying, client_waits=client_waits)
        self._produce(holder, topic, records, pending, with_offsets=with_offsets)
        if self._timer is not None and len(self._start_times) == 1:
            self._timer.cancel()
            self._tick()
        return pending

    def _holder_for(self, *, keep_retrying: bool, client_waits: bool) -> producers.ProducerHolder:
        if keep_retrying:
            return self._persistent
        if client_waits:
            return self._quick
        if self._no_wait is None:
            self._no_wait = producers.ProducerHolder(self._config)
        return self._no_wait

    def _produce(
        self,
        holder: producers.ProducerHolder,
        topic: str,
        records: Records,
        pending: PendingDelivery,
        *,
        with_offsets: bool,
    ) -> None:
        produce, keys, headers = holder.producer.produce, records.keys, records.headers
        report: Any = pending.report
        for index, value in enumerate(records.values):
            if with_offsets:
                report = pending.report_callback(index)
            key = keys[index] if keys is not None else None
            try:
                if index in headers:
                    produce(topic, value, key, on_delivery=report, headers=headers[index])
                else:
                    produce(topic, value, key, on_delivery=report)
            except BufferError:
                pending.record_unsent(index, KafkaError(KafkaError._QUEUE_FULL))
            except KafkaException as error:
                holder.on_error(error.args[0])
                pending.record_unsent(index, error.args[0])

    def _tick(self) -> None:
        for holder in self._holders():
            if holder.poll():
                self.down_reason = "the producer was replaced, and the new producer has not reached Kafka yet"
        metrics.PRODUCER_QUEUE.set(self._queue.records)
        pause = _BUSY_POLL_SECONDS if self._start_times else _IDLE_POLL_SECONDS
        self._timer = asyncio.get_running_loop().call_later(pause, self._tick)
