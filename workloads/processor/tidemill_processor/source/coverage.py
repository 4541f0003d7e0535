"""Checks that the consumer group reads all partitions of its topic, and joins the group again if it does not.

A group distributes its partitions when a member joins or leaves, or when its leader joins again. A static member that
was killed and returns in time neither joins nor leaves: it gets its former partitions back. Suppose that this member
leads the group, and the topic got more partitions in the meantime. Its new client sees no change of the topic and does
not join again, so the new partitions would never be assigned. If any other member joins again, it only gets its former
partitions back.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

log = logging.getLogger(__name__)

PATIENCE_SECONDS = 8.0
"""The first pause. A member usually starts reading a newly assigned partition sooner."""
MAX_PATIENCE_SECONDS = 600.0


class Coverage:
    """Joins the group again, after growing pauses, while some partitions are not being read.

    Every member does this, because none knows which member is the leader. The group distributes its partitions only
    when the leader joins. Other members get their former partitions back at once.

    Args:
        join: a function that joins the group again, without leaving it.
    """

    def __init__(self, join: Callable[[], None]) -> None:
        self._join = join
        self._patience = PATIENCE_SECONDS
        self._since: float | None = None

    def note(self, untaken: frozenset[int]) -> None:
        """Join the group again if nobody has read the partitions in `untaken` for some time.

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
