"""Check in a separate thread whether Kafka's controllers answer.

Without controllers, brokers sometimes refuse records.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

log = logging.getLogger(__name__)
# Every check writes a line to the controller's log, so checks are rare.
EVERY_SECONDS = 15.0


class ControllerCheck:
    """Checks whether Kafka's controllers answer, and since when they are silent."""

    def __init__(self, ask: Callable[[str], bool], *, clock: Callable[[], float] = time.monotonic) -> None:
        self._ask, self._clock = ask, clock
        self._asked_at, self._asking = float("-inf"), False
        self._silent_since: float | None = None

    def silent_seconds(self, topic: str) -> float:
        """Return the seconds since the controllers stopped answering, or 0 if they answer or were not asked."""
        now, since = self._clock(), self._silent_since
        if not self._asking and (since is not None or now - self._asked_at >= EVERY_SECONDS):
            self._asked_at, self._asking = now, True
            threading.Thread(target=self._check, args=(topic, now), name="controllers", daemon=True).start()
        return 0.0 if since is None else now - since

    def _check(self, topic: str, asked_at: float) -> None:
        answers = True
        try:
            answers = self._ask(topic)
        except Exception:
            log.exception("checking Kafka's controllers failed")
        finally:
            before = self._silent_since
            self._silent_since = None if answers else asked_at if before is None else before
            self._asking = False
