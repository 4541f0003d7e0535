"""Settings of all Kafka clients."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from tidemill_contract.files import read_text
from tidemill_contract.runtime import WorkloadSettings

RECONNECTING: Mapping[str, Any] = {
    # While a broker's packets are lost, a new connection gets no answer, and the client waits until a timeout. With
    # librdkafka's defaults for the first two settings (10 s and 30 s), a client that connects just before the broker
    # recovers would keep waiting long after the recovery.
    "api.version.request.timeout.ms": 5000,
    "socket.connection.setup.timeout.ms": 10_000,
    "reconnect.backoff.max.ms": 2000,
}
"""Settings of librdkafka that make a client use a broker again within seconds of the broker's recovery."""


def own_connection(settings: WorkloadSettings) -> dict[str, Any]:
    """Return the client settings for the platform's own Kafka.

    Raises:
        OSError, ValueError: the file with client settings cannot be read.
    """
    extra = json.loads(read_text(settings.kafka_config)) if settings.kafka_config else {}
    return {"bootstrap.servers": settings.kafka_brokers, **extra}
