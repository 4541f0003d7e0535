"""The keeper: a thread that closes and scans windows, publishes results and sends live changes.

Every replica has a keeper. A task that only one replica may run at a time takes a lock.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import psycopg
import redis

from tidemill_chassis.resilience.config import BreakerOpen
from tidemill_processor import metrics
from tidemill_processor.detect.scanning import Scanner
from tidemill_processor.errors import error_text
from tidemill_processor.keeper.duties import Duty, DutyRunner
from tidemill_processor.keeper.event_id_cleanup import MAX_DELETED_IDS, EventIdCleaner
from tidemill_processor.keeper.lookup_failures import LookupFailureWriter
from tidemill_processor.keeper.quotas import QuotaReport
from tidemill_processor.publish.live import LiveSender
from tidemill_processor.publish.publisher import Publisher
from tidemill_processor.time.closing import Clock, Closer

log = logging.getLogger(__name__)

FIRST_BACKOFF_SECONDS, MAX_BACKOFF_SECONDS = 0.5, 2.0
WAIT_SECONDS = 0.2


@dataclass(frozen=True)
class KeeperWorkers:
    """The objects that do the keeper's tasks over one connection."""

    closer: Closer
    scanners: list[Scanner]
    publisher: Publisher
    live_sender: LiveSender | None
    quota_report: QuotaReport
    lookup_failure_writer: LookupFailureWriter | None = None
    event_id_cleaner: EventIdCleaner | None = None


class Keeper(threading.Thread):
    """Runs the keeper's tasks every `interval_seconds` until stopped.

    Attributes:
        error: why the last pass failed, or an empty string.
        database_error: why the last pass failed if Postgres is the cause, or else an empty string.
        must_wait: a function that returns true while the keeper must wait, because Postgres does not answer.
    """

    def __init__(
        self,
        connect: Callable[[], psycopg.Connection[Any]],
        make_workers: Callable[[psycopg.Connection[Any]], KeeperWorkers],
        runner: DutyRunner,
        interval_seconds: float,
    ) -> None:
        super().__init__(name="keeper", daemon=True)
        self._connect = connect
        self._make_workers = make_workers
        self.runner = runner
        self._interval = interval_seconds
        self._stopping = threading.Event()
        self.clock: Clock | None = None
        self._progressed_at = time.monotonic()
        self.redis_error = ""
        self.error = self.database_error = ""
        self.must_wait: Callable[[], bool] = lambda: False
        self._connection: psycopg.Connection[Any] | None = None
        self._backoff = FIRST_BACKOFF_SECONDS

    @property
    def alive_at(self) -> float:
        """When the keeper last completed a task or got an answer from Postgres (monotonic seconds)."""
        return max(self._progressed_at, getattr(self._connection, "heard_at", 0.0))

    def stop(self, timeout_seconds: float = 10.0) -> None:
        """Finish the current pass and end the thread."""
        self._stopping.set()
        self.join(timeout_seconds)

    def run(self) -> None:  # noqa: D102
        # Set the metric before the first pass. So an alert fires even if no pass ever completes.
        metrics.KEEPER_PASSED.set_to_current_time()
        while not self._stopping.is_set():
            if self.must_wait():
                self._progressed_at = time.monotonic()
                self._stopping.wait(WAIT_SECONDS)
                continue
            try:
                with self._connect() as connection:
                    self._connection = connection
                    self._serve(connection)
            except Exception as error:
                self.error = error_text(error)
                self.database_error = self.error if isinstance(error, psycopg.OperationalError | OSError) else ""
                log.warning(
                    "keeper: %s; retry in %.1f s", self.error, self._backoff,
                    exc_info=not isinstance(error, psycopg.Error | OSError | LookupError),
                )  # fmt: skip
                self._connection, self._progressed_at = None, time.monotonic()
                self._stopping.wait(self._backoff)
                self._backoff = min(self._backoff * 2, MAX_BACKOFF_SECONDS)

    def _serve(self, connection: psycopg.Connection[Any]) -> None:
        workers = self._make_workers(connection)
        while not self._stopping.is_set():
            busy = self._run_pass(connection, workers)
            self.error, self.database_error, self._backoff = "", "", FIRST_BACKOFF_SECONDS
            if not busy:
                self._stopping.wait(self._interval)

    def _run_pass(self, connection: psycopg.Connection[Any], workers: KeeperWorkers) -> bool:
        clock = self.clock = workers.closer.run(connection, self._run_duty)
        self._progressed_at = time.monotonic()
        if clock.watermark is not None:
            metrics.WATERMARK_TIMESTAMP.set(clock.watermark / 1000)
        if clock.newly_closed:
            metrics.CLOSINGS.inc(len(clock.newly_closed))
        workers.quota_report.run(connection)
        if workers.lookup_failure_writer is not None:
            workers.lookup_failure_writer.run(connection)
        self._send_live_changes(connection, workers, clock)
        for duty, work in _scans(connection, workers, clock):
            self._run_duty(connection, duty, work)
        published, kafka_failed = 0, False
        for duty, work in workers.publisher.duties(connection, clock.closed_until):
            # If publishing to Kafka fails for one aggregation, skip the other aggregations in the same pass.
            if kafka_failed and duty.aggregation:
                continue
            published += self._run_duty(connection, duty, work)
            failure = self.runner.failure(duty)
            kafka_failed |= bool(duty.aggregation and failure and failure.kafka)
        deleted_ids = 0
        if workers.event_id_cleaner is not None:
            deleted_ids = self._run_duty(connection, Duty("forget"), partial(workers.event_id_cleaner.run, connection))
        metrics.KEEPER_PASSED.set_to_current_time()
        return published > 0 or deleted_ids >= MAX_DELETED_IDS

    def _run_duty(self, connection: psycopg.Connection[Any], duty: Duty, work: Callable[[], int]) -> int:
        result = self.runner.run(connection, duty, work)
        self._progressed_at = time.monotonic()
        return result

    def _send_live_changes(self, connection: psycopg.Connection[Any], workers: KeeperWorkers, clock: Clock) -> None:
        if workers.live_sender is None:
            return
        try:
            workers.live_sender.run(connection, clock, self._run_duty)
            self.redis_error = ""
        except (redis.RedisError, BreakerOpen, OSError) as error:
            if not self.redis_error:
                log.warning("live changes are not published: %s", error)
            self.redis_error = str(error) or type(error).__name__


def _scans(
    connection: psycopg.Connection[Any], workers: KeeperWorkers, clock: Clock
) -> Iterator[tuple[Duty, Callable[[], int]]]:
    for scanner in workers.scanners:
        until, name, version = clock.closed_until.get(scanner.store.name), scanner.store.name, scanner.store.version
        if until is None:
            continue
        if scanner.store.layout.reopen_ms is not None:
            yield Duty("rescore", name, version), partial(scanner.rescore, connection, until)
        yield Duty("scan", name, version), partial(scanner.run, connection, until)
