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


class AdminConnection(psycopg.Connection[tuple[Any, ...]]):
    """A connection that is closed when an answer does not come in time.

    Attributes:
        answer_seconds: how long one answer of the server may take.
    """

    answer_seconds = 60.0 + MARGIN_SECONDS

    def wait(self, gen: PQGen[T], interval: float = _INTERVAL_SECONDS, timeout: float | None = None) -> T:
        """Called by psycopg for each statement.

        Raises:
            psycopg.errors.ConnectionTimeout: no answer in time; the connection is closed.
        """
        limit = self.answer_seconds if timeout is None else timeout
        began = time.monotonic()
        try:
            return super().wait(gen, interval, limit)
        except psycopg.OperationalError as error:
            if error.sqlstate or time.monotonic() - began < limit:
                raise
            self.pgconn.finish()
            raise psycopg.errors.ConnectionTimeout(f"no answer within {limit:g} s") from None

    def hurry(self, seconds: float) -> None:
        """Let no statement from now on take longer, by the server or, if that is silent, by this end."""
        self.answer_seconds = seconds + MARGIN_SECONDS
        self.execute(f"SET statement_timeout = '{int(seconds * 1000)}ms'")
