"""Clients of Redis, as all services make them."""

from __future__ import annotations

from typing import Any

import redis
import redis.asyncio
import redis.asyncio.retry
import redis.retry
from redis.backoff import NoBackoff

from tidemill_contract.runtime import WorkloadSettings


def sync_client(settings: WorkloadSettings, timeout_seconds: float) -> redis.Redis:
    """Return a client that is not connected yet.

    Args:
        settings: the address, and the settings of TLS.
        timeout_seconds: the longest time for a connection, and for an answer.
    """
    return redis.Redis.from_url(settings.redis_url, **_options(settings, timeout_seconds, redis.retry.Retry))


def async_client(settings: WorkloadSettings, timeout_seconds: float, *, max_connections: int) -> redis.asyncio.Redis:
    """Return a client that is not connected yet.

    Args:
        settings: the address, and the settings of TLS.
        timeout_seconds: the longest time for a connection, and for an answer.
        max_connections: the largest number of connections at once.
    """
    options = _options(settings, timeout_seconds, redis.asyncio.retry.Retry)
    return redis.asyncio.Redis.from_url(settings.redis_url, max_connections=max_connections, **options)


def _options(settings: WorkloadSettings, timeout_seconds: float, retry: Any) -> dict[str, Any]:
    return {
        **settings.redis_tls,
        "socket_timeout": timeout_seconds,
        "socket_connect_timeout": timeout_seconds,
        # A pooled connection may have died unnoticed, so a lost connection is retried once, at once. A timeout is not:
        # a server that hangs would cost the timeout twice. All other retries are the guard's.
        "retry": retry(NoBackoff(), 1, supported_errors=(redis.ConnectionError,)),
    }
