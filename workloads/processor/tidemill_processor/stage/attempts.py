"""Counts failed attempts for each record: calls that timed out or ended the worker process."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

ATTEMPTS = 3
"""A record becomes a dead letter after this many failed attempts."""
_MAX_RECORDS = 10_000


@dataclass(frozen=True)
class RecordPosition:
    """The position of a record in the source topic."""

    topic_id: str
    partition: int
    offset: int

    def before(self, other: RecordPosition) -> bool:
        """Return whether both records are in the same partition, and this record comes first."""
        if self.partition != other.partition:
            return False
        return self.topic_id != other.topic_id or self.offset < other.offset


class Attempts:
    """Counts the failed attempts to process records."""

    def __init__(self) -> None:
        self._failed = Counter[RecordPosition]()
        self.given_up: dict[RecordPosition, str] = {}

    def record_failure(self, position: RecordPosition, what: str) -> str:
        """Count a failed attempt, and return a message about what happens to the record next."""
        self._pass_before(position)
        number = self._failed.pop(position, 0) + 1
        if number < ATTEMPTS:
            self._failed[position] = number
            for oldest in list(self._failed)[:-_MAX_RECORDS]:
                del self._failed[oldest]
            return f"attempt {number} of {ATTEMPTS}; after the last attempt, the event becomes a dead letter"
        self.given_up[position] = f"{what}, as in {ATTEMPTS - 1} attempts before"
        return f"attempt {number} of {ATTEMPTS}; the event becomes a dead letter"

    def _pass_before(self, position: RecordPosition) -> None:
        for passed in [at for at in self.given_up if at.before(position)]:
            for earlier in [at for at in self._failed if at.before(passed)]:
                del self._failed[earlier]
            del self.given_up[passed]

    def forget(self) -> None:
        """Forget all attempts, because the function has changed."""
        self._failed.clear()
        self.given_up.clear()
