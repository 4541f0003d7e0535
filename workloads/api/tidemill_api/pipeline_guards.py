"""A guard for each pipeline beside that of the server: what one pipeline's queries do closes the way to no other.

The server's guard is told of what concerns all; while its breaker is open nobody tries.
"""

from __future__ import annotations

import contextlib

from tidemill_chassis import metrics
from tidemill_chassis.resilience.config import BreakerOpen, Guard


class PipelineGuards:
    """The guards by pipeline.

    Args:
        server: the guard of the server; the others have its policy.
    """

    def __init__(self, server: Guard) -> None:
        self._server = server
        self._guards: dict[str, Guard] = {}

    def of(self, pipeline: str) -> Guard:
        """The guard of what is done for a pipeline.

        Raises:
            BreakerOpen: the server is known not to answer.
        """
        if self._server.state == "open" and (wait := self._server.retry_after_seconds) > 0:
            raise BreakerOpen(self._server.name, wait)
        found = self._guards.get(pipeline)
        if found is None:
            found = self._guards[pipeline] = Guard(f"{self._server.name}/{pipeline}", self._server.policy)
        return found

    def forget(self, pipeline: str) -> None:
        """Forget what was learnt of a pipeline."""
        guard = self._guards.pop(pipeline, None)
        if guard is not None:
            for family in (metrics.BREAKER_STATE, metrics.RETRIES):
                with contextlib.suppress(KeyError):
                    family.remove(guard.name)

    def clear(self) -> None:
        """Forget all: what they learnt while the server was away says nothing once it is back."""
        for pipeline in list(self._guards):
            self.forget(pipeline)
