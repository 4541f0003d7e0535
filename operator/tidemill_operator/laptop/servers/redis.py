"""Starts Redis on loopback, without storage on disk, because its data (caches, live changes) may be lost."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

import redis

from tidemill_contract import tls
from tidemill_operator.laptop.servers.errors import ServerError
from tidemill_operator.laptop.servers.server import Progress, Server
from tidemill_operator.processes.child import Command
from tidemill_operator.processes.ports import Ports


def redis_server(
    data_dir: Path, ports: Ports, *, environ: Mapping[str, str] = os.environ, on_progress: Progress | None = None
) -> Server:
    """Return a Redis server, ready to be started.

    Raises:
        ServerError: `redis-server` is not on the PATH.
    """
    program = shutil.which("redis-server", path=environ.get("PATH"))
    if program is None:
        raise ServerError(
            "redis-server is not on the PATH: install redis-server (apt) or redis (brew), or set TIDEMILL_REDIS_URL"
        )
    folder = data_dir / "redis"
    folder.mkdir(parents=True, exist_ok=True)
    port = ports.get("redis")
    settings = {
        "bind": "127.0.0.1",
        "port": str(port),
        "dir": str(folder),
        "save": "",
        "appendonly": "no",
        "maxmemory": "256mb",
        "maxmemory-policy": "volatile-lru",
    }
    arguments = [program, *(part for key, value in settings.items() for part in (f"--{key}", value))]
    return Server(
        Command("redis", arguments, environment=environ),
        port=port,
        data_dir=data_dir,
        ready=lambda: answers(f"redis://127.0.0.1:{port}/0"),
        on_progress=on_progress,
        ready_seconds=30.0,
    )


def answers(url: str) -> bool:
    """Return whether a Redis answers at the URL."""
    return not connection_error(url)


def connection_error(url: str, ca: str = "") -> str:
    """Return why no Redis answers at the URL, or an empty text if Redis answers.

    Raises:
        ValueError: a file of certificate authorities is given, but the URL does not use TLS.
    """
    options = tls.redis_options(url, ca)
    client = redis.Redis.from_url(url, socket_connect_timeout=1.0, socket_timeout=1.0, **options)
    try:
        client.ping()
        return ""
    except redis.RedisError as error:
        return str(error) or type(error).__name__
    finally:
        client.close()
