"""Runs the keeper's tasks ("duties") separately, so that a failed task does not stop other tasks."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import psycopg

from tidemill_contract.tables import failures
from tidemill_processor import metrics
from tidemill_processor.errors import error_text, is_permanent
from tidemill_processor.publish.producer import PublishFailed

log = logging.getLogger(__name__)

Kind = Literal["close", "live", "rescore", "scan", "dead letters", "anomalies", "publish", "corrections", "forget"]
KINDS: tuple[Kind, ...] = (
    "close", "live", "rescore", "scan", "dead letters", "anomalies", "publish", "corrections", "forget",
)  # fmt: skip
FIRST_BACKOFF_SECONDS = 0.5
MAX_BACKOFF_SECONDS = {True: 30.0, False: 4.0}
"""The maximum pause in seconds before a retry, by `DutyFailure.permanent`."""
REPORTED_AFTER_SECONDS = 60.0
"""If `DutyFailure.permanent` is false, `DutyRunner` writes the failure to `_held_up` after this many seconds."""


@dataclass(frozen=True)
class Duty:
    """A task that the keeper repeats. If `aggregation` is empty, the task is for the whole pipeline."""

    kind: Kind
    aggregation: str = ""
    version: int = 0


RunDuty = Callable[[psycopg.Connection[Any], Duty, Callable[[], int]], int]
"""A function that runs a task: `run_directly` or `DutyRunner.run`."""


def run_directly(connection: psycopg.Connection[Any], duty: Duty, work: Callable[[], int]) -> int:
    """Run a task, and let errors propagate."""
    return work()


@dataclass(frozen=True)
class DutyFailure:
    """The current failure of a task.

    Attributes:
        permanent: True if data or code causes the failure, False if a server or a lock does.
        kafka: whether Kafka is the cause.
        since: the time of the first failure (monotonic seconds).
        retry_at: the time of the next attempt (monotonic seconds).
        reported: whether the failure was written to `_held_up`.
    """

    reason: str
    permanent: bool
    kafka: bool
    since: float
    tries: int
    retry_at: float
    reported: bool


class DutyRunner:
    """Runs tasks, and retries failed tasks after growing pauses."""

    def __init__(self, schema: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._schema, self._clock = schema, clock
        self._lock = threading.Lock()
        self._failures: dict[Duty, DutyFailure] = {}
        self._cleared: set[Duty] = set()
        for kind in KINDS:
            metrics.HELD_UP.labels(duty=kind).set(0)
            metrics.KEEPER_FAILURES.labels(duty=kind)
            metrics.WINDOWS_SKIPPED.labels(duty=kind)

    @property
    def failures(self) -> Mapping[Duty, DutyFailure]:
        """The current failures, by task."""
        with self._lock:
            return dict(self._failures)

    def failure(self, duty: Duty) -> DutyFailure | None:
        """Return the current failure of a task, or None."""
        return self._failures.get(duty)

    def run(self, connection: psycopg.Connection[Any], duty: Duty, task: Callable[[], int]) -> int:
        """Run a task, and return the result. If the task fails or waits for a retry, return 0.

        Raises:
            psycopg.Error: the connection is closed.
        """
        failure = self._failures.get(duty)
        if failure is not None and self._clock() < failure.retry_at:
            return 0
        try:
            result = task()
        except Exception as error:
            if connection.closed:
                raise
            self._record_failure(connection, duty, error)
            return 0
        if failure is not None or duty not in self._cleared:
            self._record_success(connection, duty)
        return result

    def _record_failure(self, connection: psycopg.Connection[Any], duty: Duty, error: Exception) -> None:
        now, text, permanent = self._clock(), error_text(error), is_permanent(error)
        previous = self._failures.get(duty)
        tries, since = (previous.tries + 1, previous.since) if previous else (1, now)
        wait = min(MAX_BACKOFF_SECONDS[permanent], FIRST_BACKOFF_SECONDS * 2 ** min(tries - 1, 10))
        reported = permanent or now - since >= REPORTED_AFTER_SECONDS or (previous is not None and previous.reported)
        if previous is None or previous.reason != text:
            # Log a traceback if data or code is the cause. An error from Postgres needs no traceback.
            log.warning(
                "%s of %s: %s; retry in %.1f s", duty.kind, duty.aggregation or "the pipeline", text, wait,
                exc_info=permanent and not isinstance(error, psycopg.Error),
            )  # fmt: skip
        failure = DutyFailure(text, permanent, isinstance(error, PublishFailed), since, tries, now + wait, reported)
        with self._lock:
            self._failures[duty] = failure
        self._count(duty)
        metrics.KEEPER_FAILURES.labels(duty=duty.kind).inc()
        if reported:
            self._write(
                connection, failures.record_held_up(self._schema), (duty.aggregation, duty.version, duty.kind, text)
            )

    def _record_success(self, connection: psycopg.Connection[Any], duty: Duty) -> None:
        with self._lock:
            failure = self._failures.pop(duty, None)
        if failure is not None:
            self._count(duty)
            log.info("%s of %s works again", duty.kind, duty.aggregation or "the pipeline")
        self._cleared.add(duty)
        self._write(connection, failures.clear_held_up(self._schema), (duty.aggregation, duty.version, duty.kind))

    def _count(self, duty: Duty) -> None:
        failing = sum(other.kind == duty.kind for other in self._failures)
        metrics.HELD_UP.labels(duty=duty.kind).set(failing)

    def _write(self, connection: psycopg.Connection[Any], text: str, values: tuple[Any, ...]) -> None:
        try:
            connection.execute(text, values)
        except psycopg.Error as error:
            if connection.closed:
                raise
            log.warning("%s.%s: %s", self._schema, failures.HELD_UP.name, error_text(error))
