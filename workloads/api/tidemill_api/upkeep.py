"""What a process does unasked (looks whether Postgres and Redis answer, closes idle connections) and says of itself.

/health is told from these looks and from traffic, so it is true with no traffic at all. They close open breakers, too.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any

import redis.exceptions

from tidemill_api.services import Services
from tidemill_chassis.health import Dependency, report
from tidemill_chassis.resilience.config import BreakerOpen

log = logging.getLogger(__name__)

EVERY_SECONDS = 5.0
AGAIN_SECONDS = 1.0
"""Between looks at a server that did not answer the last one, or whose breaker is open."""
PROBED_PIPELINES = 5
"""How many logins are tried until one is answered: the first ones may not be set up yet."""


class Upkeep:
    """Runs from start to stop beside the requests."""

    def __init__(self, services: Services, every_seconds: float = EVERY_SECONDS) -> None:
        self._services, self._every = services, every_seconds
        self._tasks: list[asyncio.Task[None]] = []
        self._postgres_ms: float | None = None
        self._redis_ms: float | None = None
        self.stopping = False

    def start(self) -> None:
        """Look now and then from now on."""
        # Each on its own: a server that hangs does not keep the look at the other waiting.
        looks = (self._look_at_postgres, self._look_at_redis, self._tidy)
        self._tasks = [asyncio.create_task(self._repeat(look)) for look in looks]

    async def stop(self) -> None:
        """Look no more."""
        self.stopping = True
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _repeat(self, look: Callable[[], Awaitable[bool]]) -> None:
        while True:
            well = True
            try:
                well = await look()
            except Exception:
                log.exception("upkeep")
            await asyncio.sleep(self._every if well else min(AGAIN_SECONDS, self._every))

    async def _tidy(self) -> bool:
        await self._services.database.tidy({model.name for model in self._services.catalog.all()})
        return True

    async def _look_at_postgres(self) -> bool:
        database, started = self._services.database, time.monotonic()
        names = [model.name for model in self._services.catalog.all()][:PROBED_PIPELINES]
        self._postgres_ms = None
        well = await database.answers(names)
        if well:
            self._postgres_ms = (time.monotonic() - started) * 1000
        return well and database.guard.state == "closed"

    async def _look_at_redis(self) -> bool:
        client, cache, started = self._services.redis, self._services.cache, time.monotonic()
        if client is None:
            return True
        self._redis_ms = None
        try:
            await self._services.guards.redis.alook(client.ping)
        except (redis.exceptions.RedisError, BreakerOpen, OSError) as error:
            cache.note(error)
            return False
        cache.redis_error, self._redis_ms = "", (time.monotonic() - started) * 1000
        return True

    def health(self) -> tuple[int, dict[str, Any]]:
        """Status code and body of /health.

        Postgres is required: without it only what was asked before is answered, marked stale. Redis is not.
        """
        services, guards = self._services, self._services.guards
        database, cache = services.database, services.cache
        silent = database.error or ("" if database.seen else "no answer yet")
        found = [Dependency("postgres", not silent, True, silent, guards.database.state, self._postgres_ms)]
        if services.redis is not None:
            found.append(
                Dependency("redis", not cache.redis_error, False, cache.redis_error, guards.redis.state, self._redis_ms)
            )
        extra: dict[str, Any] = {"pipelines": [model.name for model in services.catalog.all()]}
        if faults := services.catalog.faults:
            extra["config_faults"] = faults
        return report("api", found, extra)

    def ready(self) -> bool:
        """Whether requests may come: also while Postgres is away, for what was asked before is answered still."""
        return self._services.database.seen and not self.stopping

    def alive(self) -> bool:
        """Whether the event loop turns and the looks go on; that this is asked and answered says the most of it."""
        return bool(self._tasks) and not any(task.done() for task in self._tasks)
