"""The outcomes of a request's records."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from confluent_kafka import KafkaError, KafkaException

from tidemill_chassis.resilience.config import Guard
from tidemill_ingest.kafka import producers
from tidemill_ingest.records import Records


@dataclass
class Delivery:
    """The outcome of records.

    Attributes:
        failed: the error of each failed record, by the record's index in the request.
        offsets: the partition and the offset of each written record, by the record's index, if requested.
        unsure: whether a failed record may still be in Kafka.
    """

    failed: dict[int, KafkaError] = field(default_factory=dict)
    offsets: dict[int, tuple[int, int]] = field(default_factory=dict)
    unsure: bool = False

    def record_failure(self, index: int, error: KafkaError) -> None:
        """Store the error of a record that was sent and failed."""
        self.failed[index] = error
        self.unsure = self.unsure or not producers.proves_unwritten(error)


class PendingDelivery:
    """The sent records of one request, with a count of their delivery reports."""

    def __init__(self, records: Records, on_done: Callable[[Delivery], None]) -> None:
        self.future: asyncio.Future[Delivery] = asyncio.get_running_loop().create_future()
        self._values = records.values
        self._outstanding = len(records.values)
        self._on_done = on_done
        self.delivery = Delivery()
        self._errors_by_value: dict[bytes, list[KafkaError]] = defaultdict(list)

    def report(self, error: KafkaError | None, message: Any) -> None:
        """Count a delivery report."""
        if error is not None:
            self._errors_by_value[message.value()].append(error)
        self._outstanding -= 1
        if not self._outstanding:
            self._complete()

    def report_callback(self, index: int) -> Callable[[KafkaError | None, Any], None]:
        """Return a callback for one record that also stores the record's partition and offset."""

        def report(error: KafkaError | None, message: Any) -> None:
            if error is not None:
                self.delivery.record_failure(index, error)
            else:
                self.delivery.offsets[index] = message.partition(), message.offset()
            self._outstanding -= 1
            if not self._outstanding:
                self._complete()

        return report

    def record_unsent(self, index: int, error: KafkaError) -> None:
        """Store the error of a record that could not be queued."""
        self.delivery.failed[index] = error
        self._outstanding -= 1
        if not self._outstanding:
            self._complete()

    def _complete(self) -> None:
        failed = self.delivery.failed
        if self._errors_by_value:
            for index, value in enumerate(self._values):
                errors = self._errors_by_value.get(value)
                if errors and index not in failed:
                    self.delivery.record_failure(index, errors.pop())
        self._on_done(self.delivery)
        if not self.future.done():
            self.future.set_result(self.delivery)


class BreakerReporter:
    """Reports the outcome of one request to the circuit breaker. Only the first report has an effect."""

    def __init__(self, guard: Guard, ticket: int) -> None:
        self._guard, self._ticket = guard, ticket
        self._timer: asyncio.TimerHandle | None = None
        self._reported = False

    def expire_after(self, seconds: float) -> None:
        """Report a failure to the circuit breaker if the delivery takes longer than `seconds`."""
        late = KafkaException(KafkaError(KafkaError._MSG_TIMED_OUT))
        self._timer = asyncio.get_running_loop().call_later(seconds, self._report_once, late)

    def report(self, delivery: Delivery) -> bool:
        """Report the outcome, and return whether a broker refused records because of their content."""
        if self._timer is not None:
            self._timer.cancel()
        errors = [KafkaException(error) for error in delivery.failed.values()]
        failure = next((error for error in errors if self._guard.policy.is_failure(error)), None)
        self._report_once(failure or (errors[0] if errors else None))
        return failure is None and any(error.code() > 0 for error in delivery.failed.values())

    def _report_once(self, error: Exception | None) -> None:
        if not self._reported:
            self._reported = True
            self._guard.record_result(self._ticket, error)
