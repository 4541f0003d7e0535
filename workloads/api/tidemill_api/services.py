"""The services that all requests of a process share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import redis.asyncio

from tidemill_api.cache import AnswerCache
from tidemill_api.catalog import Catalog
from tidemill_api.database import Database
from tidemill_api.database_errors import is_failure, is_retryable
from tidemill_api.live.broadcaster import Broadcasters
from tidemill_api.query.answers import Answers
from tidemill_chassis.auth import Authenticator
from tidemill_chassis.pipelines import PipelineDirectory
from tidemill_chassis.redis_clients import async_client
from tidemill_chassis.resilience.config import Guards, ResilienceConfig
from tidemill_contract.runtime import WorkloadSettings

MAX_REDIS_CONNECTIONS = 1_000


@dataclass(frozen=True)
class Services:
    """The services that requests, live connections and background tasks share."""

    settings: WorkloadSettings
    resilience: ResilienceConfig
    guards: Guards
    authenticator: Authenticator
    catalog: Catalog
    database: Database
    redis: redis.asyncio.Redis | None
    cache: AnswerCache
    answers: Answers
    broadcasters: Broadcasters

    async def close(self) -> None:
        """Stop all background work and close all connections."""
        await self.broadcasters.stop()
        await self.cache.close()
        await self.database.close()
        if self.redis is not None:
            await self.redis.aclose()


def make_services(settings: WorkloadSettings, environ: Mapping[str, str]) -> Services:
    """Create the services of a process, without connecting to servers.

    Raises:
        ConfigError: the resilience settings are wrong.
    """
    resilience = ResilienceConfig.load(settings.resilience_file, environ)
    guards = resilience.guards(is_failure={"database": is_failure}, is_retryable={"database": is_retryable})
    fallbacks = resilience.fallbacks
    catalog = Catalog(PipelineDirectory(settings.config_dir), settings.pipeline)
    database = Database(settings, guards.database)
    client = None
    if settings.redis_url:
        client = async_client(settings, resilience.timeouts.redis_seconds, max_connections=MAX_REDIS_CONNECTIONS)
    cache = AnswerCache(
        client,
        guards.redis,
        max_entries=fallbacks.memory_cache.max_entries if fallbacks.memory_cache.enabled else 0,
        stale_seconds=fallbacks.stale_results.max_age_seconds if fallbacks.stale_results.enabled else 0.0,
    )
    return Services(
        settings=settings,
        resilience=resilience,
        guards=guards,
        authenticator=Authenticator(settings),
        catalog=catalog,
        database=database,
        redis=client,
        cache=cache,
        answers=Answers(database, cache),
        broadcasters=Broadcasters(catalog, database, client, guards.redis),
    )
