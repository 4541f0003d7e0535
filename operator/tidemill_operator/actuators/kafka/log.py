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

from tidemill_operator.actuators.kafka.session import GONE

EARLIEST, LATEST = OffsetSpec.earliest(), OffsetSpec.latest()
_ATTEMPTS = 3
_PAUSE_SECONDS = 0.2

Place = tuple[str, int]


@dataclass(frozen=True)
class Offsets:
    """Offsets by topic and partition. `faults` holds the reason for each unknown offset."""

    at: dict[Place, int] = field(default_factory=dict)
    faults: dict[Place, str] = field(default_factory=dict)

    def of(self, topic: str) -> dict[int, int]:
        """Return the known offsets of one topic, by partition."""
        return {partition: offset for (name, partition), offset in self.at.items() if name == topic}


class KafkaLog:
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
        self._lock, self._reading = threading.Lock(), threading.Lock()

    def offsets(self, places: Iterable[Place], spec: OffsetSpec) -> Offsets:
        """Return the offsets that Kafka reports within the timeout, and the reason for each unknown offset."""
        offsets, left = Offsets(), set(places)
        deadline = time.monotonic() + self._timeout
        for attempts in range(_ATTEMPTS, 0, -1):
            if not left:
                break
            client = self._admin()
            # If a leader is down, a request to the leader takes its whole timeout. The attempts therefore share the
            # remaining time.
            answer = _asked(client, left, spec, max(1.0, (deadline - time.monotonic()) / attempts))
            offsets.at.update(answer.at)
            left = set(answer.faults)
            if left:
                self._renew(client)
            if attempts == 1:
                offsets.faults.update(answer.faults)
            elif left:
                time.sleep(_PAUSE_SECONDS)
        return offsets

    def led(self, topic: str) -> bool:
        """Return whether Kafka's controllers answer."""
        client = self._admin()
        asked = [NewTopic(topic, num_partitions=1)]
        try:
            made = client.create_topics(asked, request_timeout=self._timeout, validate_only=True)
            made[topic].result(self._timeout + 5.0)
        except FutureTimeout:
            return False
        except KafkaException as error:
            if error.args[0].code() in GONE:
                self._renew(client)
                return False
        return True

    def arrivals(self, places: Mapping[Place, int], *, seconds: float = 2.0) -> dict[Place, int | None]:
        """Return the arrival time in epoch ms of the first record at or after each offset.

        The arrival time is None if only control records follow the offset.
        """
        if not places:
            return {}
        with self._reading:
            try:
                return self._read(places, seconds)
            except KafkaException:
                self._drop_consumer()
                return {}

    def _read(self, places: Mapping[Place, int], seconds: float) -> dict[Place, int | None]:
        if self._consumer is None:
            self._consumer = Consumer({**self.config, **_READING})
        timestamps: dict[Place, int | None] = {}
        left, deadline = set(places), time.monotonic() + seconds
        self._consumer.assign([TopicPartition(topic, partition, at) for (topic, partition), at in places.items()])
        while left and time.monotonic() < deadline:
            for message in self._consumer.consume(len(left), 0.1):
                place, error = (message.topic() or "", message.partition() or 0), message.error()
                if place not in left or (error is not None and error.code() != KafkaError._PARTITION_EOF):
                    continue
                left.discard(place)
                kind, moment = message.timestamp() if error is None else (None, None)
                if kind != TIMESTAMP_NOT_AVAILABLE:
                    timestamps[place] = moment
        if left:
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

    def _renew(self, client: AdminClient) -> None:
        with self._lock:
            if self._client is client:
                self._client = None


# The operator reads one batch of each partition, and joins no consumer group.
_READING = {
    "group.id": "tidemill-operator",
    "enable.auto.commit": False,
    "enable.partition.eof": True,
    "auto.offset.reset": "earliest",
    "queued.min.messages": 1,
    "queued.max.messages.kbytes": 1024,
    "fetch.message.max.bytes": 1024,
}


def _asked(client: AdminClient, places: Collection[Place], spec: OffsetSpec, seconds: float) -> Offsets:
    offsets = Offsets()
    try:
        futures = client.list_offsets({TopicPartition(*place): spec for place in places}, request_timeout=seconds)
    except KafkaException as error:
        return Offsets({}, dict.fromkeys(places, error.args[0].str()))
    for at, future in futures.items():
        place = (at.topic, at.partition)
        try:
            offset = future.result(seconds + 5.0).offset
        except KafkaException as error:
            offsets.faults[place] = f"{error.args[0].name()}: {error.args[0].str()}"
        except FutureTimeout:
            offsets.faults[place] = f"no answer within {seconds:.0f} s"
        else:
            # If a leader does not answer in time, librdkafka reports an invalid offset instead of an error.
            if offset >= 0:
                offsets.at[place] = offset
            else:
                offsets.faults[place] = "its leader does not answer"
    return offsets
