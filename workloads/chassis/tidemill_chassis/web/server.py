"""The web server of ingest and API: uvicorn, with a separate internal port for metrics and probes."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import uvicorn

from tidemill_chassis.status_server import StatusServer
from tidemill_chassis.web.hosts import Hosts
from tidemill_contract.runtime import WorkloadSettings

T = TypeVar("T")
CALLBACK_TIMEOUT_SECONDS = 4.0


@dataclass(frozen=True)
class StatusCallbacks:
    """Callbacks that return the state of a service: /health, readiness and liveness."""

    health: Callable[[], tuple[int, dict[str, Any]]]
    ready: Callable[[], bool]
    live: Callable[[], bool]


class HttpServer(uvicorn.Server):
    """A uvicorn server that also starts a status server, if `status_port` is set."""

    def __init__(self, config: uvicorn.Config, settings: WorkloadSettings, status: StatusCallbacks) -> None:
        super().__init__(config)
        self._settings, self._status = settings, status
        self._status_server: StatusServer | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start the server. The status port opens last, so that the service is not ready too early."""
        await super().startup(sockets)
        if self._settings.status_port:
            loop, status = asyncio.get_running_loop(), self._status
            self._status_server = StatusServer(
                self._settings.host,
                self._settings.status_port,
                _threadsafe(loop, status.health),
                _threadsafe(loop, status.ready),
                _threadsafe(loop, status.live),
                hosts=Hosts.parse(self._settings.allowed_hosts),
            )
            self._status_server.start()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop the server. The status port closes last, so that metrics are available until the end."""
        await super().shutdown(sockets)
        if self._status_server is not None:
            await asyncio.to_thread(self._status_server.stop)


def _threadsafe(loop: asyncio.AbstractEventLoop, callback: Callable[[], T]) -> Callable[[], T]:
    async def call_back() -> T:
        return callback()

    return lambda: asyncio.run_coroutine_threadsafe(call_back(), loop).result(CALLBACK_TIMEOUT_SECONDS)
