"""Run the API: `python -m tidemill_api`, set by TIDEMILL_… variables."""

from __future__ import annotations

import logging
import os
import signal
import sys

import uvicorn

from tidemill_api.app import create_app
from tidemill_api.services import make_services
from tidemill_contract.resilience import ConfigError
from tidemill_contract.runtime import WorkloadSettings

log = logging.getLogger("tidemill_api")

DEFAULT_PORT = 8081
GRACE_SECONDS = 10
"""How long requests under way may take to end after SIGTERM; a cluster kills after 30 s."""


def main() -> int:
    """Entry point; the exit code."""
    settings = WorkloadSettings.from_env()
    if "port" not in settings.model_fields_set:
        settings = settings.model_copy(update={"port": DEFAULT_PORT})
    logging.basicConfig(
        level=settings.log_level, stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    try:
        services = make_services(settings, os.environ)
    except ConfigError as error:
        log.error("%s", error)
        return 2
    origins = [
        origin.strip() for origin in os.environ.get("TIDEMILL_API_CORS_ORIGINS", "").split(",") if origin.strip()
    ]
    config = uvicorn.Config(
        create_app(services, cors_origins=origins),
        host=settings.host,
        port=settings.port,
        loop="uvloop",
        http="httptools",
        lifespan="on",
        log_config=None,
        log_level=settings.log_level.lower(),
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=GRACE_SECONDS,
    )
    # Uvicorn raises a signal that ended it once more, for the handlers from before: an end that was asked for is no
    # failure.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    server = uvicorn.Server(config)
    log.info("serving %s on %s:%d", settings.pipeline or "all pipelines", settings.host, settings.port)
    server.run()
    return 0 if server.started else 1


if __name__ == "__main__":
    sys.exit(main())
