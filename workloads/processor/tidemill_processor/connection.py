"""A connection to Postgres that never waits longer than it was told to, however silent the server is.

The server's own statement timeout ends nothing while the server is frozen or its packets are lost.
"""

from __future__ import annotations

import time
from typing import Any, TypeVar

import psycopg
from psycopg.abc import PQGen

T = TypeVar("T")
MARGIN_SECONDS = 2.0
"""Beyond the statement timeout: while the server lives, its own answer comes first."""
_INTERVAL_SECONDS = 0.1
SLOW_SECONDS = 15.0
"""What is stored at once takes far less, unless the server is slow."""


class WriterConnection(psycopg.Connection[tuple[Any, ...]]):
    """A connection that is closed when an answer does not come in time.

    Attributes:
        answer_seconds: how long one answer of the server may take.
        heard_at: when a wait for the server last ended, with an answer or without (monotonic seconds).
    """

    answer_seconds = 10.0 + MARGIN_SECONDS
    heard_at = 0.0
    _waited = 0.0
    _waits_since: float | None = None

    @property
    def slow(self) -> str:
        """What is to be told of a server that answers in time, but so slowly that nothing gets done; empty: nothing."""
        since = self._waits_since
        waited = self._waited + (time.monotonic() - since if since is not None else 0.0)
        return f"answers slowly: waited for {waited:.0f} s, and not done yet" if waited >= SLOW_SECONDS else ""

    def done(self) -> None:
        """What was begun is stored, or given up."""
        self._waited = 0.0

    def wait(self, gen: PQGen[T], interval: float = _INTERVAL_SECONDS, timeout: float | None = None) -> T:
        """Called by psycopg for each statement.

        Raises:
            psycopg.errors.ConnectionTimeout: no answer in time; the connection is closed.
        """
        limit = self.answer_seconds if timeout is None else timeout
        began = self._waits_since = time.monotonic()
        try:
            return super().wait(gen, interval, limit)
        except psycopg.OperationalError as error:
            if error.sqlstate or time.monotonic() - began < limit:
                raise
            self.pgconn.finish()
            raise psycopg.errors.ConnectionTimeout(f"no answer from Postgres within {limit:g} s") from None
        finally:
            self._waits_since, self.heard_at = None, time.monotonic()
            self._waited += self.heard_at - began
