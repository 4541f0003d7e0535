"""Prometheus metrics of the bridge."""

from __future__ import annotations

from prometheus_client import Counter, Gauge

RECEIVED = Counter("tidemill_mqtt_messages_received_total", "Messages received, including repeated ones.")
ACKNOWLEDGED = Counter(
    "tidemill_mqtt_messages_acknowledged_total",
    "Messages that are in Kafka. With QoS 1, they are then acknowledged to the broker.",
)
SKIPPED = Counter(
    "tidemill_mqtt_messages_skipped_total", "Messages of topics that the spec no longer names. They are not written."
)
IN_FLIGHT = Gauge("tidemill_mqtt_in_flight_messages", "Messages received that are not in Kafka yet.")
CONNECTED = Gauge("tidemill_mqtt_connected", "1 if the bridge is connected and subscribed, else 0.")
