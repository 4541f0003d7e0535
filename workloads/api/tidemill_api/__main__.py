"""Run the query API with `python -m tidemill_api`."""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys

import uvicorn

from tidemill_api.app import create_app
from tidemill_api.health_monitor import HealthMonitor
from tidemill_api.live.connection_limit import ConnectionLimit
from tidemill_api.live.slow_clients import LiveProtocol
from tidemill_api.services import Services, make_services
from tidemill_chassis.service import log_to_stderr
from tidemill_chassis.web.hosts import Hosts
from tidemill_chassis.web.limits import HttpLimits, bounded_protocol
from tidemill_chassis.web.server import HttpServer, StatusCallbacks
from tidemill_contract.runtime import WorkloadSettings

log = logging.getLogger("tidemill_api")

DEFAULT_PORT = 8081
GRACE_SECONDS = 10
"""Maximum time for running requests to finish after SIGTERM."""

MAX_CLIENT_MESSAGE_BYTES = 64 * 1024
"""Maximum size of a message from a WebSocket client. Clients send only an API key."""


class Server(HttpServer):
    """A uvicorn server that first disconnects WebSocket and SSE clients when it stops."""

    def __init__(self, config: uvicorn.Config, services: Services, health_monitor: HealthMonitor) -> None:
        super().__init__(
            config,
            services.settings,
            StatusCallbacks(health_monitor.health, health_monitor.ready, health_monitor.alive),
        )
        self._services = services

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Disconnect the WebSocket and SSE clients, and then stop the server."""
        await self._services.broadcasters.disconnect_all()
        await super().shutdown(sockets)


def _origins() -> list[str]:
    texts = os.environ.get("TIDEMILL_API_CORS_ORIGINS", "").split(",")
    return [text.strip() for text in texts if text.strip()]


def main() -> int:
    """Run the API and return the exit code."""
    settings = WorkloadSettings.from_env()
    if "port" not in settings.model_fields_set:
        settings = settings.model_copy(update={"port": DEFAULT_PORT})
    log_to_stderr(settings)
    try:
        services = make_services(settings, os.environ)
        hosts, limit = Hosts.parse(settings.allowed_hosts), ConnectionLimit.from_env()
        http = bounded_protocol(HttpLimits.from_env())
    except ValueError as error:
        log.error("%s", error)
        return 2
    monitor = HealthMonitor(services)
    app = create_app(services, cors_origins=_origins(), hosts=hosts, health_monitor=monitor, connection_limit=limit)
    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        loop="uvloop",
        http=http,
        ws=LiveProtocol,
        lifespan="on",
        log_config=None,
        log_level=settings.log_level.lower(),
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=GRACE_SECONDS,
        ws_max_size=MAX_CLIENT_MESSAGE_BYTES,
        ws_per_message_deflate=False,  # a message to all clients would be compressed once per client
    )
    # After a clean stop, uvicorn raises the received signal (SIGTERM or SIGINT) again. Ignore the repeated signal, so
    # that `main` returns its exit code.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    server = Server(config, services, monitor)
    log.info("serving %s on %s:%d", settings.pipeline or "all pipelines", settings.host, settings.port)
    server.run()
    return 0 if server.started else 1


if __name__ == "__main__":
    sys.exit(main())
