"""The connection for writing batches. It measures how long it has waited for the server."""

from __future__ import annotations

import time
from typing import TypeVar

from psycopg.abc import PQGen

from tidemill_chassis.postgres import INTERVAL_SECONDS, BoundedConnection

T = TypeVar("T")
SLOW_SECONDS = 15.0
"""If a batch has waited this many seconds for the server, the server counts as slow. Storing a batch usually takes far
less."""


class WriterConnection(BoundedConnection):
    """A bounded connection that adds up its waits for the server during a batch."""

    _waited = 0.0
    _waits_since: float | None = None

    @property
    def slow(self) -> str:
        """A message if the server answers every statement in time but a batch takes too long.

        Empty if the server is not slow.
        """
        since = self._waits_since
        waited = self._waited + (time.monotonic() - since if since is not None else 0.0)
        return f"answers slowly: waited for {waited:.0f} s, and not done yet" if waited >= SLOW_SECONDS else ""

    def done(self) -> None:
        """Reset the total of the waits, at the end of the work on a batch."""
        self._waited = 0.0

    def wait(self, gen: PQGen[T], interval: float = INTERVAL_SECONDS, timeout: float | None = None) -> T:
        """Wait for the answer to a statement. psycopg calls this.

        Raises:
            psycopg.errors.ConnectionTimeout: there was no answer in time, and the connection was closed.
        """
        began = self._waits_since = time.monotonic()
        try:
            return super().wait(gen, interval, timeout)
        finally:
            self._waited += time.monotonic() - began
            self._waits_since = None
