"""Records the closed windows that late events changed. Other tasks publish and judge these windows again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import psycopg

from tidemill_contract.tables import corrections
from tidemill_processor.database import AggregationStore, Database

MAX_CORRECTIONS = 50


@dataclass(frozen=True)
class CorrectedWindows:
    """Closed windows that late events changed, with starts in [`first_ms`, `last_ms`] and revisions in `revs`."""

    revs: list[int]
    first_ms: int
    last_ms: int


def record_correction(
    connection: psycopg.Connection[Any],
    database: Database,
    store: AggregationStore,
    corrected: CorrectedWindows,
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

    def __init__(self, database: Database, store: AggregationStore, done_column: corrections.DoneColumn) -> None:
        self._schema, self._store, self._done_column = database.schema, store, done_column
        self._other_column: corrections.DoneColumn = "scanned" if done_column == "published" else "published"

    def read_pending(self, connection: psycopg.Connection[Any]) -> CorrectedWindows | None:
        """Return the oldest corrections that the task has not handled yet, or None."""
        if self._store.layout.reopen_ms is None:
            return None
        rows = connection.execute(
            corrections.pending(self._schema, self._done_column, MAX_CORRECTIONS), (self._store.id,)
        ).fetchall()
        if not rows:
            return None
        revs, firsts, lasts = zip(*rows, strict=True)
        return CorrectedWindows(list(revs), min(firsts), max(lasts))

    def mark_done(self, connection: psycopg.Connection[Any], corrected: CorrectedWindows) -> None:
        """Record that the task has handled corrections. Delete those that publishing and scanning have handled."""
        parameters = (self._store.id, corrected.revs)
        connection.execute(corrections.set_done(self._schema, self._done_column), parameters)
        connection.execute(corrections.remove_done(self._schema, self._other_column), parameters)
