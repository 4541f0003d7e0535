"""A Kafka producer that tracks the outcome of each record: acknowledged, refused, or unknown so far."""

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
"""The maximum wait for acknowledgements in seconds, which must be less than `idle_in_transaction_session_timeout`."""
RENEW_SECONDS = 5.0
"""The minimum age in seconds for replacing a producer after a failure. After a fatal failure, age does not matter."""
_RECORD_ERRORS = frozenset({
    KafkaError.MSG_SIZE_TOO_LARGE,
    KafkaError.RECORD_LIST_TOO_LARGE,
    KafkaError.INVALID_MSG_SIZE,
    KafkaError.INVALID_RECORD,
})  # fmt: skip
"""Errors that a retry cannot fix, because the broker refuses the record itself."""


class PublishFailed(Exception):
    """Raised if Kafka did not acknowledge all records."""


class RecordRefused(Exception):
    """Raised if a record is too large for Kafka."""


@dataclass(frozen=True)
class RejectedRecord:
    """A record that Kafka refused, with the reason."""

    topic: str
    key: bytes | None
    value: bytes | None
    headers: Any
    reason: str


class RecordSender:
    """Sends records and waits until Kafka acknowledges them."""

    def __init__(self, make: Callable[[], Producer], *, clock: Callable[[], float] = time.monotonic) -> None:
        self._make, self._clock = make, clock
        self._producer, self._made_at = make(), clock()
        self._error: Any = None
        self._refused: list[RejectedRecord] = []
        self._on_delivery_plain = partial(self._on_delivery, None)

    def send(
        self, topic: str, key: bytes | None, value: bytes | None, headers: Any, *, keep_headers: bool = True
    ) -> None:
        """Queue one record, and wait if the queue is full.

        Raises:
            PublishFailed: the queue stays full, or the producer failed.
            RecordRefused: the record is too large.
        """
        on_delivery = partial(self._on_delivery, headers) if keep_headers else self._on_delivery_plain
        try:
            self._producer.produce(topic, value, key, headers=headers, on_delivery=on_delivery)
        except BufferError:
            self._flush(FLUSH_SECONDS)
            self.send(topic, key, value, headers, keep_headers=keep_headers)
        except KafkaException as error:
            if error.args[0].code() in _RECORD_ERRORS:
                raise RecordRefused(error.args[0].str()) from None
            self._renew(at_once=kafka_fatal(error.args[0]))
            raise PublishFailed(error.args[0].str()) from None

    def _on_delivery(self, headers: Any, error: Any, message: Any) -> None:
        # The error _PURGE_QUEUE only reports that `discard_unsent` has discarded the record.
        if error is None or error.code() == KafkaError._PURGE_QUEUE:
            return
        if error.code() in _RECORD_ERRORS:
            self._refused.append(RejectedRecord(message.topic(), message.key(), message.value(), headers, error.str()))
        else:
            self._error = error

    def wait_for_acks(self, headers_of: Callable[[RejectedRecord], Any] | None = None) -> list[RejectedRecord]:
        """Wait for Kafka's answer to all records, and return the refused records.

        Raises:
            PublishFailed: a record was not acknowledged within a few seconds.
        """
        deadline = time.monotonic() + FLUSH_SECONDS
        self._flush(FLUSH_SECONDS)
        refused, self._refused = self._refused, []
        if headers_of is not None:
            refused = [r if r.headers is not None else replace(r, headers=headers_of(r)) for r in refused]
        return self._isolate_refused(refused, deadline)

    def discard_unsent(self) -> None:
        """Discard the records that were not sent yet, and clear the errors."""
        self._producer.purge(in_flight=False)
        self._producer.poll(0)
        self._error, self._refused = None, []

    def _renew(self, *, at_once: bool = False) -> None:
        if at_once or self._clock() - self._made_at >= RENEW_SECONDS:
            self._producer, self._made_at = self._make(), self._clock()

    def _flush(self, seconds: float) -> None:
        unsent = self._producer.flush(seconds)
        error, self._error = self._error, None
        if error is not None or unsent:
            self.discard_unsent()
            self._renew()
            raise PublishFailed(
                str(error) if error is not None else f"{unsent} records not acknowledged in {FLUSH_SECONDS} s"
            )

    def _isolate_refused(self, records: Sequence[RejectedRecord], deadline: float) -> list[RejectedRecord]:
        rejected: list[RejectedRecord] = []
        parts = [records]
        while parts:
            part = parts.pop()
            if len(part) <= 1:
                rejected += part
                continue
            half = len(part) // 2
            for piece in (part[:half], part[half:]):
                if time.monotonic() > deadline:
                    raise PublishFailed(f"Kafka refuses {len(part)} records together: {part[0].reason}")
                for record in piece:
                    self.send(record.topic, record.key, record.value, record.headers)
                self._flush(FLUSH_SECONDS)
                refused, self._refused = self._refused, []
                if refused:
                    parts.append(refused)
        return rejected
