"""The background tasks of a process, which probe Postgres and Redis, and close idle connections."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any

import redis.exceptions

from tidemill_api.services import Services
from tidemill_chassis.health import Dependency, health_report
from tidemill_chassis.resilience.config import BreakerOpen

log = logging.getLogger(__name__)

INTERVAL_SECONDS = 5.0
RETRY_SECONDS = 1.0
"""Interval of probes after a failed probe, or while the breaker is open."""
PROBED_PIPELINES = 5
"""Maximum number of pipeline logins that one probe of Postgres tries."""


class HealthMonitor:
    """The background tasks and the health of a process."""

    def __init__(self, services: Services, interval_seconds: float = INTERVAL_SECONDS) -> None:
        self._services, self._interval_seconds = services, interval_seconds
        self._tasks: list[asyncio.Task[None]] = []
        self._postgres_ms: float | None = None
        self._redis_ms: float | None = None
        self.stopping = False

    def start(self) -> None:
        """Start the background tasks."""
        # Postgres and Redis are probed in separate tasks. A hung Postgres does not delay the probe of Redis.
        jobs = (self._probe_postgres, self._probe_redis, self._close_unused)
        self._tasks = [asyncio.create_task(self._repeat(job)) for job in jobs]

    async def stop(self) -> None:
        """Stop the background tasks."""
        self.stopping = True
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _repeat(self, job: Callable[[], Awaitable[bool]]) -> None:
        while True:
            succeeded = True
            try:
                succeeded = await job()
            except Exception:
                log.exception("a background task failed; it is started again")
            await asyncio.sleep(self._interval_seconds if succeeded else min(RETRY_SECONDS, self._interval_seconds))

    async def _close_unused(self) -> bool:
        await self._services.database.close_unused({model.name for model in self._services.catalog.all()})
        return True

    async def _probe_postgres(self) -> bool:
        database, started = self._services.database, time.monotonic()
        names = [model.name for model in self._services.catalog.all()][:PROBED_PIPELINES]
        self._postgres_ms = None
        answered = await database.is_reachable(names)
        if answered:
            self._postgres_ms = (time.monotonic() - started) * 1000
        return answered and database.guard.state == "closed"

    async def _probe_redis(self) -> bool:
        client, cache, started = self._services.redis, self._services.cache, time.monotonic()
        if client is None:
            return True
        self._redis_ms = None
        try:
            await self._services.guards.redis.aprobe(client.ping)
        except (redis.exceptions.RedisError, BreakerOpen, OSError) as error:
            cache.record_error(error)
            return False
        cache.redis_error, self._redis_ms = "", (time.monotonic() - started) * 1000
        return True

    def health(self) -> tuple[int, dict[str, Any]]:
        """Return the status code and the body of /health."""
        services, guards = self._services, self._services.guards
        database, cache = services.database, services.cache
        postgres_error = database.error or ("" if database.has_answered else "no answer yet")
        dependencies = [
            Dependency("postgres", not postgres_error, True, postgres_error, guards.database.state, self._postgres_ms)
        ]
        if services.redis is not None:
            dependencies.append(
                Dependency("redis", not cache.redis_error, False, cache.redis_error, guards.redis.state, self._redis_ms)
            )
        extra: dict[str, Any] = {"pipelines": [model.name for model in services.catalog.all()]}
        if faults := services.catalog.faults:
            extra["config_faults"] = faults
        return health_report("api", dependencies, extra)

    def ready(self) -> bool:
        """Return whether the process can take requests."""
        return self._services.database.has_answered and not self.stopping

    def alive(self) -> bool:
        """Return whether the background tasks run."""
        return bool(self._tasks) and not any(task.done() for task in self._tasks)
