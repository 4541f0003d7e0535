"""Settings of all Kafka clients."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

RECONNECTING: Mapping[str, Any] = {
    # While a broker's packets are lost, new connections stay silent. With the defaults of 10 and 30 s, a client would
    # wait for the last connection long after the broker is back.
    "api.version.request.timeout.ms": 5000,
    "socket.connection.setup.timeout.ms": 10_000,
    "reconnect.backoff.max.ms": 2000,
}
"""Settings of librdkafka with which a client uses a broker again within seconds after the broker is back."""
