"""Probes whether Kafka answers, with and without traffic."""

from __future__ import annotations

import asyncio
import logging
import time

from confluent_kafka import KafkaException

from tidemill_chassis.health import Dependency
from tidemill_chassis.resilience.config import BreakerOpen, Guard
from tidemill_ingest.kafka.sink import Sink

log = logging.getLogger(__name__)

PAUSE_SECONDS = 1.0
FRESH_SECONDS = 2.0
"""Kafka is not probed for this many seconds after an acknowledgement."""
ASK_SECONDS = 3.0
FAILURES = 2
"""Kafka counts as down after this many failed probes in a row."""
STUCK_SECONDS = 10.0
"""After this many seconds without an acknowledgement, /health reports that records wait."""
REPLACE_SECONDS = 5.0
"""After this many seconds without an acknowledgement, the Kafka producers are replaced."""
_AGAIN_SECONDS = 60.0
IDLE_SECONDS = 10.0
"""After this many seconds without requests, a probe may close an open circuit breaker."""


class Watch:
    """Probes Kafka periodically.

    Attributes:
        error: the error of the latest probe, or an empty text.
    """

    def __init__(self, sink: Sink, guard: Guard) -> None:
        self._sink, self._guard = sink, guard
        self._failures = 0
        self._seen = False
        self._was_away = False
        self._replaced_at: float | None = None
        self._latency_ms: float | None = None
        self.error = "not asked yet"

    @property
    def up(self) -> bool:
        """Whether Kafka has answered at least once and does not count as down."""
        return self._seen and not self._sink.down

    @property
    def seen(self) -> bool:
        """Whether Kafka has ever answered."""
        return self._seen

    def dependency(self) -> Dependency:
        """Return the entry of Kafka in /health."""
        detail = self._sink.down or ("" if self._seen else self.error)
        # Kafka may answer probes without acknowledging records, so check the seconds without an acknowledgement too.
        waited = max(self._sink.waited, self._sink.unheard)
        if not self.up or waited < STUCK_SECONDS:
            return Dependency("kafka", self.up, True, detail, self._guard.state, self._latency_ms)
        # If Kafka acknowledged some records while other records were waiting, only a part of Kafka is down.
        partly = time.monotonic() - self._sink.acknowledged_at < waited
        detail = f"records have waited for {waited:.0f} s to be acknowledged"
        return Dependency("kafka", False, not partly, detail, self._guard.state, self._latency_ms)

    async def run(self) -> None:
        """Probe Kafka until the task is cancelled."""
        while True:
            if self._needs_asking():
                await self._ask()
            self._see_to_stuck()
            await asyncio.sleep(PAUSE_SECONDS)

    def _see_to_stuck(self) -> None:
        sink, now = self._sink, time.monotonic()
        if not self.up or sink.waited < REPLACE_SECONDS:
            self._replaced_at = None
        elif self._replaced_at is None or now - self._replaced_at > _AGAIN_SECONDS:
            self._replaced_at = now
            sink.replace()
        elif sink.acknowledged_at > self._replaced_at + PAUSE_SECONDS:
            sink.give_up_retired()

    def _needs_asking(self) -> bool:
        fresh = time.monotonic() - self._sink.acknowledged_at < FRESH_SECONDS
        return not fresh or not self.up or self._guard.state != "closed"

    async def _ask(self) -> None:
        ticket = self._trial()
        producer = self._sink.producer
        asked_at, began = time.monotonic(), time.perf_counter()
        try:
            await asyncio.to_thread(producer.list_topics, timeout=ASK_SECONDS)
        except KafkaException as error:
            if ticket is not None:
                self._guard.settle(ticket, error)
            self._failed(str(error.args[0].str()))
            return
        except asyncio.CancelledError as error:
            if ticket is not None:
                self._guard.settle(ticket, error)
            raise
        self._latency_ms = (time.perf_counter() - began) * 1000
        if ticket is not None:
            self._guard.settle(ticket)
        if producer is self._sink.producer:
            self._answered(asked_at)

    def _trial(self) -> int | None:
        if self._guard.state == "closed" or time.monotonic() - self._sink.asked_at < IDLE_SECONDS:
            return None
        try:
            return self._guard.admit()
        except BreakerOpen:
            return None

    def _answered(self, asked_at: float | None = None) -> None:
        if self._sink.down:
            log.warning("Kafka answers again")
        if self._sink.down or self._failures or self._was_away:
            # The first successful probe after failed probes closes the circuit breaker.
            self._guard.recovered(time.monotonic() if asked_at is None else asked_at)
            # If another call failed after the probe started, the circuit breaker stays open until the next probe.
            self._was_away = self._guard.state != "closed"
        self._failures, self._seen = 0, True
        self.error = self._sink.down = ""

    def _failed(self, error: str) -> None:
        self.error = error
        self._failures += 1
        if self._failures >= FAILURES and not self._sink.down:
            log.warning("Kafka does not answer: %s", error)
        if self._failures >= FAILURES or self._sink.down:
            self._sink.give_up(error)
