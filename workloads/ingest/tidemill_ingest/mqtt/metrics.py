"""Prometheus metrics of the MQTT bridge."""

from __future__ import annotations

from prometheus_client import Counter, Gauge

RECEIVED = Counter("tidemill_mqtt_messages_received_total", "Messages received, including repeated messages.")
ACKNOWLEDGED = Counter(
    "tidemill_mqtt_messages_acknowledged_total",
    "Messages written to Kafka. Messages with QoS 1 are also acknowledged to the MQTT broker.",
)
SKIPPED = Counter(
    "tidemill_mqtt_messages_skipped_total",
    "Messages that are not written to Kafka, because the spec no longer names their topics.",
)
IN_FLIGHT = Gauge("tidemill_mqtt_in_flight_messages", "Messages received that are not in Kafka yet.")
CONNECTED = Gauge("tidemill_mqtt_connected", "1 if the bridge is connected and subscribed, else 0.")
