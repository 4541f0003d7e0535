"""Read the first and last offsets of partitions, and the arrival times of records."""

from __future__ import annotations

import threading
import time
from collections.abc import Collection, Iterable, Mapping
from concurrent.futures import TimeoutError as FutureTimeout
from dataclasses import dataclass, field
from typing import Any

from confluent_kafka import TIMESTAMP_NOT_AVAILABLE, Consumer, KafkaError, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic, OffsetSpec

from tidemill_operator.actuators.kafka.session import UNREACHABLE_CODES

EARLIEST, LATEST = OffsetSpec.earliest(), OffsetSpec.latest()
_ATTEMPTS = 3
_PAUSE_SECONDS = 0.2

PartitionId = tuple[str, int]


@dataclass(frozen=True)
class Offsets:
    """Offsets by topic and partition. `faults` holds the reason for each unknown offset."""

    at: dict[PartitionId, int] = field(default_factory=dict)
    faults: dict[PartitionId, str] = field(default_factory=dict)

    def of(self, topic: str) -> dict[int, int]:
        """Return the known offsets of one topic, by partition."""
        return {partition: offset for (name, partition), offset in self.at.items() if name == topic}


class OffsetReader:
    """A thread-safe reader of offsets and arrival times of partitions."""

    def __init__(
        self,
        brokers: str,
        *,
        config: Mapping[str, Any] | None = None,
        timeout_seconds: float = 10.0,
        name: str = "",
    ) -> None:
        self.name = name or "Kafka"
        self.brokers = f"the brokers of {name}" if name else "Kafka's brokers"
        self.config = {"bootstrap.servers": brokers, "log_level": 0, **(config or {})}
        self._timeout = timeout_seconds
        self._client: AdminClient | None = None
        self._consumer: Consumer | None = None
        self._lock, self._read_lock = threading.Lock(), threading.Lock()

    def offsets(self, partitions: Iterable[PartitionId], spec: OffsetSpec) -> Offsets:
        """Return the offsets that Kafka reports within the timeout, and the reason for each unknown offset."""
        offsets, remaining = Offsets(), set(partitions)
        deadline = time.monotonic() + self._timeout
        for attempts in range(_ATTEMPTS, 0, -1):
            if not remaining:
                break
            client = self._admin()
            # If a leader is down, a request to the leader takes its whole timeout. The attempts therefore share the
            # remaining time.
            answer = _list_offsets(client, remaining, spec, max(1.0, (deadline - time.monotonic()) / attempts))
            offsets.at.update(answer.at)
            remaining = set(answer.faults)
            if remaining:
                self._discard_client(client)
            if attempts == 1:
                offsets.faults.update(answer.faults)
            elif remaining:
                time.sleep(_PAUSE_SECONDS)
        return offsets

    def is_controller_reachable(self, topic: str) -> bool:
        """Return whether Kafka's controllers answer."""
        client = self._admin()
        wanted = [NewTopic(topic, num_partitions=1)]
        try:
            futures = client.create_topics(wanted, request_timeout=self._timeout, validate_only=True)
            futures[topic].result(self._timeout + 5.0)
        except FutureTimeout:
            return False
        except KafkaException as error:
            if error.args[0].code() in UNREACHABLE_CODES:
                self._discard_client(client)
                return False
        return True

    def arrival_times(
        self, partitions: Mapping[PartitionId, int], *, seconds: float = 2.0
    ) -> dict[PartitionId, int | None]:
        """Return the arrival time in epoch ms of the first record at or after each offset.

        The arrival time is None if only control records follow the offset.
        """
        if not partitions:
            return {}
        with self._read_lock:
            try:
                return self._read_arrival_times(partitions, seconds)
            except KafkaException:
                self._drop_consumer()
                return {}

    def _read_arrival_times(
        self, partitions: Mapping[PartitionId, int], seconds: float
    ) -> dict[PartitionId, int | None]:
        if self._consumer is None:
            self._consumer = Consumer({**self.config, **_CONSUMER_CONFIG})
        timestamps: dict[PartitionId, int | None] = {}
        remaining, deadline = set(partitions), time.monotonic() + seconds
        self._consumer.assign([TopicPartition(topic, partition, at) for (topic, partition), at in partitions.items()])
        while remaining and time.monotonic() < deadline:
            for message in self._consumer.consume(len(remaining), 0.1):
                partition, error = (message.topic() or "", message.partition() or 0), message.error()
                if partition not in remaining or (error is not None and error.code() != KafkaError._PARTITION_EOF):
                    continue
                remaining.discard(partition)
                kind, moment = message.timestamp() if error is None else (None, None)
                if kind != TIMESTAMP_NOT_AVAILABLE:
                    timestamps[partition] = moment
        if remaining:
            self._drop_consumer()
        else:
            self._consumer.unassign()
        return timestamps

    def _drop_consumer(self) -> None:
        consumer, self._consumer = self._consumer, None
        if consumer is not None:
            consumer.close()

    def _admin(self) -> AdminClient:
        with self._lock:
            if self._client is None:
                self._client = AdminClient(self.config)
            return self._client

    def _discard_client(self, client: AdminClient) -> None:
        with self._lock:
            if self._client is client:
                self._client = None


# The operator reads one batch of each partition, and joins no consumer group.
_CONSUMER_CONFIG = {
    "group.id": "tidemill-operator",
    "enable.auto.commit": False,
    "enable.partition.eof": True,
    "auto.offset.reset": "earliest",
    "queued.min.messages": 1,
    "queued.max.messages.kbytes": 1024,
    "fetch.message.max.bytes": 1024,
}


def _list_offsets(
    client: AdminClient, partitions: Collection[PartitionId], spec: OffsetSpec, seconds: float
) -> Offsets:
    offsets = Offsets()
    try:
        futures = client.list_offsets(
            {TopicPartition(*partition): spec for partition in partitions}, request_timeout=seconds
        )
    except KafkaException as error:
        return Offsets({}, dict.fromkeys(partitions, error.args[0].str()))
    for topic_partition, future in futures.items():
        partition = (topic_partition.topic, topic_partition.partition)
        try:
            offset = future.result(seconds + 5.0).offset
        except KafkaException as error:
            offsets.faults[partition] = f"{error.args[0].name()}: {error.args[0].str()}"
        except FutureTimeout:
            offsets.faults[partition] = f"no answer within {seconds:.0f} s"
        else:
            # If a leader does not answer in time, librdkafka reports an invalid offset instead of an error.
            if offset >= 0:
                offsets.at[partition] = offset
            else:
                offsets.faults[partition] = "its leader does not answer"
    return offsets
