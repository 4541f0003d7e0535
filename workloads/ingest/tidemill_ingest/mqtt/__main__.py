"""Runs the bridge of one pipeline: `python -m tidemill_ingest.mqtt`. The variables TIDEMILL_… configure it."""

from __future__ import annotations

import logging
import os
import signal
import sys

from tidemill_chassis.resilience.config import ResilienceConfig
from tidemill_chassis.status_server import StatusServer
from tidemill_chassis.web.hosts import Hosts
from tidemill_contract.runtime import WorkloadSettings
from tidemill_ingest.kafka import producers
from tidemill_ingest.mqtt.bridge import Bridge
from tidemill_ingest.mqtt.outlet import Outlet

log = logging.getLogger("tidemill_ingest.mqtt")


def main() -> int:
    """Run the bridge and return the exit code."""
    settings = WorkloadSettings.from_env()
    logging.basicConfig(
        level=settings.log_level, stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    config = settings.load_pipeline(settings.pipeline)
    spec = config.spec.source.mqtt
    if spec is None:
        print(f"{config.name} has no spec.source.mqtt: there is nothing to do", file=sys.stderr)
        return 2
    guard = ResilienceConfig.load(settings.resilience_file, os.environ).guards().kafka_producer
    plain = producers.config(settings, guard, guard.timeout_seconds)
    outlet = Outlet(config.events_topic, producers.sure(plain, guard.timeout_seconds))
    bridge = Bridge(config, spec, outlet, settings.mqtt_dir)
    hosts = Hosts.parse(settings.allowed_hosts)
    server = StatusServer(settings.host, settings.port, bridge.health, bridge.ready, bridge.live, hosts=hosts)
    server.start()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: bridge.stop())
    log.info("bridge of %s on port %d", settings.pipeline, server.port)
    bridge.run()
    server.stop()
    return 0


if __name__ == "__main__":
    sys.exit(main())
