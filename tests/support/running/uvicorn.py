"""A web server on a free port, in the event loop of the test."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import uvicorn

from waiting import eventually_async


@asynccontextmanager
async def uvicorn_up(app: Any, **options: Any) -> AsyncIterator[tuple[uvicorn.Server, int]]:
    """Serve an application during the block, and yield the server and its port. `options` are those of uvicorn."""
    fixed: dict[str, Any] = {
        "host": "127.0.0.1",
        "port": 0,
        "lifespan": "off",
        "log_config": None,
        "timeout_graceful_shutdown": 1,
    }
    server = uvicorn.Server(uvicorn.Config(app, **fixed, **options))
    serving = asyncio.create_task(server.serve())
    await eventually_async(lambda: server.started or serving.done(), what="the server has started")
    try:
        yield server, server.servers[0].sockets[0].getsockname()[1]
    finally:
        server.should_exit = True
        await serving
