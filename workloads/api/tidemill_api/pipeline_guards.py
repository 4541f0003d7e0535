"""A guard (circuit breaker and retries) for each pipeline. A failing pipeline does not block other pipelines."""

from __future__ import annotations

import contextlib

from tidemill_chassis import metrics
from tidemill_chassis.resilience.config import BreakerOpen, Guard


class PipelineGuards:
    """The guards of all pipelines. Their settings are those of `postgres`, the guard of the Postgres server."""

    def __init__(self, postgres: Guard) -> None:
        self._postgres = postgres
        self._guards: dict[str, Guard] = {}

    def get(self, pipeline: str) -> Guard:
        """Return the guard of a pipeline.

        Raises:
            BreakerOpen: the circuit breaker of Postgres is open.
        """
        if self._postgres.state == "open" and (wait := self._postgres.retry_after_seconds) > 0:
            raise BreakerOpen(self._postgres.name, wait)
        guard = self._guards.get(pipeline)
        if guard is None:
            guard = self._guards[pipeline] = Guard(f"{self._postgres.name}/{pipeline}", self._postgres.policy)
        return guard

    def forget(self, pipeline: str) -> None:
        """Remove the guard of a pipeline, and the guard's metrics."""
        guard = self._guards.pop(pipeline, None)
        if guard is not None:
            for family in (metrics.BREAKER_STATE, metrics.RETRIES):
                with contextlib.suppress(KeyError):
                    family.remove(guard.name)

    def clear(self) -> None:
        """Remove all guards, because their counts of failures are out of date after an outage of Postgres."""
        for pipeline in list(self._guards):
            self.forget(pipeline)
