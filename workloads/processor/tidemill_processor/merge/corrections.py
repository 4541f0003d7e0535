"""Records the closed windows that late events changed. Other tasks publish and judge these windows again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import psycopg

from tidemill_contract.tables import corrections
from tidemill_processor.database import AggregationStore, Database

MOST = 50


@dataclass(frozen=True)
class Corrected:
    """Closed windows that late events changed, with starts in [`first_ms`, `last_ms`] and revisions in `revs`."""

    revs: list[int]
    first_ms: int
    last_ms: int


def note(
    connection: psycopg.Connection[Any],
    database: Database,
    store: AggregationStore,
    corrected: Corrected,
    *,
    publish: bool,
    judge: bool,
) -> None:
    """Record the closed windows that a batch changed, in the batch's transaction."""
    insert = corrections.insert(database.schema)
    if publish or judge:
        for rev in corrected.revs:
            row = (store.id, rev, corrected.first_ms, corrected.last_ms, not publish, not judge)
            connection.execute(insert, row)


class Corrections:
    """The changed windows of an aggregation that wait for one task: publishing or scanning."""

    def __init__(self, database: Database, store: AggregationStore, duty: corrections.Duty) -> None:
        self._schema, self._store, self._duty = database.schema, store, duty
        self._other: corrections.Duty = "scanned" if duty == "published" else "published"

    def due(self, connection: psycopg.Connection[Any]) -> Corrected | None:
        """Return the oldest corrections that the task has not handled yet, or None."""
        if self._store.layout.reopen_ms is None:
            return None
        rows = connection.execute(corrections.due(self._schema, self._duty, MOST), (self._store.id,)).fetchall()
        if not rows:
            return None
        revs, firsts, lasts = zip(*rows, strict=True)
        return Corrected(list(revs), min(firsts), max(lasts))

    def done(self, connection: psycopg.Connection[Any], corrected: Corrected) -> None:
        """Record that the task has handled corrections. Delete those that publishing and scanning have handled."""
        these = (self._store.id, corrected.revs)
        connection.execute(corrections.set_done(self._schema, self._duty), these)
        connection.execute(corrections.remove_done(self._schema, self._other), these)
