"""The state of Kafka, as reported by the loop and the regular checks."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any

from confluent_kafka import KafkaError

from tidemill_chassis.resilience.failures import kafka_fatal
from tidemill_chassis.resilience.guard import Guard

log = logging.getLogger(__name__)


class KafkaHealth:
    """The state of Kafka, with a circuit breaker: the loop does not read while Kafka fails.

    Attributes:
        error: why Kafka fails, or an empty string.
        answered_at: the time at which the last answered request was sent (monotonic seconds).
    """

    def __init__(self, guard: Guard, replace_consumer: Callable[[], None]) -> None:
        self._guard = guard
        self._replace_consumer = replace_consumer
        self._failed_at = 0.0
        self.error = "not connected yet"
        self.answered_at = 0.0

    def can_read(self) -> bool:
        """Return whether the loop may read."""
        return self._guard.allow()

    def record_failure(self, error: Any) -> None:
        """Record an error, and replace the consumer after a fatal error."""
        text = error.str() if isinstance(error, KafkaError) else str(error)
        if self.error != text:
            log.warning("kafka: %s", text)
        self.error, self._failed_at = text, time.monotonic()
        self._guard.record_failure()
        if kafka_fatal(error):
            # A fatal error such as FENCED_INSTANCE_ID requires a new consumer.
            self._replace_consumer()

    def record_answer(self, asked_at: float) -> None:
        """Record that Kafka answered a request. `asked_at` is the time of the request (monotonic seconds)."""
        if asked_at < self._failed_at:
            return
        self.error, self.answered_at = "", asked_at
        if self._guard.state == "closed":
            self._guard.record_success()
        else:
            self._guard.record_recovery(asked_at)
