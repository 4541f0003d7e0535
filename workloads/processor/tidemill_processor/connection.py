"""A Postgres connection that measures how long each batch waits for answers."""

from __future__ import annotations

import time
from typing import TypeVar

from psycopg.abc import PQGen

from tidemill_chassis.postgres import INTERVAL_SECONDS, BoundedConnection

T = TypeVar("T")
SLOW_SECONDS = 15.0
"""Postgres is reported as slow if the waits of one batch add up to this many seconds."""


class WriterConnection(BoundedConnection):
    """A connection that adds up the time a batch waits for Postgres."""

    _waited = 0.0
    _waits_since: float | None = None

    @property
    def slow_reason(self) -> str:
        """Why Postgres counts as slow for the current batch, or an empty string."""
        since = self._waits_since
        waited = self._waited + (time.monotonic() - since if since is not None else 0.0)
        return f"answers slowly: waited for {waited:.0f} s, and is still waiting" if waited >= SLOW_SECONDS else ""

    def end_batch(self) -> None:
        """Reset the waiting time after a batch."""
        self._waited = 0.0

    def wait(self, gen: PQGen[T], interval: float = INTERVAL_SECONDS, timeout: float | None = None) -> T:
        """Wait for the answer to a statement.

        Raises:
            psycopg.errors.ConnectionTimeout: there was no answer in time, and the connection was closed.
        """
        began = self._waits_since = time.monotonic()
        try:
            return super().wait(gen, interval, timeout)
        finally:
            self._waited += time.monotonic() - began
            self._waits_since = None
