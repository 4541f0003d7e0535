"""Tests of changes of replicas of topics in use, on three real brokers: each pass makes one step."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest
from confluent_kafka import Consumer, KafkaException, Producer, TopicCollection, TopicPartition
from confluent_kafka.admin import AdminClient, ConfigResource, NewTopic, ResourceType

from kafka_admin import KafkaAdmin
from tidemill_operator.actuators.kafka.reassignments import Reassignments, open_reassignments
from tidemill_operator.actuators.kafka.replication import RATE_CONFIGS, Replication
from tidemill_operator.actuators.kafka.session import KafkaSession
from tidemill_operator.actuators.kafka.topics import KafkaTopics
from tidemill_operator.errors import Reason, TidemillError
from tidemill_operator.laptop.servers import Servers
from tidemill_operator.outcome import Outcome, Rank
from tidemill_operator.plan.kafka.replication import IN_SYNC, THROTTLED_LEADERS, Spread
from tidemill_operator.plan.model import Topic
from waiting import eventually

pytestmark = [pytest.mark.integration, pytest.mark.slow]

THROTTLE, SLOW = 20_000_000, 50_000


@pytest.fixture(scope="module")
def cluster(own_servers: Callable[..., Servers]) -> Servers:
    return own_servers(needs=("kafka",), brokers=3)


def test_a_topic_counts_as_deleted_only_if_every_broker_says_so(cluster: Servers) -> None:
    """A broker that does not answer may know the topic."""
    topics, admin, name = KafkaTopics(cluster.kafka, timeout_seconds=3.0), KafkaAdmin(cluster.kafka), "gone.orders"
    admin.create(name, replicas=3)
    assert topics.find_missing([name, "gone.never"]) == {"gone.never"}
    admin.delete(name)
    assert topics.find_missing([name]) == {name}
    pid = cluster.handles["kafka-2"].pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    try:
        assert topics.find_missing([name]) == frozenset()
    finally:
        os.kill(pid, signal.SIGCONT)
    eventually(lambda: topics.find_missing([name]) == {name}, what="all brokers answer again")


class MovedTopic:
    """A topic on three brokers, whose replicas the operator changes."""

    def __init__(self, cluster: Servers) -> None:
        self.cluster = cluster
        self.admin = AdminClient({"bootstrap.servers": cluster.kafka, "log_level": 0})
        self.each = [AdminClient({"bootstrap.servers": at, "log_level": 0}) for at in cluster.kafka.split(",")]
        self.config = {"bootstrap.servers": cluster.kafka, "log_level": 0}
        self.name = f"moved.{uuid.uuid4().hex[:8]}.events"

    def topic(self, factor: int, partitions: int = 6, **more: Any) -> Topic:
        in_sync = str(max(1, factor - 1))
        return Topic(self.name, partitions, factor, {IN_SYNC: in_sync, "retention.ms": "86400000"}, **more)

    def make(self, factor: int, partitions: int = 6, brokers: list[list[int]] | None = None) -> None:
        config = {IN_SYNC: str(max(1, factor - 1)), "retention.ms": "86400000"}
        how = {"replica_assignment": brokers} if brokers else {"replication_factor": factor}
        self.admin.create_topics([NewTopic(self.name, partitions, config=config, **how)])[self.name].result(30)
        eventually(lambda: len(self.replicas()) == partitions, what="every broker knows the topic")
        # A broker answers with the defaults until it knows the configuration, and any broker may answer.
        eventually(
            lambda: all(self.has_config(client, config) for client in 3 * self.each),
            what="every broker knows the configuration",
        )

    def has_config(self, client: AdminClient, config: Mapping[str, str]) -> bool:
        resource = ConfigResource(ResourceType.TOPIC, self.name)
        try:
            described = client.describe_configs([resource])[resource].result(20)
        except (KafkaException, TimeoutError):
            return False
        return all(described[key].value == value for key, value in config.items())

    def kafka(self, throttle: int = THROTTLE) -> KafkaTopics:
        """Return a new actuator, so that passes share no state."""
        return KafkaTopics(self.cluster.kafka, throttle_bytes=throttle)

    def run_pass(self, topic: Topic, *, spread: Spread | None = None, throttle: int = THROTTLE) -> Outcome:
        (outcome,) = self.kafka(throttle).ensure([topic], spread=spread)
        if topic.managed:
            with contextlib.suppress(KafkaException, TimeoutError):  # a broker may just have died
                described = self.admin.describe_topics(TopicCollection([self.name]))[self.name].result(20)
                fewest = min(len(partition.isr) for partition in described.partitions)
                assert int(self.settings()[IN_SYNC]) <= fewest, "too few replicas are in sync for writes"
        return outcome

    def described(self) -> Any:
        """Return the description of the topic, when every broker knows it."""

        def description() -> Any:
            descriptions = []
            for broker in self.each:
                try:
                    descriptions.append(broker.describe_topics(TopicCollection([self.name]))[self.name].result(20))
                except (KafkaException, TimeoutError):
                    return None
            return descriptions[0]

        return eventually(description, what="every broker knows the topic")

    def replicas(self) -> dict[int, tuple[int, ...]]:
        return {p.id: tuple(node.id for node in p.replicas) for p in self.described().partitions}

    def leaders(self) -> Counter[int]:
        return Counter(p.leader.id for p in self.described().partitions)

    def settings(self) -> Mapping[str, str]:
        return self.kafka().configs([self.name])[self.name]

    def limits(self) -> dict[str, str]:
        """Return the limits of replication of all brokers."""
        limits: dict[str, str] = {}
        for broker in ("1", "2", "3"):
            resource = ConfigResource(ResourceType.BROKER, broker)
            configs = self.admin.describe_configs([resource])[resource].result(20)
            limits |= {
                f"{broker} {key}": configs[key].value for key in RATE_CONFIGS if key in configs and configs[key].value
            }
        return limits

    def fill(self, megabytes: int) -> None:
        producer = Producer({**self.config, "acks": "all", "linger.ms": 20, "log_level": 0})
        partitions = len(self.replicas())
        for number in range(megabytes * 10):
            producer.produce(self.name, random.randbytes(100_000), partition=number % partitions)
            producer.poll(0.01)
        assert producer.flush(120) == 0


@pytest.fixture
def moved(cluster: Servers) -> Iterator[MovedTopic]:
    moved = MovedTopic(cluster)
    yield moved
    moved.kafka().release([moved.topic(1)], "Delete")
    eventually(lambda: moved.limits() == {}, what="no broker has a limit")


@pytest.fixture
def until_done(moved: MovedTopic) -> Callable[..., list[Outcome]]:
    """Return a function that runs passes until one is done, and returns their outcomes."""

    def run(topic: Topic, **more: Any) -> list[Outcome]:
        outcomes: list[Outcome] = []

        def done() -> bool:
            outcomes.append(moved.run_pass(topic, **more))
            return outcomes[-1].rank == Rank.DONE

        eventually(done, seconds=120.0, what="a pass that is done")
        return outcomes

    return run


def test_the_replication_factor_can_be_raised_and_lowered(
    moved: MovedTopic, until_done: Callable[..., list[Outcome]]
) -> None:
    """Each pass reports its progress. Limits are removed at the end, and a further pass changes nothing."""
    moved.make(1)
    moved.fill(1)
    outcomes = until_done(moved.topic(3))
    assert outcomes[0].observed["replicasChange"] == {
        "targetReplicas": 3,
        "state": "ongoing",
        "message": "to 3 replicas of each partition: 0 of 6 partitions done, 6 under way",
    }
    assert outcomes[0].rank == Rank.WAITING
    assert {tuple(sorted(held)) for held in moved.replicas().values()} == {(1, 2, 3)}
    eventually(lambda: moved.leaders() == {1: 2, 2: 2, 3: 2}, what="each broker leads two partitions")
    assert (moved.settings()[IN_SYNC], moved.settings()[THROTTLED_LEADERS], moved.limits()) == ("2", "", {})
    assert "replicasChange" not in outcomes[-1].observed
    assert moved.run_pass(moved.topic(3)).changed == 0
    until_done(moved.topic(2))
    assert {len(held) for held in moved.replicas().values()} == {2}
    assert Counter(broker for held in moved.replicas().values() for broker in held) == {1: 4, 2: 4, 3: 4}
    eventually(lambda: moved.leaders() == {1: 2, 2: 2, 3: 2}, what="each broker leads two partitions")
    assert (moved.settings()[IN_SYNC], moved.settings()[THROTTLED_LEADERS], moved.limits()) == ("1", "", {})
    assert moved.run_pass(moved.topic(2)).changed == 0


def test_a_reverted_spec_cancels_the_reassignment(moved: MovedTopic, until_done: Callable[..., list[Outcome]]) -> None:
    """The throttle is so low that no replica is complete. The former replicas stay, and no limit is left."""
    moved.make(1)
    moved.fill(6)
    before = moved.replicas()
    assert moved.run_pass(moved.topic(3), throttle=SLOW).rank == Rank.WAITING
    eventually(lambda: len(moved.limits()) == 6, what="the limits are set")
    assert set(moved.limits().values()) == {"50000"}
    outcome = moved.run_pass(moved.topic(3), throttle=SLOW)
    assert outcome.message.endswith("to 3 replicas of each partition: 0 of 6 partitions done, 6 under way")
    reverted = until_done(moved.topic(1), throttle=SLOW)
    assert reverted[0].message.endswith("to 1 replica of each partition: reassignment of 6 partitions cancelled")
    assert (moved.replicas(), moved.limits(), moved.settings()[THROTTLED_LEADERS]) == (before, {}, "")


def test_a_change_to_more_replicas_than_brokers_waits(moved: MovedTopic) -> None:
    """The status has the number of brokers, and no replica moves."""
    moved.make(1)
    outcome = moved.run_pass(moved.topic(4))
    assert outcome.rank == Rank.WAITING
    assert outcome.observed["replicasChange"] == {
        "targetReplicas": 4,
        "state": "pending",
        "message": "to 4 replicas of each partition: needs 4 brokers, but only 3 can hold them",
    }


def test_partitions_and_replicas_can_grow_at_the_same_time(
    moved: MovedTopic, until_done: Callable[..., list[Outcome]]
) -> None:
    moved.make(1, 3)
    until_done(moved.topic(3, 8))
    assert {len(held) for held in moved.replicas().values()} == {3}
    assert len(moved.replicas()) == 8
    assert moved.run_pass(moved.topic(3, 8)).changed == 0


def test_replicas_stay_if_the_spec_names_no_number(moved: MovedTopic) -> None:
    moved.make(2)
    before = moved.replicas()
    assert moved.run_pass(moved.topic(2, enforces_replication=False)).changed == 0
    assert moved.run_pass(moved.topic(1, enforces_replication=False, managed=False)).rank == Rank.DONE
    assert moved.replicas() == before


def test_replicas_are_spread_over_a_new_broker_and_off_a_leaving_one(
    moved: MovedTopic, until_done: Callable[..., list[Outcome]]
) -> None:
    """Without a request to spread them, uneven replicas stay."""
    moved.make(2, 6, [[1, 2], [2, 1]] * 3)
    assert moved.run_pass(moved.topic(2)).changed == 0
    until_done(moved.topic(2), spread=Spread())
    assert Counter(broker for held in moved.replicas().values() for broker in held) == {1: 4, 2: 4, 3: 4}
    eventually(lambda: moved.leaders() == {1: 2, 2: 2, 3: 2}, what="each broker leads two partitions")
    until_done(moved.topic(2), spread=Spread(frozenset({3})))
    assert {broker for held in moved.replicas().values() for broker in held} == {1, 2}
    assert moved.limits() == {}


def test_the_offsets_topic_gets_more_replicas_only_if_the_platform_says_so(moved: MovedTopic) -> None:
    """The topic never gets fewer replicas than it has."""
    consumer = Consumer({**moved.config, "group.id": moved.name})
    moved.make(1)
    try:
        consumer.commit(offsets=[TopicPartition(moved.name, 0, 0)], asynchronous=False)
    finally:
        consumer.close()
    offsets = "__consumer_offsets"

    def factors() -> set[int]:
        described = moved.admin.describe_topics(TopicCollection([offsets]))[offsets].result(20)
        return {len(partition.replicas) for partition in described.partitions}

    def factors_after_a_pass(replicas: int) -> set[int]:
        KafkaTopics(moved.cluster.kafka, offsets_replicas=replicas).ensure([moved.topic(1)])
        return factors()

    with open_reassignments(moved.config, 15.0) as moving:
        moving.move(offsets, {number: [1] for number in range(4)})
    eventually(lambda: factors() == {1}, what="one replica")
    assert factors_after_a_pass(0) == {1}
    eventually(lambda: factors_after_a_pass(2) == {2}, seconds=90.0, what="two replicas")
    eventually(lambda: factors_after_a_pass(3) == {3}, seconds=90.0, what="three replicas")
    eventually(
        lambda: not moved.kafka().configs([offsets])[offsets][THROTTLED_LEADERS] or factors_after_a_pass(3) == set(),
        what="the mark of the change is removed",
    )
    assert factors_after_a_pass(2) == {3}


class Killed(BaseException):
    """Ends a pass as a kill of the operator does."""


def kill_after(writes: int, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Let the operator be killed after this number of writes to Kafka; return the list of its writes."""
    written: list[str] = []

    def note(what: str) -> None:
        written.append(what)
        if len(written) == writes:
            raise Killed

    set_configs, move, elect = KafkaSession.set_configs, Reassignments.move, Replication._elect

    def set_and_note(self: KafkaSession, kind: ResourceType, name: str, configs: Mapping[str, str | None]) -> bool:
        changed = set_configs(self, kind, name, configs)
        note(f"{kind.name} {', '.join(configs)}")
        return changed

    def move_and_note(self: Reassignments, topic: str, replicas: Mapping[int, Any]) -> None:
        move(self, topic, replicas)
        note("move")

    def elect_and_note(self: Replication, topic: str, partitions: tuple[int, ...]) -> int:
        elect(self, topic, partitions)
        note("elect")
        return 1

    monkeypatch.setattr(KafkaSession, "set_configs", set_and_note)
    monkeypatch.setattr(Reassignments, "move", move_and_note)
    monkeypatch.setattr(Replication, "_elect", elect_and_note)
    return written


def test_a_change_that_is_killed_after_any_write_is_completed_by_later_passes(cluster: Servers) -> None:
    """The completed change leaves neither limits nor marks."""
    for writes in range(1, 100):
        moved = MovedTopic(cluster)
        moved.make(1, 2, [[1], [1]])
        with pytest.MonkeyPatch.context() as monkeypatch:
            written = kill_after(writes, monkeypatch)

            def ended(moved: MovedTopic = moved) -> bool:
                try:
                    return moved.run_pass(moved.topic(2, 2)).rank == Rank.DONE
                except Killed:
                    return True

            eventually(ended, seconds=60.0, what="the operator is killed or done")
        killed = len(written) == writes
        eventually(lambda moved=moved: moved.run_pass(moved.topic(2, 2)).rank == Rank.DONE, seconds=60.0, what="done")
        eventually(
            lambda moved=moved: moved.run_pass(moved.topic(2, 2)).changed == 0, what="a pass that changes nothing"
        )
        assert {len(held) for held in moved.replicas().values()} == {2}
        eventually(lambda moved=moved: set(moved.leaders().values()) == {1}, what=f"both brokers lead after {written}")
        assert (moved.settings()[THROTTLED_LEADERS], moved.limits()) == ("", {}), written
        moved.kafka().release([moved.topic(2, 2)], "Delete")
        if not killed:
            print(f"{len(written)} writes: {written}")
            assert len(written) >= 6
            return
    pytest.fail("no operator was done without a kill")


def test_a_change_continues_when_a_killed_broker_runs_again(
    moved: MovedTopic, cluster: Servers, until_done: Callable[..., list[Outcome]]
) -> None:
    """Meanwhile the passes name the broker. Limits that an administrator sets stay."""
    moved.make(1, 6, [[1]] * 6)
    moved.fill(6)
    moved.run_pass(moved.topic(3), throttle=SLOW)
    cluster.handles["kafka-3"].kill()
    try:

        def named() -> bool:
            try:
                outcome = moved.run_pass(moved.topic(3), throttle=SLOW)
            except TidemillError as error:  # the brokers elect a new controller
                if error.reason != Reason.UNREACHABLE:
                    raise
                return False
            assert outcome.rank == Rank.WAITING or outcome.reason == Reason.UNREACHABLE
            return "broker 3 does not answer" in outcome.message

        eventually(named, seconds=120.0, what="a pass names the broker")
    finally:
        cluster.handles["kafka-3"].start()
    for broker in ("1", "2", "3"):  # an administrator raises the limits
        KafkaSession(cluster.kafka, {}, 15.0).set_configs(
            ResourceType.BROKER, broker, dict.fromkeys(RATE_CONFIGS, "9000000")
        )
    until_done(moved.topic(3), throttle=SLOW)
    assert {tuple(sorted(held)) for held in moved.replicas().values()} == {(1, 2, 3)}
    assert set(moved.limits().values()) == {"9000000"}
    for broker in ("1", "2", "3"):
        KafkaSession(cluster.kafka, {}, 15.0).set_configs(ResourceType.BROKER, broker, dict.fromkeys(RATE_CONFIGS))
