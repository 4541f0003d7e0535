"""The services that all requests of a process share. They are created once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import redis.asyncio
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from tidemill_api.cache import AnswerCache
from tidemill_api.catalog import Catalog
from tidemill_api.database import Database, failed, retryable
from tidemill_api.live.upstream import Upstreams
from tidemill_api.query.answers import Answers
from tidemill_chassis.auth import Authenticator
from tidemill_chassis.pipelines import PipelineDirectory
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
    upstreams: Upstreams

    async def close(self) -> None:
        """Stop all background work and close all connections."""
        await self.upstreams.stop()
        await self.cache.close()
        await self.database.close()
        if self.redis is not None:
            await self.redis.aclose()


def make_services(settings: WorkloadSettings, environ: Mapping[str, str]) -> Services:
    """Create the services of a process, without connecting to servers.

    Args:
        settings: the addresses of servers, and the directories of configs and secrets.
        environ: the environment, which can override resilience settings.

    Raises:
        ConfigError: the resilience settings are wrong.
    """
    resilience = ResilienceConfig.load(settings.resilience_file, environ)
    guards = resilience.guards(is_failure={"database": failed}, is_retryable={"database": retryable})
    fallbacks = resilience.fallbacks
    catalog = Catalog(PipelineDirectory(settings.config_dir), settings.pipeline)
    database = Database(settings, guards.database)
    client = _redis(settings, resilience.timeouts.redis_seconds) if settings.redis_url else None
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
        upstreams=Upstreams(catalog, database, client, guards.redis),
    )


def _redis(settings: WorkloadSettings, timeout_seconds: float) -> redis.asyncio.Redis:
    # There is one immediate retry, because a kept connection may have broken long ago. The guard makes all others.
    return redis.asyncio.Redis.from_url(
        settings.redis_url,
        **settings.redis_tls,
        socket_timeout=timeout_seconds,
        socket_connect_timeout=timeout_seconds,
        retry=Retry(NoBackoff(), 1),
        max_connections=MAX_REDIS_CONNECTIONS,
    )
