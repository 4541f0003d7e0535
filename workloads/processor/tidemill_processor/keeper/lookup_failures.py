"""Records unreadable lookups in Postgres. The operator shows these lookups in the pipeline's conditions."""

from __future__ import annotations

import time
from typing import Any

import psycopg

from tidemill_contract.tables import failures
from tidemill_processor.lookups.lookups import Lookups

EVERY_SECONDS = 5.0
AGAIN_SECONDS = 20.0


class LookupFailureWriter:
    """Writes a row for each unreadable lookup. If the lookup can be read again, the row is deleted."""

    def __init__(self, schema: str, lookups: Lookups) -> None:
        self._schema, self._lookups = schema, lookups
        self._written: dict[tuple[str, str], tuple[str, float]] = {}
        self._checked_at = -EVERY_SECONDS

    def run(self, connection: psycopg.Connection[Any]) -> None:
        """Update the rows every five seconds.

        Raises:
            psycopg.Error: Postgres does not answer.
        """
        now = time.monotonic()
        if now - self._checked_at < EVERY_SECONDS:
            return
        self._checked_at = now
        for name, errors in self._lookups.problems().items():
            for duty in failures.LOOKUPS if errors is not None else ():
                self._write(connection, name, duty, (errors or {}).get(duty, ""), now)

    def _write(self, connection: psycopg.Connection[Any], name: str, duty: str, reason: str, now: float) -> None:
        previous = self._written.get((name, duty))
        if previous is not None and previous[0] == reason and (not reason or now - previous[1] < AGAIN_SECONDS):
            return
        if reason:
            connection.execute(failures.record_held_up(self._schema), (name, 0, duty, reason))
        else:
            connection.execute(failures.clear_held_up(self._schema), (name, 0, duty))
        self._written[name, duty] = (reason, now)
