"""Tracks which revisions of an aggregation were sent to the connected clients.

A gap between revisions means that a change is missing.
"""

from __future__ import annotations

from collections.abc import Iterable

from tidemill_api.live.change import Change, Key, Row
from tidemill_api.live.progress import Mark


class Ledger:
    """The revisions of one aggregation that were sent to the connected clients.

    Attributes:
        complete: the revision up to which no change is missing.
        label: the highest revision that was sent.
        expected: the newest revision in the database at the last query.
    """

    def __init__(self, aggregation: str, table: int, rev: int, closed_until_ms: int | None) -> None:
        self._aggregation, self.table = aggregation, table
        self.complete = self.label = self.expected = rev
        self._closed_until_ms = closed_until_ms
        self._seen: set[int] = set()
        self._newest: dict[Key, int] = {}

    @property
    def seen(self) -> list[int]:
        """The sent revisions that are greater than `complete`."""
        return sorted(self._seen)

    @property
    def mark(self) -> Mark:
        """The position of a client that has received all changes so far."""
        return Mark(self.table, self.complete, self._closed_until_ms)

    def take(self, revs: Iterable[int], rows: dict[Key, Row]) -> Change | None:
        """Return the change to send for rows of the Redis stream. If nothing is new, return None."""
        fresh = {rev for rev in revs if rev > self.complete}
        if not fresh:
            return None
        rev = max(fresh)
        rows = {key: row for key, row in rows.items() if self._newest.get(key, 0) < rev}
        self._seen |= fresh
        while self.complete + 1 in self._seen:
            self.complete += 1
            self._seen.remove(self.complete)
        if self._seen:
            self._newest.update(dict.fromkeys(rows, rev))
        else:
            self._newest.clear()
        return self._change(rev, rows)

    def fill(self, rev: int, rows: dict[Key, Row]) -> Change | None:
        """Return a change with rows from the database. The rows contain all missing changes up to `rev`."""
        self.complete = max(self.complete, rev)
        self._seen = {seen for seen in self._seen if seen > self.complete}
        if not self._seen:
            self._newest.clear()
        return self._change(rev, rows)

    def look(self, rev: int, closed_until_ms: int | None) -> None:
        """Remember the newest revision of the database, and the time up to which windows are closed."""
        self.expected = rev
        if self.complete >= rev:
            # commits after `rev` do not change windows that end before `closed_until_ms`
            self._closed_until_ms = closed_until_ms

    def _change(self, rev: int, rows: dict[Key, Row]) -> Change | None:
        self.label = max(self.label, rev)
        return Change(self._aggregation, rev, self.label, rows) if rows else None
