"""Settings of all Kafka clients."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from tidemill_contract.files import read_text
from tidemill_contract.runtime import WorkloadSettings

FAST_RECONNECT: Mapping[str, Any] = {
    # A client detects a frozen broker only by a timeout. Timeouts shorter than librdkafka's defaults let a client
    # reconnect soon after a broker recovers.
    "api.version.request.timeout.ms": 5000,
    "socket.connection.setup.timeout.ms": 10_000,
    "reconnect.backoff.max.ms": 2000,
}
"""Settings of librdkafka with which a client reconnects within seconds after a broker recovers."""


def platform_connection(settings: WorkloadSettings) -> dict[str, Any]:
    """Return the client settings for the platform's own Kafka.

    Raises:
        OSError, ValueError: the file with client settings cannot be read.
    """
    extra = json.loads(read_text(settings.kafka_config)) if settings.kafka_config else {}
    return {"bootstrap.servers": settings.kafka_brokers, **extra}
