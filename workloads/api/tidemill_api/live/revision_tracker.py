"""Tracks which revisions of an aggregation were sent to the connected clients.

A gap between revisions means that a change is missing.
"""

from __future__ import annotations

from collections.abc import Iterable

from tidemill_api.live.change import Change, Key, Row
from tidemill_api.live.progress import Position


class RevisionTracker:
    """The revisions of one aggregation that were sent to the connected clients.

    Attributes:
        complete_rev: the revision up to which no change is missing.
        max_rev: the highest revision that was sent.
        database_rev: the newest revision in the database at the last query.
    """

    def __init__(self, aggregation: str, table: int, rev: int, closed_until_ms: int | None) -> None:
        self._aggregation, self.table_oid = aggregation, table
        self.complete_rev = self.max_rev = self.database_rev = rev
        self._closed_until_ms = closed_until_ms
        self._revs_beyond_gap: set[int] = set()
        self._rev_by_key: dict[Key, int] = {}

    @property
    def revs_beyond_gap(self) -> list[int]:
        """The sent revisions that are greater than `complete_rev`."""
        return sorted(self._revs_beyond_gap)

    @property
    def position(self) -> Position:
        """The position of a client that has received all changes so far."""
        return Position(self.table_oid, self.complete_rev, self._closed_until_ms)

    def add_streamed(self, revs: Iterable[int], rows: dict[Key, Row]) -> Change | None:
        """Add rows of the Redis stream, and return the change to send. If nothing is new, return None."""
        new_revs = {rev for rev in revs if rev > self.complete_rev}
        if not new_revs:
            return None
        rev = max(new_revs)
        rows = {key: row for key, row in rows.items() if self._rev_by_key.get(key, 0) < rev}
        self._revs_beyond_gap |= new_revs
        while self.complete_rev + 1 in self._revs_beyond_gap:
            self.complete_rev += 1
            self._revs_beyond_gap.remove(self.complete_rev)
        if self._revs_beyond_gap:
            self._rev_by_key.update(dict.fromkeys(rows, rev))
        else:
            self._rev_by_key.clear()
        return self._change(rev, rows)

    def add_from_database(self, rev: int, rows: dict[Key, Row]) -> Change | None:
        """Add all missing changes up to `rev`, which are rows from the database. Return the change to send."""
        self.complete_rev = max(self.complete_rev, rev)
        self._revs_beyond_gap = {sent_rev for sent_rev in self._revs_beyond_gap if sent_rev > self.complete_rev}
        if not self._revs_beyond_gap:
            self._rev_by_key.clear()
        return self._change(rev, rows)

    def update_database_rev(self, rev: int, closed_until_ms: int | None) -> None:
        """Remember the newest revision of the database, and the time up to which windows are closed."""
        self.database_rev = rev
        if self.complete_rev >= rev:
            # commits after `rev` do not change windows that end before `closed_until_ms`
            self._closed_until_ms = closed_until_ms

    def _change(self, rev: int, rows: dict[Key, Row]) -> Change | None:
        self.max_rev = max(self.max_rev, rev)
        return Change(self._aggregation, rev, self.max_rev, rows) if rows else None
