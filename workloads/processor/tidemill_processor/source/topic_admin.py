"""Asks Kafka for the ids, the partitions and the ends of topics with the admin client."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import wait
from typing import Any

from confluent_kafka import KafkaError, KafkaException, TopicCollection, TopicPartition
from confluent_kafka.admin import AdminClient, OffsetSpec

from tidemill_chassis.kafka_clients import FAST_RECONNECT
from tidemill_processor.source.clusters import REQUEST_SECONDS
from tidemill_processor.source.slots import MISSING_TOPIC_ERRORS, TopicAndPartition


class TopicAdmin:
    """The Kafka admin client of one process."""

    def __init__(self, connection: Mapping[str, Any]) -> None:
        self.connect(connection)

    def connect(self, connection: Mapping[str, Any]) -> None:
        """Use a new admin client with these settings."""
        self._connection = dict(connection)
        self._admin = AdminClient({**FAST_RECONNECT, **connection})

    def describe(self, topics: Sequence[str], *, multi_topic: bool) -> dict[str, tuple[str, int]]:
        """Return each topic's id and number of partitions.

        Raises:
            KafkaException: Kafka is not reachable, or `multi_topic` is false and a topic does not exist.
        """
        if not topics:
            return {}
        admin = self._admin
        described = admin.describe_topics(TopicCollection(list(topics)), request_timeout=REQUEST_SECONDS)
        descriptions = {}
        for name, future in described.items():
            try:
                topic = result_of(future)
            except KafkaException as error:
                if multi_topic and error.args[0].code() in MISSING_TOPIC_ERRORS:
                    continue
                raise
            descriptions[name] = str(topic.topic_id), len(topic.partitions)
        return descriptions

    def end_offsets(self, slots: Mapping[TopicAndPartition, int]) -> dict[int, int]:
        """Return the end offsets of partitions, by slot. `slots` maps partitions to slots.

        Raises:
            KafkaException: Kafka reports no end offset, or is not reachable.
        """
        if not slots:
            result_of(self._admin.describe_cluster(request_timeout=REQUEST_SECONDS))
            return {}
        requests = {TopicPartition(*partition): OffsetSpec.latest() for partition in slots}
        futures = self._admin.list_offsets(requests, request_timeout=REQUEST_SECONDS)
        ends = _known_ends(futures)
        if len(ends) < len(futures):
            # Create a new client. The old client would send requests to former partition leaders for minutes.
            self.connect(self._connection)
        if not ends:
            result_of(next(iter(futures.values())), 0.0)
            raise KafkaException(KafkaError(KafkaError._TIMED_OUT, "no leader reported the end of its partition"))
        return {slots[partition]: end for partition, end in ends.items()}


def describe_topic(admin: AdminClient, topic: str) -> tuple[str, int]:
    """Return the id of a topic and its number of partitions.

    Raises:
        KafkaException: the topic does not exist, or Kafka does not answer in time.
    """
    described = admin.describe_topics(TopicCollection([topic]), request_timeout=REQUEST_SECONDS)
    description = result_of(described[topic])
    return str(description.topic_id), len(description.partitions)


def _known_ends(futures: Mapping[TopicPartition, Any]) -> dict[TopicAndPartition, int]:
    done, _ = wait(futures.values(), REQUEST_SECONDS + 1)
    answered = {at: future for at, future in futures.items() if future in done and not future.exception()}
    # librdkafka returns a negative offset if a leader does not answer in time.
    return {(at.topic, at.partition): end for at, future in answered.items() if (end := future.result().offset) >= 0}


def result_of(future: Any, seconds: float = REQUEST_SECONDS + 1) -> Any:
    """Return the result of an admin client request.

    Raises:
        KafkaException: the request failed.
    """
    try:
        return future.result(timeout=seconds)
    except TimeoutError:
        raise KafkaException(KafkaError(KafkaError._TIMED_OUT)) from None
