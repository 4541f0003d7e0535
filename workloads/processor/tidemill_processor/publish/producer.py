"""A Kafka producer that knows what became of all it was given: acknowledged, refused by itself, or not known yet."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from confluent_kafka import KafkaError, KafkaException, Producer

from tidemill_chassis.resilience.failures import kafka_fatal

log = logging.getLogger(__name__)

FLUSH_SECONDS = 8.0
"""Less than a transaction may be idle."""
RENEW_SECONDS = 5.0
"""A producer is tried for so long at least."""
_OF_THE_RECORD = frozenset({
    KafkaError.MSG_SIZE_TOO_LARGE,
    KafkaError.RECORD_LIST_TOO_LARGE,
    KafkaError.INVALID_MSG_SIZE,
    KafkaError.INVALID_RECORD,
})  # fmt: skip
"""What a broker says of records that it will not take, however often they come."""


class PublishFailed(Exception):
    """Kafka did not acknowledge everything; the marks stay where they were."""


class RecordRefused(Exception):
    """One record is larger than Kafka takes; nothing is said of others."""


@dataclass(frozen=True)
class Refused:
    """A record that Kafka will not take, and what it says."""

    topic: str
    key: bytes | None
    value: bytes | None
    headers: Any
    reason: str


class Outlet:
    """A producer that knows whether all it was given was acknowledged; one that did not deliver is replaced.

    A client believes what it heard of leaders, and may miss that there are others: after an outage, or of a topic that
    was made anew. It would go on like that for as long as it lives.

    Args:
        make: a new producer.
        clock: seconds that only grow.
    """

    def __init__(self, make: Callable[[], Producer], *, clock: Callable[[], float] = time.monotonic) -> None:
        self._make, self._clock = make, clock
        self._producer, self._made_at = make(), clock()
        self._error: Any = None
        self._refused: list[Refused] = []
        self._plainly = partial(self._delivered, None)

    def send(self, topic: str, key: bytes | None, value: bytes | None, headers: Any, *, keep: bool = True) -> None:
        """Queue one record; waits while the queue is full.

        Args:
            topic: where to.
            key: of the record.
            value: of the record.
            headers: of the record. What Kafka gives back of a refused one has none.
            keep: whether they are remembered for that; else `settle` has to make them again, which costs no memory.

        Raises:
            PublishFailed: it stays full, or the producer does not work any more.
            RecordRefused: the record is too large.
        """
        told = partial(self._delivered, headers) if keep else self._plainly
        try:
            self._producer.produce(topic, value, key, headers=headers, on_delivery=told)
        except BufferError:
            self._flush(FLUSH_SECONDS)
            self.send(topic, key, value, headers, keep=keep)
        except KafkaException as error:
            if error.args[0].code() in _OF_THE_RECORD:
                raise RecordRefused(error.args[0].str()) from None
            self._renew(at_once=kafka_fatal(error.args[0]))
            raise PublishFailed(error.args[0].str()) from None

    def _delivered(self, headers: Any, error: Any, message: Any) -> None:
        if error is None or error.code() == KafkaError._PURGE_QUEUE:  # what is given up is told of later at times
            return
        if error.code() in _OF_THE_RECORD:
            self._refused.append(Refused(message.topic(), message.key(), message.value(), headers, error.str()))
        else:
            self._error = error

    def settle(self, headers_of: Callable[[Refused], Any] | None = None) -> list[Refused]:
        """Wait until all is acknowledged but what Kafka will never take; those records.

        Args:
            headers_of: makes a record's headers where they were not kept.

        Raises:
            PublishFailed: something was not, within a few seconds.
        """
        deadline = time.monotonic() + FLUSH_SECONDS
        self._flush(FLUSH_SECONDS)
        refused, self._refused = self._refused, []
        if headers_of is not None:
            refused = [r if r.headers is not None else replace(r, headers=headers_of(r)) for r in refused]
        return self._apart(refused, deadline)

    def forget(self) -> None:
        """Drop what waits to be sent, and what is known of it: whoever gave it has given it up."""
        self._producer.purge(in_flight=False)
        self._producer.poll(0)
        self._error, self._refused = None, []

    def _renew(self, *, at_once: bool = False) -> None:
        """Another producer, which asks anew who leads."""
        if at_once or self._clock() - self._made_at >= RENEW_SECONDS:
            self._producer, self._made_at = self._make(), self._clock()

    def _flush(self, seconds: float) -> None:
        left = self._producer.flush(seconds)
        error, self._error = self._error, None
        if error is not None or left:
            self.forget()
            self._renew()
            raise PublishFailed(
                str(error) if error is not None else f"{left} records not acknowledged in {FLUSH_SECONDS} s"
            )

    def _apart(self, records: Sequence[Refused], deadline: float) -> list[Refused]:
        """Those of some records that are refused by themselves: a broker refuses a batch as a whole for one of it."""
        culprits: list[Refused] = []
        parts = [records]
        while parts:
            part = parts.pop()
            if len(part) <= 1:
                culprits += part
                continue
            half = len(part) // 2
            for piece in (part[:half], part[half:]):
                if time.monotonic() > deadline:
                    raise PublishFailed(f"{len(part)} records that Kafka refuses together: {part[0].reason}")
                for record in piece:
                    self.send(record.topic, record.key, record.value, record.headers)
                self._flush(FLUSH_SECONDS)
                refused, self._refused = self._refused, []
                if refused:
                    parts.append(refused)
        return culprits
