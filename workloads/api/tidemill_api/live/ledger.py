"""Which revisions of an aggregation have been handed to listeners: nothing is missed, nothing newer is overwritten.

Revisions are counted by the commits themselves (1, 2, 3, …), so a number that never comes is a change that no processor
published: one that was killed after its commit, or could not reach Redis.
"""

from __future__ import annotations

from collections.abc import Iterable

from tidemill_api.live.change import Change, Key, Row
from tidemill_api.live.progress import Mark


class Ledger:
    """The revisions of one aggregation.

    Attributes:
        complete: every revision up to this one has been handed on.
        label: the highest revision that listeners were told.
        expected: by the next look, all revisions up to this one should have come.
    """

    def __init__(self, aggregation: str, table: int, rev: int, closed_until_ms: int | None) -> None:
        self._aggregation, self.table = aggregation, table
        self.complete = self.label = self.expected = rev
        self._closed_until_ms = closed_until_ms
        self._seen: set[int] = set()
        self._newest: dict[Key, int] = {}

    @property
    def seen(self) -> list[int]:
        """Revisions beyond `complete` that have been handed on."""
        return sorted(self._seen)

    @property
    def mark(self) -> Mark:
        """Where a listener resumes that has got everything handed on so far."""
        return Mark(self.table, self.complete, self._closed_until_ms)

    def take(self, revs: Iterable[int], rows: dict[Key, Row]) -> Change | None:
        """Published rows as a change; None: they are known already.

        Args:
            revs: the revisions that they are of.
            rows: each as it was when the newest of these had been committed, or later.
        """
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
        """Rows read from the database at a revision as a change: all that was missing up to it."""
        self.complete = max(self.complete, rev)
        self._seen = {seen for seen in self._seen if seen > self.complete}
        if not self._seen:
            self._newest.clear()
        return self._change(rev, rows)

    def look(self, rev: int, closed_until_ms: int | None) -> None:
        """Note how far the database is."""
        self.expected = rev
        if self.complete >= rev:
            # What is committed after this found these windows closed.
            self._closed_until_ms = closed_until_ms

    def _change(self, rev: int, rows: dict[Key, Row]) -> Change | None:
        self.label = max(self.label, rev)
        return Change(self._aggregation, rev, self.label, rows) if rows else None
