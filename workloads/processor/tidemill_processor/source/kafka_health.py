"""Whether Kafka answers, according to the loop and the regular checks."""

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
    """The state of Kafka, and the breaker that keeps the loop from reading while Kafka fails.

    Args:
        guard: with the breaker.
        renew: replaces the consumer.

    Attributes:
        error: why Kafka fails; empty: it works.
        answered_at: when the last answered request was sent, monotonic seconds.
    """

    def __init__(self, guard: Guard, renew: Callable[[], None]) -> None:
        self._guard = guard
        self._renew = renew
        self._failed_at = 0.0
        self.error = "not connected yet"
        self.answered_at = 0.0

    def allows(self) -> bool:
        """Whether the breaker lets the loop read."""
        return self._guard.allow()

    def failed(self, error: Any) -> None:
        """Note a failure. After a fatal one, the consumer is replaced."""
        text = error.str() if isinstance(error, KafkaError) else str(error)
        if self.error != text:
            log.warning("kafka: %s", text)
        self.error, self._failed_at = text, time.monotonic()
        self._guard.failure()
        if kafka_fatal(error):
            # E.g. a static member rejoined after an outage with a new id, and Kafka then refuses its own pending
            # request with the former id (FENCED_INSTANCE_ID).
            self._renew()

    def answered(self, asked_at: float) -> None:
        """Note an answer to a request of `asked_at`. It does not clear a later failure. Any thread may call this."""
        if asked_at < self._failed_at:
            return
        self.error, self.answered_at = "", asked_at
        if self._guard.state == "closed":
            self._guard.success()
        else:
            self._guard.recovered(asked_at)
