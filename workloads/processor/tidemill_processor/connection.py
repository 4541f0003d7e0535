"""The connection for writing batches, which measures its waits for the server."""

from __future__ import annotations

import time
from typing import TypeVar

from psycopg.abc import PQGen

from tidemill_chassis.postgres import INTERVAL_SECONDS, BoundedConnection

T = TypeVar("T")
SLOW_SECONDS = 15.0
"""Postgres counts as slow if one batch has waited this many seconds for answers."""


class WriterConnection(BoundedConnection):
    """A connection that adds up its waits for the server during a batch."""

    _waited = 0.0
    _waits_since: float | None = None

    @property
    def slow(self) -> str:
        """A message if a batch takes too long although the server answers each statement in time, or else empty."""
        since = self._waits_since
        waited = self._waited + (time.monotonic() - since if since is not None else 0.0)
        return f"answers slowly: waited for {waited:.0f} s, and is still waiting" if waited >= SLOW_SECONDS else ""

    def done(self) -> None:
        """Reset the total of the waits after a batch."""
        self._waited = 0.0

    def wait(self, gen: PQGen[T], interval: float = INTERVAL_SECONDS, timeout: float | None = None) -> T:
        """Wait for the answer to a statement."""
        began = self._waits_since = time.monotonic()
        try:
            return super().wait(gen, interval, timeout)
        finally:
            self._waited += time.monotonic() - began
            self._waits_since = None
