"""The keeper: a thread that closes windows, scans them for anomalies, publishes and feeds live listeners.

It has a connection of its own, so that the loop that commits events never waits for it. Every replica has one; the
passes are idempotent or take a lock that only one holds.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import psycopg
import redis

from tidemill_contract import metrics
from tidemill_contract.resilience import BreakerOpen
from tidemill_processor.closing import Clock, Closer
from tidemill_processor.keeping import Report
from tidemill_processor.live import Live
from tidemill_processor.publish import Publisher, PublishFailed
from tidemill_processor.scanning import Scanner

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Duties:
    """What a keeper does, made anew with each connection."""

    closer: Closer
    scanners: dict[str, Scanner]
    publisher: Publisher
    live: Live | None
    report: Report


class Keeper(threading.Thread):
    """Runs the duties every `interval_seconds` until stopped.

    Args:
        connect: a new connection; may raise psycopg.OperationalError.
        duties: makes the duties over a connection.
        interval_seconds: between passes.
    """

    def __init__(
        self,
        connect: Callable[[], psycopg.Connection[Any]],
        duties: Callable[[psycopg.Connection[Any]], Duties],
        interval_seconds: float,
    ) -> None:
        super().__init__(name="keeper", daemon=True)
        self._connect = connect
        self._duties = duties
        self._interval = interval_seconds
        self._stopping = threading.Event()
        self.clock: Clock | None = None
        self.alive_at = time.monotonic()
        self.redis_error = ""
        self.publish_error = ""

    def stop(self, timeout_seconds: float = 10.0) -> None:
        """Finish the present pass and end."""
        self._stopping.set()
        self.join(timeout_seconds)

    def run(self) -> None:  # noqa: D102
        backoff = 0.5
        while not self._stopping.is_set():
            try:
                with self._connect() as connection:
                    backoff = 0.5
                    self._serve(connection)
            except (psycopg.Error, OSError, LookupError) as error:
                log.warning("keeper: %s; again in %.1f s", str(error).strip(), backoff)
                self.alive_at = time.monotonic()
                self._stopping.wait(backoff)
                backoff = min(backoff * 2, 8.0)

    def _serve(self, connection: psycopg.Connection[Any]) -> None:
        duties = self._duties(connection)
        while not self._stopping.is_set():
            busy = self._pass(connection, duties)
            self.alive_at = time.monotonic()
            if not busy:
                self._stopping.wait(self._interval)

    def _pass(self, connection: psycopg.Connection[Any], duties: Duties) -> bool:
        clock = duties.closer.run(connection)
        self.clock = clock
        if clock.watermark is not None:
            metrics.WATERMARK_SECONDS.set(clock.watermark / 1000)
        if clock.newly_closed:
            metrics.CLOSINGS.inc(len(clock.newly_closed))
        duties.report.run(connection)
        self._feed(connection, duties, clock)
        for name, scanner in duties.scanners.items():
            until = clock.closed.get(name)
            if until is not None:
                scanner.run(connection, until)
        try:
            published = duties.publisher.run(connection, clock.closed)
            self.publish_error = ""
            return published > 0
        except PublishFailed as error:
            if not self.publish_error:
                log.warning("publishing: %s", error)
            self.publish_error = str(error)
            return False

    def _feed(self, connection: psycopg.Connection[Any], duties: Duties, clock: Clock) -> None:
        if duties.live is None:
            return
        try:
            duties.live.run(connection, clock)
            self.redis_error = ""
        except (redis.RedisError, BreakerOpen, OSError) as error:
            if not self.redis_error:
                log.warning("live changes are not published: %s", error)
            self.redis_error = str(error) or type(error).__name__
