"""Tests of slots: the numbers of partitions in a pipeline that reads several topics."""

from __future__ import annotations

from typing import Any

import pytest
from confluent_kafka import KafkaError, KafkaException, TopicPartition

from tidemill_contract.events.records import RecordDecoder
from tidemill_contract.resource.spec import AnalyticsPipeline
from tidemill_processor.source.consumer import Source
from tidemill_processor.source.seeks import Seeks
from tidemill_processor.source.slots import SeveralTopics, Slots, with_slots

AB = SeveralTopics({0: ("a", 0), 1: ("b", 0), 4: ("b", 1)}, frozenset({4}))


class Message:
    """A record, or an error."""

    def __init__(self, topic: str | None, partition: int | None, error: KafkaError | None = None) -> None:
        self._topic, self._partition, self._error = topic, partition, error

    def topic(self) -> str | None:
        return self._topic

    def partition(self) -> int | None:
        return self._partition

    def offset(self) -> int:
        return 7

    def value(self) -> bytes:
        return b"{}"

    def error(self) -> KafkaError | None:
        return self._error


def test_a_slot_is_found_by_its_place_and_a_place_by_its_slot() -> None:
    assert (AB.slot_of("b", 1), AB.slot_of("a", 1), AB.topic_and_partition(4), AB.topic_and_partition(2)) == (
        4,
        None,
        ("b", 1),
        None,
    )
    assert (AB.topics, AB.is_added(4), AB.is_added(0)) == (("a", "b"), True, False)


def test_only_slots_of_existing_topics_have_a_topic_id() -> None:
    assert AB.topic_ids({"b": ("B", 2)}) == {1: "B", 4: "B"}
    assert AB.topic_ids({"a": ("A", 1), "b": ("B", 1), "c": ("C", 9)}) == {0: "A", 1: "B"}


def test_errors_of_missing_topics_are_dropped_and_other_errors_are_kept() -> None:
    missing = [KafkaError(KafkaError.UNKNOWN_TOPIC_OR_PART), KafkaError(KafkaError._UNKNOWN_TOPIC)]
    down = KafkaError(KafkaError._ALL_BROKERS_DOWN)
    remaining = with_slots([Message("a", 0, missing[0]), Message("c", None, missing[1]), Message(None, None, down)], AB)
    assert [message.error() for message in remaining] == [down]


def test_a_field_read_from_partition_is_the_partition_within_the_topic() -> None:
    fields = [{"name": "part", "type": "integer", "from": "partition"}]
    metrics = [{"name": "events", "function": "count"}]
    window = {"type": "tumbling", "size": "1h"}
    spec = AnalyticsPipeline.model_validate(
        {
            "apiVersion": "tidemill.dev/v1alpha1",
            "kind": "AnalyticsPipeline",
            "metadata": {"name": "orders"},
            "spec": {
                "source": {"topic": {"managed": False}, "topics": ["a", "b"], "fields": fields},
                "aggregations": [{"name": "all", "window": window, "metrics": metrics}],
            },
        }
    ).spec
    records = with_slots([Message("b", 1), Message("a", 0), Message("b", 9)], AB)
    assert [(record.partition(), record.offset()) for record in records] == [(4, 7), (0, 7), (-1, 7)]
    decoder = RecordDecoder(spec)
    decoded = decoder.decode_all([b"{}"] * 2, 0, records=records[:2])
    assert decoder.values(decoded.events, "part") == [1, 0]


class Consumer:
    """A consumer that records its calls."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, list[Any]]] = []
        self.failures = 0

    def subscribe(self, topics: list[str], **_: Any) -> None:
        if self.failures:
            self.failures -= 1
            raise KafkaException(KafkaError(KafkaError._FAIL))
        self.calls.append(("subscribe", topics))

    def unsubscribe(self) -> None:
        self.calls.append(("unsubscribe", []))

    def assign(self, _: Any) -> None:
        pass

    def pause(self, partitions: list[TopicPartition]) -> None:
        self.calls.append(("pause", [(at.topic, at.partition) for at in partitions]))


def source(slots: Slots) -> tuple[Source, Consumer]:
    """Return a member of the group that has not read any record."""
    reader, consumer = Source.__new__(Source), Consumer()
    reader.slots, reader.assigned, reader.generation, reader.lost_at = slots, frozenset(), 1, None
    reader.__dict__ |= {
        "_consumer": consumer,
        "_assigned_partitions": [],
        "_last_assigned": frozenset(),
        "_multi_topic": True,
    }
    reader.__dict__ |= {"_ready": set(), "_ends_read": {}, "_seeks": Seeks()}
    return reader, consumer


def test_a_partition_with_a_new_slot_waits_until_all_positions_are_read_again() -> None:
    reader, consumer = source(AB)
    reader._on_assign(consumer, [TopicPartition("a", 0), TopicPartition("b", 2)])
    assert reader.assigned == {0}  # The partition without a slot is paused.
    reader._ready.add(0)
    before, consumer.calls = reader.generation, []
    reader.update_slots(SeveralTopics({**AB.partitions, 5: ("b", 2)}))
    assert (reader.assigned, reader.ready, reader.generation > before) == ({0, 5}, frozenset(), True)
    assert consumer.calls == [("pause", [("a", 0)])]
    reader.update_slots(SeveralTopics({**AB.partitions, 5: ("b", 2)}))
    assert len(consumer.calls) == 1


def test_the_subscription_follows_the_topics_of_the_slots() -> None:
    reader, consumer = source(SeveralTopics())
    reader.subscribe()
    reader.update_slots(AB)
    reader.update_slots(SeveralTopics({0: ("a", 0)}))
    reader.update_slots(SeveralTopics())
    assert consumer.calls == [("unsubscribe", []), ("subscribe", ["a", "b"]), ("subscribe", ["a"]), ("unsubscribe", [])]


def test_a_failed_subscription_is_retried() -> None:
    reader, consumer = source(SeveralTopics({0: ("a", 0)}))
    consumer.failures = 1
    with pytest.raises(KafkaException):
        reader.update_slots(AB)
    reader.update_slots(AB)
    assert (consumer.calls, reader.slots) == ([("subscribe", ["a", "b"])], AB)
