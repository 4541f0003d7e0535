"""The connection that batches are written over: how long it has waited for the server is known."""

from __future__ import annotations

import time
from typing import TypeVar

from psycopg.abc import PQGen

from tidemill_chassis.postgres import INTERVAL_SECONDS, BoundedConnection

T = TypeVar("T")
SLOW_SECONDS = 15.0
"""What is stored at once takes far less, unless the server is slow."""


class WriterConnection(BoundedConnection):
    """A bounded connection that adds up its waits until what was begun is stored."""

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

    def wait(self, gen: PQGen[T], interval: float = INTERVAL_SECONDS, timeout: float | None = None) -> T:
        """Called by psycopg for each statement.

        Raises:
            psycopg.errors.ConnectionTimeout: no answer in time; the connection is closed.
        """
        began = self._waits_since = time.monotonic()
        try:
            return super().wait(gen, interval, timeout)
        finally:
            self._waited += time.monotonic() - began
            self._waits_since = None
