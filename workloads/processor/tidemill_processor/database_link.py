"""The main loop's connection to Postgres."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

import psycopg

from tidemill_chassis.resilience.failures import database_failed, database_refuses_writes
from tidemill_chassis.resilience.guard import Guard
from tidemill_contract.runtime import PipelineConfig
from tidemill_processor import metrics
from tidemill_processor.connection import WriterConnection
from tidemill_processor.database import Database
from tidemill_processor.transaction import Committer

log = logging.getLogger(__name__)

FIRST_BACKOFF_SECONDS, MAX_BACKOFF_SECONDS = 0.5, 8.0
STABLE_SECONDS = 5.0
"""After a refused write, Postgres counts as healthy once a connection lasts this many seconds.

A committed batch proves this at once."""


class DatabaseLink:
    """The main loop's connection to Postgres, and the committer that uses the connection.

    Attributes:
        error: why there is no connection or why the server refuses writes, or an empty string.
        unreachable: whether the server does not answer at all.
    """

    def __init__(self, config: PipelineConfig, database: Database, guard: Guard, on_change: Callable[[], None]) -> None:
        self._config = config
        self._database = database
        self._guard = guard
        self._on_change = on_change
        self._connect_at = 0.0
        self._backoff = FIRST_BACKOFF_SECONDS
        self.connection: WriterConnection | None = None
        self.committer: Committer | None = None
        self._connected_at = 0.0
        self._writes_refused = False
        self.error = "not connected yet"
        self.unreachable = False

    @property
    def heard_at(self) -> float:
        """When the last wait for Postgres ended (monotonic seconds), or 0 without a connection."""
        connection = self.connection
        return connection.heard_at if connection is not None else 0.0

    @property
    def slow_reason(self) -> str:
        """Why Postgres counts as slow, or an empty string."""
        return self.connection.slow_reason if self.connection is not None else ""

    def end_round(self) -> None:
        """Update the state of the connection after a round of the loop."""
        if self.connection is not None:
            self.connection.end_batch()
            if self._writes_refused and time.monotonic() - self._connected_at >= STABLE_SECONDS:
                self._clear_error()

    def ensure_open(self) -> bool:
        """Connect if necessary and possible, and return whether the connection is open."""
        if self.connection is not None and not self.connection.closed:
            return True
        if self.unreachable or time.monotonic() < self._connect_at or not self._guard.allow():
            return False
        try:
            self._connect()
        except (psycopg.Error, LookupError, OSError, ValueError) as error:
            self.drop(error)
            return False
        return True

    def drop(self, error: Exception) -> None:
        """Drop the connection because of an error."""
        text = str(error).strip() or type(error).__name__
        log.warning("postgres: %s; retry in %.1f s", text, self._backoff)
        metrics.ROLLED_BACK.labels(reason="postgres").inc()
        self.error = text
        # A server with a full disk accepts connections, but refuses writes.
        self._writes_refused = database_refuses_writes(error)
        self.unreachable = isinstance(error, psycopg.OperationalError | OSError) and database_failed(error)
        self._guard.record_failure(error)
        self.close()
        self._connect_at = time.monotonic() + self._backoff
        self._backoff = min(self._backoff * 2, MAX_BACKOFF_SECONDS)
        self._on_change()

    def record_commit(self) -> None:
        """Record that a batch was committed."""
        self._guard.record_success()
        if self._writes_refused:
            self._clear_error()

    def allow_reconnect(self) -> None:
        """Allow a new connection at once, because Postgres answers again."""
        self.unreachable, self._connect_at = False, 0.0

    def close(self) -> None:
        """Close the connection if there is one."""
        if self.connection is not None:
            self.connection.close()
        self.connection = self.committer = None

    def _connect(self) -> None:
        connection = self._database.connect()
        stores = self._database.aggregations(connection)
        self.committer = Committer(connection, self._database, stores, self._config)
        self.connection, self._connected_at = connection, time.monotonic()
        if not self._writes_refused:
            self._clear_error()
        self._guard.record_success()
        self._on_change()

    def _clear_error(self) -> None:
        self._writes_refused = False
        self.error, self._backoff = "", FIRST_BACKOFF_SECONDS
