"""Changes of topics on a real Kafka, which return after all brokers have applied the change.

Kafka acknowledges a change before every broker shows it. On a busy machine, brokers may need seconds, and a test that
reads at once would see the old state.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from confluent_kafka import KafkaException, TopicCollection
from confluent_kafka.admin import (
    AdminClient,
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
    NewPartitions,
    NewTopic,
    ResourceType,
)

from waiting import eventually

SECONDS = 60.0


class KafkaAdmin:
    """An administrator of a Kafka cluster. Each method waits until all brokers show its change.

    Args:
        brokers: the addresses of all brokers, separated by commas.
    """

    def __init__(self, brokers: str) -> None:
        self._brokers = [AdminClient({"bootstrap.servers": at, "log_level": 0}) for at in brokers.split(",")]

    def create(
        self, name: str, partitions: int = 1, replicas: int = 1, config: Mapping[str, str] | None = None
    ) -> None:
        """Create a topic."""
        topic = NewTopic(name, partitions, replicas, config=dict(config or {}))
        self._brokers[0].create_topics([topic])[name].result(SECONDS)
        self._until(lambda at: _partitions(at, name) == partitions, f"topic {name} exists")
        self._until(lambda at: _has(at, name, config or {}), f"topic {name} has its config")

    def grow(self, name: str, partitions: int) -> None:
        """Raise the number of a topic's partitions."""
        self._brokers[0].create_partitions([NewPartitions(name, partitions)])[name].result(SECONDS)
        self._until(lambda at: _partitions(at, name) == partitions, f"topic {name} has {partitions} partitions")

    def alter(self, name: str, config: Mapping[str, str]) -> None:
        """Set configs of a topic."""
        entries = [
            ConfigEntry(key, value, incremental_operation=AlterConfigOpType.SET) for key, value in config.items()
        ]
        resource = ConfigResource(ResourceType.TOPIC, name, incremental_configs=entries)
        for future in self._brokers[0].incremental_alter_configs([resource]).values():
            future.result(SECONDS)
        self._until(lambda at: _has(at, name, config), f"topic {name} has {dict(config)}")

    def delete(self, name: str) -> None:
        """Delete a topic."""
        self._brokers[0].delete_topics([name])[name].result(SECONDS)
        self._until(lambda at: _partitions(at, name) == 0, f"topic {name} is deleted")

    def _until(self, shows: Callable[[AdminClient], bool], what: str) -> None:
        eventually(lambda: all(shows(broker) for broker in self._brokers), what=what, seconds=SECONDS)


def _partitions(admin: AdminClient, name: str) -> int:
    """How many partitions a topic has; 0: it is not there."""
    try:
        described: Any = admin.describe_topics(TopicCollection([name]))[name].result(SECONDS)
    except KafkaException:
        return 0
    return len(described.partitions)


def _has(admin: AdminClient, name: str, config: Mapping[str, str]) -> bool:
    resource = ConfigResource(ResourceType.TOPIC, name)
    try:
        current = admin.describe_configs([resource])[resource].result(SECONDS)
    except KafkaException:
        return False
    return all(current[key].value == value for key, value in config.items())
