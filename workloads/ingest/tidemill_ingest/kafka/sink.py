"""Records to Kafka: idempotent producers, one future a request, a bounded queue, and a breaker in front.

Everything here runs on the event loop, which also polls the producers: a thread that polls would fight it for the
interpreter at every delivery report. Which producer a request's records go to: producers.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count as numbers
from typing import Any

from confluent_kafka import KafkaError, KafkaException, Producer

from tidemill_chassis.resilience.config import Guard
from tidemill_contract.runtime import WorkloadSettings
from tidemill_ingest import metrics
from tidemill_ingest.kafka import producers
from tidemill_ingest.quota import IN_FLIGHT_BYTES
from tidemill_ingest.records import Records

log = logging.getLogger(__name__)

QUEUE_MESSAGES = producers.QUEUE_MESSAGES
QUEUE_BYTES = producers.QUEUE_BYTES
IN_FLIGHT_MESSAGES = QUEUE_MESSAGES // 2
"""Of one topic: an outage of one partition does not take the queue from the other pipelines."""
BUSY_SHARE = 0.8
"""Above this share of the queue new requests are refused before they are decoded."""
LATELY_SECONDS = 5.0
"""A request that came, or ended, longer ago says nothing of Kafka any more."""
_POLL_SECONDS, _IDLE_SECONDS = 0.002, 0.1
_ANSWER_SECONDS = 1.0
"""How long before the end of a request its records are given up by Kafka's client, so that there is an answer."""


class QueueFullError(Exception):
    """The producer's queue takes no more now; nothing was sent."""


class TopicFullError(Exception):
    """Too much of this topic is on its way to Kafka; nothing was sent."""


class KafkaDownError(Exception):
    """Kafka is known not to answer; nothing was sent."""


@dataclass
class Delivery:
    """What became of records: failed ones by index with the error; places (partition, offset) where asked for.

    Attributes:
        unsure: whether a failed one may be in Kafka all the same.
    """

    failed: dict[int, KafkaError] = field(default_factory=dict)
    places: dict[int, tuple[int, int]] = field(default_factory=dict)
    unsure: bool = False

    def refuse(self, index: int, error: KafkaError) -> None:
        """A record was sent, and its report is an error."""
        self.failed[index] = error
        self.unsure = self.unsure or not producers.is_definite(error)


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
                self.delivery.refuse(index, error)
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
                    self.delivery.refuse(index, errors.pop())
        self._on_done(self.delivery)
        if not self.future.done():
            self.future.set_result(self.delivery)


class Sink:
    """The producers of an ingest service.

    Args:
        settings: where Kafka is.
        guard: the kafka_producer guard; its timeout is the publish timeout, its repeats are the client's.
        request_seconds: how long a request may take; no record without a key is tried for longer.
        in_flight_bytes: of one topic; 0: only the queue's bound holds.

    Attributes:
        publish_seconds: how long a record without a key is tried.
        down: why Kafka is known not to answer; empty while it does, or is not known not to.
        acknowledged_at: when Kafka last acknowledged a request's records (monotonic seconds).
        asked_at: when records were last to be sent (monotonic seconds).
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
        self._topic_bytes = in_flight_bytes or QUEUE_BYTES
        config = producers.config(settings, guard, self.publish_seconds)
        self._quick = producers.Line(config)
        self._sure = producers.Line(producers.sure(config, self.publish_seconds))
        self._config = config
        self._unwaited: producers.Line | None = None
        """Made when it is needed: few senders do not wait."""
        self._away: asyncio.Future[None] | None = None
        self.asked_at = float("-inf")
        self._unheard_since: float | None = None
        """Since when requests have come, and Kafka has acknowledged none; None: it has."""
        self._tried_at = float("-inf")
        """When a request came or ended last."""
        self._timer: asyncio.TimerHandle | None = None
        self._numbers = numbers()
        self._began: dict[int, float] = {}
        """When the requests that wait for acknowledgements came, by number, so the oldest first (monotonic seconds)."""
        self._idle = asyncio.Event()
        self._idle.set()
        self._records = self._bytes = 0
        self._topics: dict[str, tuple[int, int]] = {}
        """(records, bytes) on their way, by topic."""
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
        for line in self._lines():
            line.purge()
        return left

    def _lines(self) -> tuple[producers.Line, ...]:
        return (self._quick, self._sure) if self._unwaited is None else (self._quick, self._sure, self._unwaited)

    @property
    def away(self) -> asyncio.Future[None]:
        """Done while Kafka is known not to answer; another one after that."""
        if self._away is None or (self._away.done() and not self.down):
            self._away = asyncio.get_running_loop().create_future()
        return self._away

    def give_up(self, why: str) -> None:
        """Kafka is known not to answer: who waits for records is answered now, and who comes is refused.

        Records without a key are not sent any more, as their senders will send them again.
        """
        if not self.down and len(self._quick.producer):
            self._quick.renew()
        self.down = why
        if not self.away.done():
            self.away.set_result(None)

    def replace(self) -> None:
        """Have what comes from now on sent by producers that ask anew who leads: a client believes what it heard."""
        for line in self._lines():
            line.replace()

    def give_up_retired(self) -> None:
        """Producers that were replaced give up records without a key; their senders send them again."""
        for line in self._lines():
            if line is not self._sure:
                line.give_up_retired()

    @property
    def producer(self) -> Producer:
        """The producer of records without a key; another one after a fatal error."""
        return self._quick.producer

    @property
    def queued(self) -> int:
        """Records of requests that are not all acknowledged yet."""
        return self._records

    @property
    def busy(self) -> bool:
        """Whether the queue is so full that a request is better refused at once."""
        return self._records > BUSY_SHARE * QUEUE_MESSAGES or self._bytes > BUSY_SHARE * QUEUE_BYTES

    @property
    def waited(self) -> float:
        """Seconds for which the oldest unacknowledged records have waited; 0: there are none."""
        return time.monotonic() - next(iter(self._began.values())) if self._began else 0.0

    @property
    def unheard(self) -> float:
        """Seconds for which requests have come and Kafka has acknowledged none; 0: it has, or none came lately."""
        return 0.0 if self._unheard_since is None or self._idles else time.monotonic() - self._unheard_since

    @property
    def _idles(self) -> bool:
        """Whether no request waits, and none did lately."""
        return not self._began and time.monotonic() - self._tried_at > LATELY_SECONDS

    def submit(self, topic: str, records: Records, *, places: bool, sure: bool = False, waited: bool = True) -> Pending:
        """Queue records; the future of what is returned tells when each is acknowledged by Kafka, or has failed.

        Args:
            topic: where to.
            records: what.
            places: whether to note where each was written.
            sure: try until it is known what became of each, however long that takes.
            waited: whether a sender waits, who can be told to send them again.

        Raises:
            BreakerOpen: Kafka has been failing; nothing was sent.
            KafkaDownError: Kafka does not answer; nothing was sent.
            QueueFullError: there is no room for all of them; nothing was sent.
            TopicFullError: there is no room for all of them among those of their topic; nothing was sent.
        """
        now = time.monotonic()
        if self._unheard_since is None or self._idles:
            self._unheard_since = now
        self.asked_at = self._tried_at = now
        ticket = self._guard.admit()
        count, size = len(records.values), sum(map(len, records.values))
        try:
            self._reserve(topic, count, size)
        except (KafkaDownError, QueueFullError, TopicFullError) as error:
            # An attempt that is known to fail counts as one that failed.
            down = isinstance(error, KafkaDownError)
            self._guard.settle(ticket, KafkaException(KafkaError(KafkaError._ALL_BROKERS_DOWN)) if down else error)
            raise
        settle = _Ticket(self._guard, ticket)
        number = next(self._numbers)
        self._began[number] = now

        def done(delivery: Delivery) -> None:
            del self._began[number]
            self._release(topic, count, size)
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

    def _reserve(self, topic: str, count: int, size: int) -> None:
        if self.down:
            raise KafkaDownError(self.down)
        if self._records + count > QUEUE_MESSAGES or self._bytes + size > QUEUE_BYTES:
            raise QueueFullError("the queue to Kafka is full")
        held, held_bytes = self._topics.get(topic, (0, 0))
        # One request always has its turn, however small the limit.
        if held and (held + count > IN_FLIGHT_MESSAGES or held_bytes + size > self._topic_bytes):
            raise TopicFullError(f"{held} events ({held_bytes} bytes) of the pipeline are on their way to Kafka")
        self._topics[topic] = held + count, held_bytes + size
        self._records += count
        self._bytes += size
        self._idle.clear()

    def _release(self, topic: str, count: int, size: int) -> None:
        held, held_bytes = self._topics[topic]
        if held > count:
            self._topics[topic] = held - count, held_bytes - size
        else:
            del self._topics[topic]
        self._records -= count
        self._bytes -= size
        if not self._began:
            self._idle.set()

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
        """Serve delivery reports, and come again."""
        for line in self._lines():
            if line.poll():
                self.down = "the producer was made anew and has not reached Kafka yet"
        metrics.PRODUCER_QUEUE.set(self._records)
        pause = _POLL_SECONDS if self._began else _IDLE_SECONDS
        self._timer = asyncio.get_running_loop().call_later(pause, self._tick)


class _Ticket:
    """Tells the breaker once how a request went; one that is tried on after its time counts as failed then."""

    def __init__(self, guard: Guard, ticket: int) -> None:
        self._guard, self._ticket = guard, ticket
        self._timer: asyncio.TimerHandle | None = None
        self._settled = False

    def expire_after(self, seconds: float) -> None:
        late = KafkaException(KafkaError(KafkaError._MSG_TIMED_OUT))
        self._timer = asyncio.get_running_loop().call_later(seconds, self._settle, late)

    def done(self, delivery: Delivery) -> bool:
        """Settle it; whether a broker has refused records for what they are. Those that were given up tell nothing."""
        if self._timer is not None:
            self._timer.cancel()
        errors = [KafkaException(error) for error in delivery.failed.values()]
        blamed = next((error for error in errors if self._guard.policy.is_failure(error)), None)
        self._settle(blamed or (errors[0] if errors else None))
        return blamed is None and any(error.code() > 0 for error in delivery.failed.values())

    def _settle(self, error: Exception | None) -> None:
        if not self._settled:
            self._settled = True
            self._guard.settle(self._ticket, error)
