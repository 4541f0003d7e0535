"""Create the actuators for the platform's Kafka and Kafka Connect, in a cluster or on a laptop."""

from __future__ import annotations

from tidemill_operator.actuators.connect.client import ConnectClient
from tidemill_operator.actuators.connect.connectors import KafkaConnect
from tidemill_operator.actuators.kafka.topics import KafkaTopics
from tidemill_operator.settings import Platform


def topics_actuator(platform: Platform) -> KafkaTopics:
    """Return the actuator for topics in the platform's own Kafka."""
    return KafkaTopics(
        platform.kafka_brokers,
        config=platform.kafka_config,
        throttle_bytes=platform.replication_throttle,
        offsets_replicas=platform.offsets_replication,
    )


def connectors_actuator(platform: Platform) -> KafkaConnect | None:
    """Return the actuator of connectors, or None if the platform names no Kafka Connect."""
    return KafkaConnect(ConnectClient(platform.connect_url)) if platform.connect_url else None
