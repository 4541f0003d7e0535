"""Asks Kafka about the topic that is read: its id, its partitions and their end offsets."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from concurrent.futures import wait
from typing import Any

from confluent_kafka import KafkaError, KafkaException, TopicCollection, TopicPartition
from confluent_kafka.admin import AdminClient, OffsetSpec

from tidemill_chassis.kafka_clients import RECONNECTING
from tidemill_processor.source.clusters import ASK_SECONDS


class TopicAdmin:
    """The admin client for one topic. Any thread may call the methods.

    Args:
        name: the name of the topic.
        connection: client settings.
    """

    def __init__(self, name: str, connection: Mapping[str, Any]) -> None:
        self.name = name
        self.connect(connection)

    def connect(self, connection: Mapping[str, Any]) -> None:
        """Use a new admin client with these settings."""
        self._connection = dict(connection)
        self._admin = AdminClient({**RECONNECTING, **connection})

    def ends(self, partitions: Iterable[int]) -> dict[int, int]:
        """Return the end offsets of partitions. Ends that a broker does not report in time are missing in the result.

        Raises:
            KafkaException: no end is known.
        """
        asked = {TopicPartition(self.name, number): OffsetSpec.latest() for number in partitions}
        futures = self._admin.list_offsets(asked, request_timeout=ASK_SECONDS)
        ends = _known_ends(futures)
        if len(ends) < len(futures):
            # The client is replaced, because the leaders may have changed and it would use outdated metadata for
            # minutes.
            self.connect(self._connection)
        if not ends:
            _result(next(iter(futures.values())), 0.0)
            raise KafkaException(KafkaError(KafkaError._TIMED_OUT, "no leader reported the end of its partition"))
        return ends

    def describe(self) -> tuple[str, int]:
        """Return the topic's id, which changes when the topic is created again, and its number of partitions.

        Raises:
            KafkaException: the topic does not exist, or Kafka is not reachable.
        """
        admin = self._admin  # a local reference keeps the client alive if `ends` replaces it meanwhile
        described = admin.describe_topics(TopicCollection([self.name]), request_timeout=ASK_SECONDS)
        topic = _result(described[self.name])
        return str(topic.topic_id), len(topic.partitions)


def _known_ends(futures: Mapping[TopicPartition, Any]) -> dict[int, int]:
    """Wait for the answers of `list_offsets`, and return the ends that are reported, by partition."""
    done, _ = wait(futures.values(), ASK_SECONDS + 1)
    answers = {tp.partition: future for tp, future in futures.items() if future in done and not future.exception()}
    # Negative offsets are ignored, because librdkafka returns a negative offset if a leader does not answer in time.
    return {partition: end for partition, future in answers.items() if (end := future.result().offset) >= 0}


def _result(future: Any, seconds: float = ASK_SECONDS + 1) -> Any:
    """Return the result of a request of the admin client.

    Raises:
        KafkaException: the request failed, or there was no answer in time.
    """
    try:
        return future.result(timeout=seconds)
    except TimeoutError:
        raise KafkaException(KafkaError(KafkaError._TIMED_OUT)) from None
