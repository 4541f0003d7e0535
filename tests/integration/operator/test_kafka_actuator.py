"""Tests of the actuator that creates, extends, repairs and deletes topics, on a real Kafka."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest
from confluent_kafka import Consumer, Producer
from confluent_kafka.admin import AdminClient

from bench import free_ports
from kafka_admin import KafkaAdmin
from tidemill_contract.events.fields import MAX_RECORD_BYTES
from tidemill_operator.actuators.kafka.session import KafkaSession
from tidemill_operator.actuators.kafka.topics import KafkaTopics
from tidemill_operator.errors import Reason, TidemillError
from tidemill_operator.laptop.servers import Servers
from tidemill_operator.outcome import Outcome, Rank
from tidemill_operator.plan.model import Topic

pytestmark = pytest.mark.integration


@pytest.fixture
def kafka(servers: Servers) -> KafkaTopics:
    return KafkaTopics(servers.kafka)


@pytest.fixture
def admin(servers: Servers) -> AdminClient:
    return AdminClient({"bootstrap.servers": servers.kafka})


@pytest.fixture
def topic(admin: AdminClient) -> Iterator[Topic]:
    """Return a topic that only this test uses; it is deleted after the test."""
    wanted = Topic(
        f"kafkatest.{uuid.uuid4().hex[:8]}.events",
        3,
        1,
        {
            "retention.ms": "86400000",
            "message.timestamp.type": "LogAppendTime",
            "max.message.bytes": str(MAX_RECORD_BYTES),
        },
    )
    yield wanted
    for future in admin.delete_topics([wanted.name]).values():
        error = future.exception(10)
        assert error is None or error.args[0].name() == "UNKNOWN_TOPIC_OR_PART"


class WatchedAdmin(AdminClient):
    """A real client that records its writing calls."""

    def __init__(self, config: dict[str, object]) -> None:
        super().__init__(config)
        self.writes: list[str] = []

    def create_topics(self, *args: Any, **more: Any) -> Any:
        if not more.get("validate_only"):
            self.writes.append("create_topics")
        return super().create_topics(*args, **more)

    def create_partitions(self, *args: Any, **more: Any) -> Any:
        self.writes.append("create_partitions")
        return super().create_partitions(*args, **more)

    def incremental_alter_configs(self, *args: Any, **more: Any) -> Any:
        self.writes.append("incremental_alter_configs")
        return super().incremental_alter_configs(*args, **more)

    def delete_topics(self, *args: Any, **more: Any) -> Any:
        self.writes.append("delete_topics")
        return super().delete_topics(*args, **more)


def only(outcomes: list[Outcome]) -> Outcome:
    """Return the only outcome."""
    (outcome,) = outcomes
    return outcome


def test_a_second_ensure_writes_nothing(kafka: KafkaTopics, topic: Topic, servers: Servers) -> None:
    """The first call creates the topic with its configuration, and reports its properties."""
    kafka._session.client = watched = WatchedAdmin({"bootstrap.servers": servers.kafka})
    created = only(kafka.ensure([topic]))
    assert watched.writes == ["create_topics"]
    assert (created.rank, created.changed) == (Rank.DONE, 1)
    assert created.observed["partitions"] == 3
    assert created.observed["replicationFactor"] == 1
    again = only(kafka.ensure([topic]))
    assert (again.rank, again.changed, again.observed) == (Rank.DONE, 0, created.observed)
    assert watched.writes == ["create_topics"]
    assert topic.config.items() <= kafka.configs([topic.name])[topic.name].items()


def test_partitions_grow_and_keep_their_events(kafka: KafkaTopics, topic: Topic, servers: Servers) -> None:
    """One write adds the partitions."""
    kafka.ensure([topic])
    producer = Producer({"bootstrap.servers": servers.kafka, "acks": "all"})
    producer.produce(topic.name, b"before", partition=2)
    assert producer.flush(20) == 0
    grown = only(kafka.ensure([replace(topic, partitions=5)]))
    assert (grown.rank, grown.changed, grown.observed["partitions"]) == (Rank.DONE, 1, 5)
    assert only(kafka.ensure([replace(topic, partitions=5)])).changed == 0
    consumer = Consumer({"bootstrap.servers": servers.kafka, "group.id": topic.name, "auto.offset.reset": "earliest"})
    consumer.subscribe([topic.name])
    try:
        message = consumer.poll(30)
        assert message is not None
        assert message.value() == b"before"
    finally:
        consumer.close()


REFUSED: list[tuple[dict[str, int], Reason, str]] = [
    ({"partitions": 2}, Reason.NOT_SUPPORTED, "has 3 partitions and 2 are requested"),
]


@pytest.fixture
def lagging(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the first request go to a broker that does not know the topics yet.

    This happens just after another client has created them.
    """
    behind, describe = [True], KafkaSession.describe_topics

    def described(self: KafkaSession, names: Sequence[str]) -> dict[str, Any]:
        return {} if behind and behind.pop() else describe(self, names)

    monkeypatch.setattr(KafkaSession, "describe_topics", described)


def test_ensure_does_not_create_a_topic_that_the_asked_broker_does_not_know_yet(
    kafka: KafkaTopics, topic: Topic, request: pytest.FixtureRequest
) -> None:
    kafka.ensure([topic])
    request.getfixturevalue("lagging")
    grown = only(kafka.ensure([replace(topic, partitions=5)]))
    assert (grown.rank, grown.changed, grown.observed["partitions"]) == (Rank.DONE, 1, 5)


def test_observe_finds_a_topic_that_the_asked_broker_does_not_know_yet(
    kafka: KafkaTopics, topic: Topic, request: pytest.FixtureRequest
) -> None:
    """Otherwise the operator would note that it created the topic, and delete it with the pipeline."""
    kafka.ensure([topic])
    request.getfixturevalue("lagging")
    assert kafka.observe([topic.name, f"{topic.name}.absent"]).keys() == {topic.name}


@pytest.mark.parametrize(("change", "reason", "text"), REFUSED, ids=["shrinking"])
def test_a_change_that_kafka_does_not_support_is_refused(
    kafka: KafkaTopics, topic: Topic, change: dict[str, int], reason: Reason, text: str
) -> None:
    """The message has the current and the requested number, and the topic does not change."""
    kafka.ensure([topic])
    before = kafka.observe([topic.name])
    refused = only(kafka.ensure([replace(topic, **change)]))
    assert (refused.rank, refused.reason, refused.changed) == (Rank.FAILED, reason, 0)
    assert text in refused.message
    assert before == kafka.observe([topic.name])


def test_a_topic_with_more_replicas_than_brokers_is_refused(kafka: KafkaTopics, topic: Topic) -> None:
    """The message has the number of brokers. Other topics of the same call are created."""
    other = replace(topic, name=f"{topic.name}.other")
    refused, created = kafka.ensure([replace(topic, replication_factor=3), other])
    assert (refused.rank, refused.reason) == (Rank.FAILED, Reason.INVALID_SPEC)
    assert "replication factor 3 needs 3 brokers, but only 1 is available" in refused.message
    assert created.rank == Rank.DONE
    assert set(kafka.observe([topic.name, other.name])) == {other.name}
    assert only(kafka.release([other], "Delete")).changed == 1


def test_ensure_repairs_keys_of_the_plan_and_keeps_other_keys(
    kafka: KafkaTopics, topic: Topic, servers: Servers
) -> None:
    kafka.ensure([topic])
    KafkaAdmin(servers.kafka).alter(topic.name, {"retention.ms": "1000", "segment.ms": "600000"})
    repaired = only(kafka.ensure([topic]))
    assert (repaired.rank, repaired.changed) == (Rank.DONE, 1)
    live = kafka.configs([topic.name])[topic.name]
    assert (live["retention.ms"], live["segment.ms"]) == ("86400000", "600000")
    assert only(kafka.ensure([topic])).changed == 0


def test_an_invalid_configuration_is_refused_with_the_message_of_kafka(kafka: KafkaTopics, topic: Topic) -> None:
    refused = only(kafka.ensure([replace(topic, config={"cleanup.policy": "sometimes"})]))
    assert (refused.rank, refused.reason) == (Rank.FAILED, Reason.INVALID_SPEC)
    assert "cleanup.policy" in refused.message


def test_an_unmanaged_topic_must_exist_and_is_never_altered(kafka: KafkaTopics, topic: Topic, servers: Servers) -> None:
    """The outcome has the properties of the existing topic."""
    unmanaged = replace(topic, managed=False, partitions=9, config={"retention.ms": "1"})
    missing = only(kafka.ensure([unmanaged]))
    assert (missing.rank, missing.reason) == (Rank.FAILED, Reason.INVALID_SPEC)
    assert "does not exist" in missing.message
    KafkaAdmin(servers.kafka).create(topic.name, 2, config={"retention.ms": "5000"})
    existing = only(kafka.ensure([unmanaged]))
    assert (existing.rank, existing.changed, existing.observed["partitions"]) == (Rank.DONE, 0, 2)
    assert kafka.configs([topic.name])[topic.name]["retention.ms"] == "5000"
    assert only(kafka.release([unmanaged], "Delete")).rank == Rank.SKIPPED
    assert set(kafka.observe([topic.name])) == {topic.name}


def test_release_follows_the_reclaim_policy(kafka: KafkaTopics, topic: Topic) -> None:
    """Retain keeps the topic, and Delete deletes it. A second Delete changes nothing."""
    kafka.ensure([topic])
    assert only(kafka.release([topic], "Retain")).rank == Rank.SKIPPED
    assert set(kafka.observe([topic.name])) == {topic.name}
    assert only(kafka.release([topic], "Delete")).changed == 1
    assert kafka.observe([topic.name]) == {}
    again = only(kafka.release([topic], "Delete"))
    assert (again.rank, again.changed) == (Rank.DONE, 0)


def test_a_recreated_topic_has_another_id(kafka: KafkaTopics, topic: Topic) -> None:
    first = only(kafka.ensure([topic])).observed["id"]
    kafka.release([topic], "Delete")
    second = only(kafka.ensure([topic])).observed["id"]
    assert first != second


CALLS: list[Callable[[KafkaTopics], object]] = [
    lambda kafka: kafka.broker_count(),
    lambda kafka: kafka.observe(["a.b.events"]),
    lambda kafka: kafka.ensure([Topic("a.b.events", 1, 1)]),
    lambda kafka: kafka.release([Topic("a.b.events", 1, 1)], "Delete"),
]


@pytest.mark.parametrize("call", CALLS, ids=["brokers", "observe", "ensure", "release"])
def test_an_address_without_a_broker_is_reported_as_unreachable(call: Callable[[KafkaTopics], object]) -> None:
    """Each call fails within its timeout, and its message has the address."""
    address = f"127.0.0.1:{free_ports(1)[0]}"
    with pytest.raises(TidemillError) as raised:
        call(KafkaTopics(address, timeout_seconds=1.0))
    assert raised.value.reason == Reason.UNREACHABLE
    assert address in str(raised.value)
