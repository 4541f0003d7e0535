"""Reads the stage topic of a pipeline, and counts the records that wait for the Python stage."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from confluent_kafka import Consumer, IsolationLevel, KafkaError, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient, OffsetSpec

from tidemill_chassis.kafka_clients import FAST_RECONNECT, platform_connection
from tidemill_contract import names
from tidemill_contract.runtime import PipelineConfig, WorkloadSettings
from tidemill_contract.stage_records import ORIGIN_HEADER, read_origin

_REQUEST_SECONDS = 5.0
_READ_SECONDS = 2.0

Headers = Sequence[tuple[str, bytes]]


class StagedMessage:
    """A record of the stage topic, with the timestamp and headers of its source record."""

    __slots__ = ("_message",)

    def __init__(self, message: Any) -> None:
        self._message = message

    def key(self) -> bytes | None:
        """Return the key."""
        return self._message.key()  # type: ignore[no-any-return]

    def value(self) -> bytes | None:
        """Return the value."""
        return self._message.value()  # type: ignore[no-any-return]

    def partition(self) -> int:
        """Return the partition, which is the same in the source topic and the stage topic."""
        return self._message.partition()  # type: ignore[no-any-return]

    def offset(self) -> int:
        """Return the offset in the stage topic."""
        return self._message.offset()  # type: ignore[no-any-return]

    def headers(self) -> Headers | None:
        """Return the headers without the origin header."""
        headers = self._message.headers()
        return [header for header in headers or () if header[0] != ORIGIN_HEADER] or None

    def timestamp(self) -> tuple[int, int]:
        """Return the kind of the timestamp, and the source record's time (epoch ms)."""
        origin = read_origin(self._message.headers())
        kind, written = self._message.timestamp()
        return kind, written if origin is None else origin.time_ms


def wrap_staged(messages: Sequence[Any]) -> list[Any]:
    """Wrap records of the stage topic. Each result has the timestamp and headers of the source record."""
    return [StagedMessage(message) for message in messages]


def platform_kafka_settings(settings: WorkloadSettings) -> dict[str, Any]:
    """Return client settings for the platform's Kafka.

    Raises:
        OSError, ValueError: the file with client settings cannot be read.
    """
    return {**FAST_RECONNECT, **platform_connection(settings)}


class StageBacklog:
    """Reads how many records of the source topic the Python stage has not processed yet."""

    def __init__(self, connection: Mapping[str, Any], config: PipelineConfig) -> None:
        self._topic = config.events_topic
        self._connection = {
            **connection,
            "group.id": names.consumer_group(config.namespace, config.name, "stage"),
            "enable.auto.commit": False,
            "enable.partition.eof": True,
            "auto.offset.reset": "error",
            "log_level": 0,
        }
        # With `read_committed`, Kafka would not return committed positions while a transaction is open.
        self._positions_consumer = Consumer({**self._connection, "isolation.level": "read_uncommitted"})
        self._reader: Consumer | None = None
        self._admin_settings = {**connection, "log_level": 0}
        self._admin = AdminClient(self._admin_settings)
        self._previous: dict[int, tuple[int, int]] = {}
        self._empty: dict[int, tuple[int, int]] = {}

    def lag_by_partition(self, partitions: Collection[int]) -> dict[int, int]:
        """Return how many records the stage has not committed yet, by partition.

        Raises:
            KafkaException: Kafka does not answer.
        """
        if not partitions:
            return {}
        topic_partitions = [TopicPartition(self._topic, number) for number in partitions]
        positions = self._positions_consumer.committed(topic_partitions, timeout=_REQUEST_SECONDS)
        committed = {at.partition: at.offset for at in positions}
        lows = self._ends(OffsetSpec.earliest(), [number for number, offset in committed.items() if offset < 0])
        ends = self._ends(OffsetSpec.latest(), partitions)
        spans = {
            number: (lows[number] if committed[number] < 0 else committed[number], end) for number, end in ends.items()
        }
        return {number: 0 if self._is_empty(number, *span) else span[1] - span[0] for number, span in spans.items()}

    def _ends(self, spec: OffsetSpec, partitions: Collection[int]) -> dict[int, int]:
        if not partitions:
            return {}
        futures = self._admin.list_offsets(
            {TopicPartition(self._topic, number): spec for number in partitions},
            isolation_level=IsolationLevel.READ_COMMITTED,
            request_timeout=_REQUEST_SECONDS,
        )
        try:
            ends = {at.partition: int(future.result(_REQUEST_SECONDS + 1).offset) for at, future in futures.items()}
        except (KafkaException, TimeoutError) as error:
            # Create a new client, because the old client would keep asking former partition leaders.
            self._admin = AdminClient(self._admin_settings)
            raise error if isinstance(error, KafkaException) else _timeout_error() from None
        if min(ends.values()) < 0:
            self._admin = AdminClient(self._admin_settings)
            raise _timeout_error()
        return ends

    def _is_empty(self, partition: int, position: int, end: int) -> bool:
        span, before = (position, end), self._previous.get(partition)
        self._previous[partition] = span
        if end <= position or self._empty.get(partition) == span:
            return True
        if before != span:  # Read the partition only if its offsets have not changed since the previous call.
            return False
        if self._reader is None:
            self._reader = Consumer(self._connection)
        self._reader.assign([TopicPartition(self._topic, partition, position)])
        try:
            messages = self._reader.consume(1, _READ_SECONDS)
        finally:
            self._reader.unassign()
        error = messages[0].error() if messages else None
        if error is None or error.code() != KafkaError._PARTITION_EOF or (messages[0].offset() or 0) < end:
            return False
        self._empty[partition] = span
        return True


def _timeout_error() -> KafkaException:
    return KafkaException(KafkaError(KafkaError._TIMED_OUT, "a leader of the source topic does not answer"))
