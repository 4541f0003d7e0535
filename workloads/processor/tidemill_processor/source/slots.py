"""Slots: unique numbers for the partitions of several topics."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import psycopg
from confluent_kafka import OFFSET_INVALID, KafkaError, TopicPartition

from tidemill_contract.runtime import PipelineConfig
from tidemill_contract.tables import slots as slots_table

TopicAndPartition = tuple[str, int]
"""A topic and a partition."""

MISSING_TOPIC_ERRORS = (
    KafkaError.UNKNOWN_TOPIC_OR_PART,
    KafkaError._UNKNOWN_TOPIC,
    KafkaError._UNKNOWN_PARTITION,
    KafkaError.UNKNOWN_TOPIC_ID,
)


class Slots(Protocol):
    """Translates between slots and partitions of topics."""

    @property
    def topics(self) -> tuple[str, ...]: ...  # noqa: D102

    def slot_of(self, topic: str, partition: int) -> int | None:
        """Return the slot of a partition. If the partition has no slot yet or is not read, return None."""

    def topic_and_partition(self, slot: int) -> TopicAndPartition | None:
        """Return the topic and the partition of a slot, or None if the slot is not read."""

    def is_added(self, slot: int) -> bool:
        """Return whether a slot was added to a running pipeline."""

    def topic_ids(self, described: Mapping[str, tuple[str, int]]) -> dict[int, str]:
        """Return the topic id of each slot."""


@dataclass(frozen=True)
class OneTopic:
    """The slots of a pipeline with one topic."""

    topic: str

    @property
    def topics(self) -> tuple[str, ...]:
        """The topic."""
        return (self.topic,)

    def slot_of(self, topic: str, partition: int) -> int | None:
        """Return the partition."""
        return partition

    def topic_and_partition(self, slot: int) -> TopicAndPartition | None:
        """Return the topic and the partition."""
        return self.topic, slot

    def is_added(self, slot: int) -> bool:
        """Return False, because the operator sets the first position of each added partition."""
        return False

    def topic_ids(self, described: Mapping[str, tuple[str, int]]) -> dict[int, str]:
        """Return the topic's id for each partition."""
        topic_id, partitions = described[self.topic]
        return dict.fromkeys(range(partitions), topic_id)


@dataclass(frozen=True)
class SeveralTopics:
    """The slots of a pipeline with a list of topics. The operator assigns the slots."""

    partitions: Mapping[int, TopicAndPartition] = field(default_factory=dict)
    added_slots: frozenset[int] = frozenset()

    def __post_init__(self) -> None:
        object.__setattr__(self, "_slots", {place: slot for slot, place in self.partitions.items()})

    @classmethod
    def read(cls, connection: psycopg.Connection[Any], schema: str) -> SeveralTopics:
        """Read the slots from Postgres.

        Raises:
            psycopg.Error: Postgres failed.
        """
        rows = connection.execute(slots_table.active_slots(schema)).fetchall()
        partitions = {slot: (topic, partition) for slot, topic, partition, _ in rows}
        return cls(partitions, frozenset(slot for slot, _, _, added in rows if added))

    @property
    def topics(self) -> tuple[str, ...]:
        """The topics of all slots, sorted by name."""
        return tuple(sorted({topic for topic, _ in self.partitions.values()}))

    def slot_of(self, topic: str, partition: int) -> int | None:
        """Return the slot of a partition. If the partition has no slot yet or is not read, return None."""
        slot: int | None = self._slots.get((topic, partition))  # type: ignore[attr-defined]
        return slot

    def topic_and_partition(self, slot: int) -> TopicAndPartition | None:
        """Return the topic and the partition of a slot, or None if the slot is not read."""
        return self.partitions.get(slot)

    def is_added(self, slot: int) -> bool:
        """Return whether a slot was added to a running pipeline, and is therefore read from the beginning."""
        return slot in self.added_slots

    def topic_ids(self, described: Mapping[str, tuple[str, int]]) -> dict[int, str]:
        """Return the topic id of each slot."""
        by_slot = {slot: described[topic] for slot, (topic, _) in self.partitions.items() if topic in described}
        return {slot: topic_id for slot, (topic_id, count) in by_slot.items() if self.partitions[slot][1] < count}


class SlottedMessage:
    """A Kafka record whose method `partition` returns the slot instead of the partition."""

    __slots__ = ("_message", "_slot")

    def __init__(self, message: Any, slot: int) -> None:
        self._message, self._slot = message, slot

    def partition(self) -> int:
        """Return the slot."""
        return self._slot

    def topic_partition(self) -> int:
        """Return the partition in the topic."""
        return self._message.partition()  # type: ignore[no-any-return]

    def key(self) -> bytes | None:
        """Return the key."""
        return self._message.key()  # type: ignore[no-any-return]

    def value(self) -> bytes | None:
        """Return the value."""
        return self._message.value()  # type: ignore[no-any-return]

    def offset(self) -> int:
        """Return the offset."""
        return self._message.offset()  # type: ignore[no-any-return]

    def headers(self) -> Sequence[tuple[str, bytes]] | None:
        """Return the headers."""
        return self._message.headers()  # type: ignore[no-any-return]

    def timestamp(self) -> tuple[int, int]:
        """Return the kind of the timestamp and the timestamp (epoch ms)."""
        return self._message.timestamp()  # type: ignore[no-any-return]

    def error(self) -> KafkaError | None:
        """Return the error, or None if the message is a record."""
        error: KafkaError | None = self._message.error()
        return error


def with_slots(messages: Iterable[Any], slots: Slots) -> list[SlottedMessage]:
    """Replace the partition of each message with the slot, or with -1 if the partition has no slot."""
    slotted = []
    for message in messages:
        error = message.error()
        if error is not None and error.code() in MISSING_TOPIC_ERRORS:
            continue
        topic, partition = message.topic(), message.partition()
        slot = slots.slot_of(topic, partition) if topic is not None and partition is not None else None
        slotted.append(SlottedMessage(message, -1 if slot is None else slot))
    return slotted


def slots_of(config: PipelineConfig) -> tuple[Slots, str]:
    """Return a pipeline's slots, and the names of the topics as one text."""
    if config.spec.source.is_multi_topic:
        return SeveralTopics(), ", ".join(config.source_topics)
    return OneTopic(config.read_topic), config.read_topic


def assigned_slots(slots: Slots, partitions: Iterable[TopicPartition]) -> frozenset[int]:
    """Return the slots of partitions. Partitions without a slot are left out."""
    slot_numbers = (slots.slot_of(at.topic, at.partition) for at in partitions)
    return frozenset(slot for slot in slot_numbers if slot is not None)


def topic_partitions(slots: Slots, chosen: Iterable[int], offset: int = OFFSET_INVALID) -> list[TopicPartition]:
    """Return the partitions of slots. Slots that are not read are left out."""
    partitions = (slots.topic_and_partition(slot) for slot in chosen)
    return [TopicPartition(*place, offset) for place in partitions if place is not None]
