"""Read the newest records of a topic without joining a consumer group."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

from tidemill_operator.actuators.kafka.session import LOGIN_REFUSED_CODES
from tidemill_operator.errors import Reason, TidemillError

_CONSUMER_CONFIG = {
    "group.id": "tidemill-init",
    "enable.auto.commit": False,
    "enable.partition.eof": True,
    "auto.offset.reset": "earliest",
    "log_level": 0,
}
_ANSWER_SECONDS = 10.0
_SETTINGS_FILE = "the file that TIDEMILL_KAFKA_CONFIG names"


def newest_values(
    brokers: str, topic: str, *, limit: int, seconds: float = 30.0, config: Mapping[str, Any] | None = None
) -> list[bytes]:
    """Return the values of the newest records of a topic, in the order of arrival.

    At most `limit` values are returned. Tombstones (records without a value) are left out.

    Raises:
        TidemillError: the topic does not exist, or Kafka does not answer.
    """
    refusals: list[str] = []
    callbacks = {
        "error_cb": lambda error: refusals.append(error.str()) if error.code() in LOGIN_REFUSED_CODES else None
    }
    try:
        consumer = Consumer({"bootstrap.servers": brokers, **_CONSUMER_CONFIG, **callbacks, **(config or {})})
    except KafkaException as error:
        message = f"a setting of Kafka's client is wrong: {error.args[0].str()}"
        raise TidemillError(Reason.INVALID_SPEC, message, f"correct the setting in {_SETTINGS_FILE}") from None
    try:
        starts = _start_offsets(consumer, topic, limit)
        consumer.assign(starts)
        return _read(consumer, len(starts), limit, time.monotonic() + seconds)
    except KafkaException as error:
        consumer.poll(0)  # calls error_cb with queued errors
        message = f"topic {topic} on {brokers} cannot be read: {(refusals or [error.args[0].str()])[-1]}"
        remedy = f"check the address, the topic, and the settings for TLS and SASL in {_SETTINGS_FILE}"
        raise TidemillError(Reason.UNREACHABLE, message, remedy) from None
    finally:
        consumer.close()


def _start_offsets(consumer: Consumer, topic: str, limit: int) -> list[TopicPartition]:
    """Return the start offsets for reading about `limit` records in total."""
    metadata = consumer.list_topics(topic, timeout=_ANSWER_SECONDS).topics[topic]
    if metadata.error is not None or not metadata.partitions:
        remedy = "check the name; give a file with its folder or suffix, such as ./events.csv"
        raise TidemillError(Reason.UNREACHABLE, f"there is neither a file nor a topic {topic}", remedy)
    per_partition = max(1, limit // len(metadata.partitions))
    starts = []
    for number in metadata.partitions:
        low, high = consumer.get_watermark_offsets(TopicPartition(topic, number), timeout=_ANSWER_SECONDS)
        starts.append(TopicPartition(topic, number, max(low, high - per_partition)))
    return starts


def _read(consumer: Consumer, partitions: int, most: int, deadline: float) -> list[bytes]:
    records: list[tuple[int, int, int, bytes]] = []
    ended: set[int] = set()
    while len(ended) < partitions and len(records) < most and time.monotonic() < deadline:
        for message in consumer.consume(1000, 0.5):
            error = message.error()
            if error is not None and error.code() != KafkaError._PARTITION_EOF:
                raise KafkaException(error)
            if error is not None:
                ended.add(message.partition())
            elif (value := message.value()) is not None:
                records.append((message.timestamp()[1], message.partition(), message.offset(), value))
    return [value for *_, value in sorted(records)]
