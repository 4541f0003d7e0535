"""Runs the ingest of a namespace: `python -m tidemill_ingest`. The variables TIDEMILL_… configure it."""

from __future__ import annotations

import logging
import os
import signal
import sys

import uvicorn

from tidemill_chassis.resilience.config import ResilienceConfig
from tidemill_chassis.service import log_to_stderr
from tidemill_chassis.web.limits import HttpLimits, bounded
from tidemill_chassis.web.server import HttpServer
from tidemill_contract.runtime import WorkloadSettings
from tidemill_ingest.app import Ingest
from tidemill_ingest.quota import Limits

log = logging.getLogger("tidemill_ingest")

GRACE_SECONDS = 5
"""The time for running requests after SIGTERM. Together with the flush, this is shorter than the time that the local
runtime grants."""


def main() -> int:
    """Run ingest and return the exit code."""
    try:
        settings = WorkloadSettings.from_env()
        resilience = ResilienceConfig.load(settings.resilience_file, os.environ)
        ingest = Ingest(settings, resilience, Limits.from_env())
        http = bounded(HttpLimits.from_env())
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
    # At a signal, uvicorn stops cleanly, then restores these handlers and raises the signal again. The handlers do
    # nothing, so the process ends normally and is not killed by the signal.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    log.info("ingest of %s on port %d", settings.namespace, settings.port)
    server = HttpServer(config, settings, ingest.status)
    server.run()
    return 0 if server.started else 1


if __name__ == "__main__":
    sys.exit(main())
