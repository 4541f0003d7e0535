"""Asks Kafka for the ids, the partitions and the ends of topics with the admin client."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import wait
from typing import Any

from confluent_kafka import KafkaError, KafkaException, TopicCollection, TopicPartition
from confluent_kafka.admin import AdminClient, OffsetSpec

from tidemill_chassis.kafka_clients import RECONNECTING
from tidemill_processor.source.clusters import ASK_SECONDS
from tidemill_processor.source.slots import GONE, Place


class TopicAdmin:
    """The Kafka admin client of one process."""

    def __init__(self, connection: Mapping[str, Any]) -> None:
        self.connect(connection)

    def connect(self, connection: Mapping[str, Any]) -> None:
        """Use a new admin client with these settings."""
        self._connection = dict(connection)
        self._admin = AdminClient({**RECONNECTING, **connection})

    def describe(self, topics: Sequence[str], *, several: bool) -> dict[str, tuple[str, int]]:
        """Return each topic's id and number of partitions.

        Raises:
            KafkaException: Kafka is not reachable, or `several` is false and a topic does not exist.
        """
        if not topics:
            return {}
        admin = self._admin
        described = admin.describe_topics(TopicCollection(list(topics)), request_timeout=ASK_SECONDS)
        descriptions = {}
        for name, future in described.items():
            try:
                topic = result_of(future)
            except KafkaException as error:
                if several and error.args[0].code() in GONE:
                    continue
                raise
            descriptions[name] = str(topic.topic_id), len(topic.partitions)
        return descriptions

    def ends(self, places: Mapping[Place, int]) -> dict[int, int]:
        """Return the end offsets of partitions, by slot. `places` maps partitions to slots.

        Raises:
            KafkaException: Kafka reports no end offset, or is not reachable.
        """
        if not places:
            result_of(self._admin.describe_cluster(request_timeout=ASK_SECONDS))
            return {}
        asked = {TopicPartition(*place): OffsetSpec.latest() for place in places}
        futures = self._admin.list_offsets(asked, request_timeout=ASK_SECONDS)
        found_ends = _known_ends(futures)
        if len(found_ends) < len(futures):
            # Create a new client. The old client would send requests to former partition leaders for minutes.
            self.connect(self._connection)
        if not found_ends:
            result_of(next(iter(futures.values())), 0.0)
            raise KafkaException(KafkaError(KafkaError._TIMED_OUT, "no leader reported the end of its partition"))
        return {places[place]: end for place, end in found_ends.items()}


def describe_topic(admin: AdminClient, topic: str) -> tuple[str, int]:
    """Return the id of a topic and its number of partitions.

    Raises:
        KafkaException: the topic does not exist, or Kafka does not answer in time.
    """
    described = admin.describe_topics(TopicCollection([topic]), request_timeout=ASK_SECONDS)
    description = result_of(described[topic])
    return str(description.topic_id), len(description.partitions)


def _known_ends(futures: Mapping[TopicPartition, Any]) -> dict[Place, int]:
    done, _ = wait(futures.values(), ASK_SECONDS + 1)
    answered = {at: future for at, future in futures.items() if future in done and not future.exception()}
    # librdkafka returns a negative offset if a leader does not answer in time.
    return {(at.topic, at.partition): end for at, future in answered.items() if (end := future.result().offset) >= 0}


def result_of(future: Any, seconds: float = ASK_SECONDS + 1) -> Any:
    """Return the result of an admin client request.

    Raises:
        KafkaException: the request failed.
    """
    try:
        return future.result(timeout=seconds)
    except TimeoutError:
        raise KafkaException(KafkaError(KafkaError._TIMED_OUT)) from None
