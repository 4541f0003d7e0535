"""Makes the Redis clients of all services."""

from __future__ import annotations

from typing import Any

import redis
import redis.asyncio
import redis.asyncio.retry
import redis.retry
from redis.backoff import NoBackoff

from tidemill_contract.runtime import WorkloadSettings


def sync_client(settings: WorkloadSettings, timeout_seconds: float) -> redis.Redis:
    """Return a Redis client for threads, which connects with its first command."""
    return redis.Redis.from_url(settings.redis_url, **_options(settings, timeout_seconds, redis.retry.Retry))


def async_client(settings: WorkloadSettings, timeout_seconds: float, *, max_connections: int) -> redis.asyncio.Redis:
    """Return a Redis client for asyncio, which connects with its first command."""
    options = _options(settings, timeout_seconds, redis.asyncio.retry.Retry)
    return redis.asyncio.Redis.from_url(settings.redis_url, max_connections=max_connections, **options)


def _options(settings: WorkloadSettings, timeout_seconds: float, retry: Any) -> dict[str, Any]:
    return {
        **settings.redis_tls,
        "socket_timeout": timeout_seconds,
        "socket_connect_timeout": timeout_seconds,
        # An idle connection in the pool may be broken. A command is therefore retried once on a new connection. All
        # other retries are made by `Guard`.
        "retry": retry(NoBackoff(), 1, supported_errors=(redis.ConnectionError,)),
    }
