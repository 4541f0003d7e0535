"""Which records the user's function did not return from, and how often. After three attempts, a record is given up."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

ATTEMPTS = 3
"""After this number of failed attempts, a record becomes a dead letter."""
_MOST = 100
"""The number of records that are remembered. Earlier ones have been passed on meanwhile."""


@dataclass(frozen=True)
class Place:
    """The place of a record in the source topic.

    Attributes:
        topic_id: Kafka's id of the topic.
    """

    topic_id: str
    partition: int
    offset: int


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
        self._failed[place] += 1
        number = self._failed[place]
        if number < ATTEMPTS:
            return f"attempt {number} of {ATTEMPTS}; after the last one, the event becomes a dead letter"
        del self._failed[place]
        self.given_up[place] = f"{what}, as in {ATTEMPTS - 1} attempts before"
        for known in list(self.given_up)[:-_MOST]:
            del self.given_up[known]
        for known in list(self._failed)[:-_MOST]:
            del self._failed[known]
        return f"attempt {number} of {ATTEMPTS}; the event becomes a dead letter"

    def forget(self) -> None:
        """Forget all attempts, because the function has changed."""
        self._failed.clear()
        self.given_up.clear()

    def of(self, topic_id: str) -> dict[tuple[int, int], str]:
        """Return why records of a topic are given up, by partition and offset."""
        return {(at.partition, at.offset): why for at, why in self.given_up.items() if at.topic_id == topic_id}
