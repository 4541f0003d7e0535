"""Runs a service that takes no requests, with a status server, signal handlers and a log."""

from __future__ import annotations

import logging
import signal
import sys
from typing import Any, Protocol

from tidemill_chassis.status_server import StatusServer
from tidemill_chassis.web.hosts import Hosts
from tidemill_contract.runtime import WorkloadSettings


class Service(Protocol):
    """The methods that `run_service` needs. All methods except `run` may be called from any thread."""

    def run(self) -> None:
        """Run the service until `stop` is called."""

    def stop(self) -> None:
        """Let `run` return soon. Signal handlers call this method, so it must not block."""

    def health(self) -> tuple[int, dict[str, Any]]:
        """Return the status code and the body of /health."""

    def ready(self) -> bool:
        """Return whether the service was healthy at least once and can do its work now."""

    def live(self) -> bool:
        """Return False if the process must be restarted."""


def log_to_stderr(settings: WorkloadSettings) -> None:
    """Log to standard error, at the level in the settings."""
    logging.basicConfig(
        level=settings.log_level, stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )


def run_service(service: Service, settings: WorkloadSettings, *, log: logging.Logger, description: str) -> None:
    """Run a service and its status server until SIGTERM or SIGINT."""
    hosts = Hosts.parse(settings.allowed_hosts)
    server = StatusServer(settings.host, settings.port, service.health, service.ready, service.live, hosts=hosts)
    server.start()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: service.stop())
    log.info("%s on port %d", description, server.port)
    service.run()
    server.stop()
