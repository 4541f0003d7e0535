"""Run the MQTT bridge of one pipeline with `python -m tidemill_ingest.mqtt`."""

from __future__ import annotations

import logging
import os
import sys

from tidemill_chassis.resilience.config import ResilienceConfig
from tidemill_chassis.service import log_to_stderr, run_service
from tidemill_contract.runtime import WorkloadSettings
from tidemill_ingest.kafka import producers
from tidemill_ingest.mqtt.bridge import Bridge
from tidemill_ingest.mqtt.kafka_writer import KafkaWriter

log = logging.getLogger("tidemill_ingest.mqtt")


def main() -> int:
    """Run the bridge and return the exit code."""
    settings = WorkloadSettings.from_env()
    log_to_stderr(settings)
    config = settings.load_pipeline(settings.pipeline)
    spec = config.spec.source.mqtt
    if spec is None:
        print(f"{config.name} has no spec.source.mqtt: there is nothing to do", file=sys.stderr)
        return 2
    guard = ResilienceConfig.load(settings.resilience_file, os.environ).guards().kafka_producer
    producer_config = producers.config(settings, guard, guard.timeout_seconds)
    kafka_writer = KafkaWriter(config.events_topic, producers.persistent_config(producer_config, guard.timeout_seconds))
    bridge = Bridge(config, spec, kafka_writer, settings.mqtt_dir)
    run_service(bridge, settings, log=log, description=f"bridge of {settings.pipeline}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
