"""Joins the consumer group again if some partitions are not read by any member of the group."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

log = logging.getLogger(__name__)

PATIENCE_SECONDS = 8.0
"""The first pause in seconds before the consumer group is joined again."""
MAX_PATIENCE_SECONDS = 600.0


class Rejoiner:
    """Joins the consumer group again, after growing pauses, while some partitions are not read."""

    def __init__(self, join: Callable[[], None]) -> None:
        self._join = join
        self._patience = PATIENCE_SECONDS
        self._since: float | None = None

    def update(self, unread: frozenset[int]) -> None:
        """Join the consumer group again if some partitions (`unread`) have not been read for too long.

        Raises:
            KafkaException: joining failed.
        """
        if not unread:
            self._since, self._patience = None, PATIENCE_SECONDS
            return
        now = time.monotonic()
        if self._since is None:
            self._since = now
        elif now - self._since >= self._patience:
            log.warning("no processor reads partitions %s; joining the consumer group again", sorted(unread))
            self._since, self._patience = now, min(2 * self._patience, MAX_PATIENCE_SECONDS)
            self._join()
