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
PROBE_TIMEOUT_SECONDS = 3.0
DOWN_AFTER_FAILURES = 2
"""Kafka counts as down after this many failed probes in a row."""
STUCK_SECONDS = 10.0
"""After this many seconds without an acknowledgement, /health reports that records wait."""
REPLACE_SECONDS = 5.0
"""After this many seconds without an acknowledgement, the Kafka producers are replaced."""
_REPLACE_AGAIN_SECONDS = 60.0
TRIAL_AFTER_IDLE_SECONDS = 10.0
"""After this many seconds without requests, a probe may close an open circuit breaker."""


class KafkaMonitor:
    """Probes Kafka periodically.

    Attributes:
        error: the error of the latest probe, or an empty text.
    """

    def __init__(self, sink: Sink, guard: Guard) -> None:
        self._sink, self._guard = sink, guard
        self._failures = 0
        self._has_answered = False
        self._was_down = False
        self._replaced_at: float | None = None
        self._latency_ms: float | None = None
        self.error = "not asked yet"

    @property
    def up(self) -> bool:
        """Whether Kafka has answered at least once and does not count as down."""
        return self._has_answered and not self._sink.down_reason

    @property
    def has_answered(self) -> bool:
        """Whether Kafka has ever answered."""
        return self._has_answered

    def dependency(self) -> Dependency:
        """Return the entry of Kafka in /health."""
        detail = self._sink.down_reason or ("" if self._has_answered else self.error)
        # Kafka may answer probes without acknowledging records, so check the seconds without an acknowledgement too.
        waited_seconds = max(self._sink.oldest_wait_seconds, self._sink.silent_seconds)
        if not self.up or waited_seconds < STUCK_SECONDS:
            return Dependency("kafka", self.up, True, detail, self._guard.state, self._latency_ms)
        # If Kafka acknowledged some records while other records were waiting, only a part of Kafka is down.
        partly = time.monotonic() - self._sink.acknowledged_at < waited_seconds
        detail = f"records have waited for {waited_seconds:.0f} s to be acknowledged"
        return Dependency("kafka", False, not partly, detail, self._guard.state, self._latency_ms)

    async def run(self) -> None:
        """Probe Kafka until the task is cancelled."""
        while True:
            if self._needs_probe():
                await self._probe()
            self._replace_stuck_producers()
            await asyncio.sleep(PAUSE_SECONDS)

    def _replace_stuck_producers(self) -> None:
        sink, now = self._sink, time.monotonic()
        if not self.up or sink.oldest_wait_seconds < REPLACE_SECONDS:
            self._replaced_at = None
        elif self._replaced_at is None or now - self._replaced_at > _REPLACE_AGAIN_SECONDS:
            self._replaced_at = now
            sink.replace_producers()
        elif sink.acknowledged_at > self._replaced_at + PAUSE_SECONDS:
            sink.purge_retired()

    def _needs_probe(self) -> bool:
        recently_acknowledged = time.monotonic() - self._sink.acknowledged_at < FRESH_SECONDS
        return not recently_acknowledged or not self.up or self._guard.state != "closed"

    async def _probe(self) -> None:
        ticket = self._admit_trial()
        producer = self._sink.producer
        probe_began, timer_start = time.monotonic(), time.perf_counter()
        try:
            await asyncio.to_thread(producer.list_topics, timeout=PROBE_TIMEOUT_SECONDS)
        except KafkaException as error:
            if ticket is not None:
                self._guard.record_result(ticket, error)
            self._record_failure(str(error.args[0].str()))
            return
        except asyncio.CancelledError as error:
            if ticket is not None:
                self._guard.record_result(ticket, error)
            raise
        self._latency_ms = (time.perf_counter() - timer_start) * 1000
        if ticket is not None:
            self._guard.record_result(ticket)
        if producer is self._sink.producer:
            self._record_success(probe_began)

    def _admit_trial(self) -> int | None:
        if self._guard.state == "closed" or time.monotonic() - self._sink.last_submit_at < TRIAL_AFTER_IDLE_SECONDS:
            return None
        try:
            return self._guard.admit()
        except BreakerOpen:
            return None

    def _record_success(self, probe_began: float | None = None) -> None:
        if self._sink.down_reason:
            log.warning("Kafka answers again")
        if self._sink.down_reason or self._failures or self._was_down:
            # The first successful probe after failed probes closes the circuit breaker.
            self._guard.record_recovery(time.monotonic() if probe_began is None else probe_began)
            # If another call failed after the probe started, the circuit breaker stays open until the next probe.
            self._was_down = self._guard.state != "closed"
        self._failures, self._has_answered = 0, True
        self.error = self._sink.down_reason = ""

    def _record_failure(self, error: str) -> None:
        self.error = error
        self._failures += 1
        if self._failures >= DOWN_AFTER_FAILURES and not self._sink.down_reason:
            log.warning("Kafka does not answer: %s", error)
        if self._failures >= DOWN_AFTER_FAILURES or self._sink.down_reason:
            self._sink.mark_down(error)
