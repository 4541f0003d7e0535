"""Records unreadable lookups in Postgres. The operator shows these lookups in the pipeline's conditions."""

from __future__ import annotations

import time
from typing import Any

import psycopg

from tidemill_contract.tables import failing
from tidemill_processor.lookups.lookups import Lookups

EVERY_SECONDS = 5.0
AGAIN_SECONDS = 20.0


class LookupNotes:
    """Writes a row for each unreadable lookup. If the lookup can be read again, the row is deleted."""

    def __init__(self, schema: str, lookups: Lookups) -> None:
        self._schema, self._lookups = schema, lookups
        self._told: dict[tuple[str, str], tuple[str, float]] = {}
        self._looked_at = -EVERY_SECONDS

    def run(self, connection: psycopg.Connection[Any]) -> None:
        """Update the rows every five seconds.

        Raises:
            psycopg.Error: Postgres does not answer.
        """
        now = time.monotonic()
        if now - self._looked_at < EVERY_SECONDS:
            return
        self._looked_at = now
        for name, troubles in self._lookups.troubles().items():
            for duty in failing.LOOKUPS if troubles is not None else ():
                self._tell(connection, name, duty, (troubles or {}).get(duty, ""), now)

    def _tell(self, connection: psycopg.Connection[Any], name: str, duty: str, reason: str, now: float) -> None:
        previous = self._told.get((name, duty))
        if previous is not None and previous[0] == reason and (not reason or now - previous[1] < AGAIN_SECONDS):
            return
        if reason:
            connection.execute(failing.hold_up(self._schema), (name, 0, duty, reason))
        else:
            connection.execute(failing.go_on(self._schema), (name, 0, duty))
        self._told[name, duty] = (reason, now)
