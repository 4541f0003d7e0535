"""Which records the user's function did not return from, and how often. After three attempts, a record is given up."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

ATTEMPTS = 3
"""After this number of failed attempts, a record becomes a dead letter."""
_MOST = 10_000
"""The number of records whose failed attempts are counted. A transaction has no more records."""


@dataclass(frozen=True)
class Place:
    """The place of a record in the source topic.

    Attributes:
        topic_id: Kafka's id of the topic.
    """

    topic_id: str
    partition: int
    offset: int

    def before(self, other: Place) -> bool:
        """Return whether this record comes before another one of its partition. A topic created anew comes later."""
        if self.partition != other.partition:
            return False
        return self.topic_id != other.topic_id or self.offset < other.offset


class Attempts:
    """Counts the failed attempts of records.

    Attributes:
        given_up: why the function does not get a record any more, by place.
    """

    def __init__(self) -> None:
        self._failed = Counter[Place]()
        self.given_up: dict[Place, str] = {}

    def failed(self, place: Place, what: str) -> str:
        """Note a failed attempt, and return what happens to the record.

        Args:
            place: the record.
            what: what happened in this attempt.
        """
        self._pass_before(place)
        number = self._failed.pop(place, 0) + 1
        if number < ATTEMPTS:
            self._failed[place] = number
            for known in list(self._failed)[:-_MOST]:
                del self._failed[known]
            return f"attempt {number} of {ATTEMPTS}; after the last one, the event becomes a dead letter"
        self.given_up[place] = f"{what}, as in {ATTEMPTS - 1} attempts before"
        return f"attempt {number} of {ATTEMPTS}; the event becomes a dead letter"

    def _pass_before(self, place: Place) -> None:
        """Forget the records before the last given-up one that the worker has passed to reach a place.

        The worker commits right after each record that is given up, so these records do not come again. Without the
        commit, nothing could be forgotten: each call that is ended aborts the transaction of the records before it.
        """
        for passed in [at for at in self.given_up if at.before(place)]:
            for known in [at for at in self._failed if at.before(passed)]:
                del self._failed[known]
            del self.given_up[passed]

    def forget(self) -> None:
        """Forget all attempts, because the function has changed."""
        self._failed.clear()
        self.given_up.clear()
