"""Whether the consumer group reads all partitions of its topic, and what is done if it does not.

A group shares out partitions when a member comes or goes, or when its leader joins again. A member with a name of its
own that was killed and is back in time neither comes nor goes: it gets its former partitions. If it leads the group and
the topic grew meanwhile, nobody would ever get the new ones: its client has known them from the start, sees no change
and does not join again; a member that does so without being the leader gets back what it has.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

log = logging.getLogger(__name__)

PATIENCE_SECONDS = 8.0
"""Longer than a member that has just got a partition needs to take it up."""
MAX_PATIENCE_SECONDS = 600.0


class Coverage:
    """Joins the group again while partitions stay with nobody, after pauses that grow.

    Every member does so: which of them leads the group none of them knows. Only the leader's makes the group share out
    its partitions anew; another member gets its own back at once.

    Args:
        join: joins the group again, without leaving it.
    """

    def __init__(self, join: Callable[[], None]) -> None:
        self._join = join
        self._patience = PATIENCE_SECONDS
        self._since: float | None = None

    def note(self, untaken: frozenset[int]) -> None:
        """Note which partitions nobody has taken up, of those that are not ours.

        Raises:
            KafkaException: joining failed.
        """
        if not untaken:
            self._since, self._patience = None, PATIENCE_SECONDS
            return
        now = time.monotonic()
        if self._since is None:
            self._since = now
        elif now - self._since >= self._patience:
            log.warning("nobody reads partitions %s; joining the group again", sorted(untaken))
            self._since, self._patience = now, min(2 * self._patience, MAX_PATIENCE_SECONDS)
            self._join()
