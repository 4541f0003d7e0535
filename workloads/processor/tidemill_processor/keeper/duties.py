"""Runs the keeper's tasks ("duties") separately, so that a failed task does not stop other tasks."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import psycopg

from tidemill_contract.tables import failing
from tidemill_processor import metrics
from tidemill_processor.blame import is_fault, reason
from tidemill_processor.publish.producer import PublishFailed

log = logging.getLogger(__name__)

Kind = Literal["close", "live", "rescore", "scan", "dead letters", "anomalies", "publish", "corrections", "forget"]
KINDS: tuple[Kind, ...] = (
    "close", "live", "rescore", "scan", "dead letters", "anomalies", "publish", "corrections", "forget",
)  # fmt: skip
FIRST_BACKOFF_SECONDS = 0.5
MAX_BACKOFF_SECONDS = {True: 30.0, False: 4.0}
"""The maximum pause in seconds before a retry, by `Trouble.fault`."""
REPORTED_AFTER_SECONDS = 60.0
"""If `Trouble.fault` is false, `Trials` writes the failure to `_held_up` after this many seconds."""


@dataclass(frozen=True)
class Duty:
    """A task that the keeper repeats. If `aggregation` is empty, the task is for the whole pipeline."""

    kind: Kind
    aggregation: str = ""
    version: int = 0


Attempt = Callable[[psycopg.Connection[Any], Duty, Callable[[], int]], int]
"""A function that runs a task: `at_once` or `Trials.run`."""


def at_once(connection: psycopg.Connection[Any], duty: Duty, work: Callable[[], int]) -> int:
    """Run a task, and let errors propagate."""
    return work()


@dataclass(frozen=True)
class Trouble:
    """The current failure of a task.

    Attributes:
        fault: True if data or code causes the failure, False if a server or a lock does.
        kafka: whether Kafka is the cause.
        since: the time of the first failure (monotonic seconds).
        again_at: the time of the next attempt (monotonic seconds).
        reported: whether the failure was written to `_held_up`.
    """

    reason: str
    fault: bool
    kafka: bool
    since: float
    tries: int
    again_at: float
    reported: bool


class Trials:
    """Runs tasks, and retries failed tasks after growing pauses."""

    def __init__(self, schema: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._schema, self._clock = schema, clock
        self._lock = threading.Lock()
        self._troubles: dict[Duty, Trouble] = {}
        self._cleared: set[Duty] = set()
        for kind in KINDS:
            metrics.HELD_UP.labels(duty=kind).set(0)
            metrics.KEEPER_FAILURES.labels(duty=kind)
            metrics.WINDOWS_SKIPPED.labels(duty=kind)

    @property
    def troubles(self) -> Mapping[Duty, Trouble]:
        """The current failures, by task."""
        with self._lock:
            return dict(self._troubles)

    def trouble(self, duty: Duty) -> Trouble | None:
        """Return the current failure of a task, or None."""
        return self._troubles.get(duty)

    def run(self, connection: psycopg.Connection[Any], duty: Duty, work: Callable[[], int]) -> int:
        """Run a task, and return the result. If the task fails or waits for a retry, return 0.

        Raises:
            psycopg.Error: the connection is closed.
        """
        trouble = self._troubles.get(duty)
        if trouble is not None and self._clock() < trouble.again_at:
            return 0
        try:
            answer = work()
        except Exception as error:
            if connection.closed:
                raise
            self._fails(connection, duty, error)
            return 0
        if trouble is not None or duty not in self._cleared:
            self._works(connection, duty)
        return answer

    def _fails(self, connection: psycopg.Connection[Any], duty: Duty, error: Exception) -> None:
        now, text, fault = self._clock(), reason(error), is_fault(error)
        previous = self._troubles.get(duty)
        tries, since = (previous.tries + 1, previous.since) if previous else (1, now)
        wait = min(MAX_BACKOFF_SECONDS[fault], FIRST_BACKOFF_SECONDS * 2 ** min(tries - 1, 10))
        reported = fault or now - since >= REPORTED_AFTER_SECONDS or (previous is not None and previous.reported)
        if previous is None or previous.reason != text:
            # Log a traceback for a fault in data or code. An error from Postgres needs no traceback.
            log.warning(
                "%s of %s: %s; retry in %.1f s", duty.kind, duty.aggregation or "the pipeline", text, wait,
                exc_info=fault and not isinstance(error, psycopg.Error),
            )  # fmt: skip
        trouble = Trouble(text, fault, isinstance(error, PublishFailed), since, tries, now + wait, reported)
        with self._lock:
            self._troubles[duty] = trouble
        self._count(duty)
        metrics.KEEPER_FAILURES.labels(duty=duty.kind).inc()
        if reported:
            self._write(connection, failing.hold_up(self._schema), (duty.aggregation, duty.version, duty.kind, text))

    def _works(self, connection: psycopg.Connection[Any], duty: Duty) -> None:
        with self._lock:
            trouble = self._troubles.pop(duty, None)
        if trouble is not None:
            self._count(duty)
            log.info("%s of %s works again", duty.kind, duty.aggregation or "the pipeline")
        self._cleared.add(duty)
        self._write(connection, failing.go_on(self._schema), (duty.aggregation, duty.version, duty.kind))

    def _count(self, duty: Duty) -> None:
        failing = sum(other.kind == duty.kind for other in self._troubles)
        metrics.HELD_UP.labels(duty=duty.kind).set(failing)

    def _write(self, connection: psycopg.Connection[Any], text: str, values: tuple[Any, ...]) -> None:
        try:
            connection.execute(text, values)
        except psycopg.Error as error:
            if connection.closed:
                raise
            log.warning("%s.%s: %s", self._schema, failing.HELD_UP.name, reason(error))
