"""Run the ingest service of a namespace with `python -m tidemill_ingest`."""

from __future__ import annotations

import logging
import os
import signal
import sys

import uvicorn

from tidemill_chassis.resilience.config import ResilienceConfig
from tidemill_chassis.service import log_to_stderr
from tidemill_chassis.web.limits import HttpLimits, bounded_protocol
from tidemill_chassis.web.server import HttpServer
from tidemill_contract.runtime import WorkloadSettings
from tidemill_ingest.app import Ingest
from tidemill_ingest.quota import Limits

log = logging.getLogger("tidemill_ingest")

GRACE_SECONDS = 5
"""How long (seconds) running requests may take after SIGTERM."""


def main() -> int:
    """Run ingest and return the exit code."""
    try:
        settings = WorkloadSettings.from_env()
        resilience = ResilienceConfig.load(settings.resilience_file, os.environ)
        ingest = Ingest(settings, resilience, Limits.from_env())
        http = bounded_protocol(HttpLimits.from_env())
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    log_to_stderr(settings)
    config = uvicorn.Config(
        ingest.app(),
        host=settings.host,
        port=settings.port,
        http=http,
        loop="uvloop",
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=75,
        timeout_graceful_shutdown=GRACE_SECONDS,
    )
    # After a clean stop, uvicorn raises the received signal (SIGTERM or SIGINT) again. Ignore the repeated signal, so
    # that `main` returns its exit code.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    log.info("ingest of %s on port %d", settings.namespace, settings.port)
    server = HttpServer(config, settings, ingest.status)
    server.run()
    return 0 if server.started else 1


if __name__ == "__main__":
    sys.exit(main())
