"""Whether Kafka's controllers answer: asked only while nothing is counted, in a thread that nobody waits for.

A broker without controllers goes on telling where partitions end. It may take no records all the same: those whose
replicas are away are never acknowledged, and only controllers can say that others are enough.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

log = logging.getLogger(__name__)
# Each question leaves a line in the controller's log.
EVERY_SECONDS = 15.0


class Controllers:
    """What is known of Kafka's controllers. `silent_seconds` never waits.

    Args:
        ask: whether they answer a question about a topic; may take as long as a client waits.
        clock: seconds that only grow.
    """

    def __init__(self, ask: Callable[[str], bool], *, clock: Callable[[], float] = time.monotonic) -> None:
        self._ask, self._clock = ask, clock
        self._asked_at, self._asking = float("-inf"), False
        self._silent_since: float | None = None

    def silent_seconds(self, topic: str) -> float:
        """For how long they have not answered, as far as that is known; has them asked again if it is time."""
        now, since = self._clock(), self._silent_since
        if not self._asking and (since is not None or now - self._asked_at >= EVERY_SECONDS):
            self._asked_at, self._asking = now, True
            threading.Thread(target=self._look, args=(topic, now), name="controllers", daemon=True).start()
        return 0.0 if since is None else now - since

    def _look(self, topic: str, asked_at: float) -> None:
        answers = True
        try:
            answers = self._ask(topic)
        except Exception:
            log.exception("whether Kafka's controllers answer is not known")
        finally:
            before = self._silent_since
            self._silent_since = None if answers else asked_at if before is None else before
            self._asking = False
