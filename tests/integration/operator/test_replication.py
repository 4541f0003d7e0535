"""Replication factors of live topics on three real brokers: up, down, called back, spread anew; a step a pass."""

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
from tidemill_operator.actuators.kafka.moves import KafkaMoves, moves
from tidemill_operator.actuators.kafka.replication import RATES, Replication
from tidemill_operator.actuators.kafka.session import KafkaSession
from tidemill_operator.actuators.kafka.topics import KafkaTopics
from tidemill_operator.errors import Reason, TidemillError
from tidemill_operator.laptop.servers import Servers
from tidemill_operator.outcome import Outcome, Rank
from tidemill_operator.plan.kafka.replication import IN_SYNC, LEADERS, Spread
from tidemill_operator.plan.model import Topic
from waiting import eventually

pytestmark = [pytest.mark.integration, pytest.mark.slow]

THROTTLE, SLOW = 20_000_000, 50_000


@pytest.fixture(scope="module")
def cluster(own_servers: Callable[..., Servers]) -> Servers:
    return own_servers(needs=("kafka",), brokers=3)


def test_a_topic_is_gone_only_if_all_brokers_answer_so(cluster: Servers) -> None:
    """A broker that hangs may know the topic."""
    topics, admin, name = KafkaTopics(cluster.kafka, timeout_seconds=3.0), KafkaAdmin(cluster.kafka), "gone.orders"
    admin.create(name, replicas=3)
    assert topics.gone([name, "gone.never"]) == {"gone.never"}
    admin.delete(name)
    assert topics.gone([name]) == {name}
    pid = cluster.handles["kafka-2"].pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    try:
        assert topics.gone([name]) == frozenset()
    finally:
        os.kill(pid, signal.SIGCONT)
    eventually(lambda: topics.gone([name]) == {name}, what="all brokers answer again")


class World:
    """A topic on three brokers, and the operator's hand on it."""

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
        # A broker answers with the defaults until it has heard of what was set; which one answers is left to chance.
        eventually(lambda: all(self.heard(client, config) for client in 3 * self.each), what="and its settings")

    def heard(self, client: AdminClient, config: Mapping[str, str]) -> bool:
        asked = ConfigResource(ResourceType.TOPIC, self.name)
        try:
            told = client.describe_configs([asked])[asked].result(20)
        except (KafkaException, TimeoutError):
            return False
        return all(told[key].value == value for key, value in config.items())

    def kafka(self, throttle: int = THROTTLE) -> KafkaTopics:
        """A new one each time: nothing is remembered from pass to pass."""
        return KafkaTopics(self.cluster.kafka, throttle_bytes=throttle)

    def a_pass(self, topic: Topic, *, spread: Spread | None = None, throttle: int = THROTTLE) -> Outcome:
        (found,) = self.kafka(throttle).ensure([topic], spread=spread)
        if topic.managed:
            with contextlib.suppress(KafkaException, TimeoutError):  # a broker may just have died
                described = self.admin.describe_topics(TopicCollection([self.name]))[self.name].result(20)
                fewest = min(len(partition.isr) for partition in described.partitions)
                assert int(self.settings()[IN_SYNC]) <= fewest, "writes would be refused"
        return found

    def described(self) -> Any:
        """The topic, when all brokers know it: each is asked in turn, and learns of a new one a little later."""

        def known() -> Any:
            found = []
            for broker in self.each:
                try:
                    found.append(broker.describe_topics(TopicCollection([self.name]))[self.name].result(20))
                except (KafkaException, TimeoutError):
                    return None
            return found[0]

        return eventually(known, what="the topic is known")

    def replicas(self) -> dict[int, tuple[int, ...]]:
        return {p.id: tuple(node.id for node in p.replicas) for p in self.described().partitions}

    def leaders(self) -> Counter[int]:
        return Counter(p.leader.id for p in self.described().partitions)

    def settings(self) -> Mapping[str, str]:
        return self.kafka().configs([self.name])[self.name]

    def limits(self) -> dict[str, str]:
        """The limits of replication that the brokers have."""
        found: dict[str, str] = {}
        for broker in ("1", "2", "3"):
            asked = ConfigResource(ResourceType.BROKER, broker)
            told = self.admin.describe_configs([asked])[asked].result(20)
            found |= {f"{broker} {key}": told[key].value for key in RATES if key in told and told[key].value}
        return found

    def fill(self, megabytes: int) -> None:
        producer = Producer({**self.config, "acks": "all", "linger.ms": 20, "log_level": 0})
        partitions = len(self.replicas())
        for number in range(megabytes * 10):
            producer.produce(self.name, random.randbytes(100_000), partition=number % partitions)
            producer.poll(0.01)
        assert producer.flush(120) == 0


@pytest.fixture
def world(cluster: Servers) -> Iterator[World]:
    made = World(cluster)
    yield made
    made.kafka().release([made.topic(1)], "Delete")
    eventually(lambda: made.limits() == {}, what="no limit is left on any broker")


@pytest.fixture
def until_done(world: World) -> Callable[..., list[Outcome]]:
    """Pass after pass until all is as it should be; what each told."""

    def run(topic: Topic, **more: Any) -> list[Outcome]:
        told: list[Outcome] = []

        def done() -> bool:
            told.append(world.a_pass(topic, **more))
            return told[-1].rank == Rank.DONE

        eventually(done, seconds=120.0, what="a pass that leaves nothing to do")
        return told

    return run


def test_one_to_three_to_two(world: World, until_done: Callable[..., list[Outcome]]) -> None:
    """Each pass tells how far it is; the limits are there meanwhile and gone afterwards; a last pass writes nothing."""
    world.make(1)
    world.fill(1)
    told = until_done(world.topic(3))
    assert told[0].observed["replicasChange"] == {
        "targetReplicas": 3,
        "state": "ongoing",
        "message": "to 3 replicas of each partition: 0 of 6 partitions done, 6 under way",
    }
    assert told[0].rank == Rank.WAITING
    assert {tuple(sorted(held)) for held in world.replicas().values()} == {(1, 2, 3)}
    eventually(lambda: world.leaders() == {1: 2, 2: 2, 3: 2}, what="each leads two")
    assert (world.settings()[IN_SYNC], world.settings()[LEADERS], world.limits()) == ("2", "", {})
    assert "replicasChange" not in told[-1].observed
    assert world.a_pass(world.topic(3)).changed == 0
    until_done(world.topic(2))
    assert {len(held) for held in world.replicas().values()} == {2}
    assert Counter(broker for held in world.replicas().values() for broker in held) == {1: 4, 2: 4, 3: 4}
    eventually(lambda: world.leaders() == {1: 2, 2: 2, 3: 2}, what="each leads two")
    assert (world.settings()[IN_SYNC], world.settings()[LEADERS], world.limits()) == ("1", "", {})
    assert world.a_pass(world.topic(2)).changed == 0


def test_a_spec_that_goes_back_calls_back_what_moves(world: World, until_done: Callable[..., list[Outcome]]) -> None:
    """Slowed so far that nothing can have arrived; then all is as before, and no limit is left."""
    world.make(1)
    world.fill(6)
    before = world.replicas()
    assert world.a_pass(world.topic(3), throttle=SLOW).rank == Rank.WAITING
    eventually(lambda: len(world.limits()) == 6, what="the limits are set")
    assert set(world.limits().values()) == {"50000"}
    told = world.a_pass(world.topic(3), throttle=SLOW)
    assert told.message.endswith("to 3 replicas of each partition: 0 of 6 partitions done, 6 under way")
    back = until_done(world.topic(1), throttle=SLOW)
    assert back[0].message.endswith("to 1 replica of each partition: reassignment of 6 partitions cancelled")
    assert (world.replicas(), world.limits(), world.settings()[LEADERS]) == (before, {}, "")


def test_more_replicas_than_brokers(world: World) -> None:
    """Told with the number of brokers there are; nothing moves."""
    world.make(1)
    told = world.a_pass(world.topic(4))
    assert told.rank == Rank.WAITING
    assert told.observed["replicasChange"] == {
        "targetReplicas": 4,
        "state": "pending",
        "message": "to 4 replicas of each partition: needs 4 brokers, but only 3 can hold them",
    }


def test_partitions_and_replicas_grow_at_once(world: World, until_done: Callable[..., list[Outcome]]) -> None:
    world.make(1, 3)
    until_done(world.topic(3, 8))
    assert {len(held) for held in world.replicas().values()} == {3}
    assert len(world.replicas()) == 8
    assert world.a_pass(world.topic(3, 8)).changed == 0


def test_unless_asked_for_replicas_stay(world: World) -> None:
    """A topic that somebody gave other replicas is left so if the spec names no number."""
    world.make(2)
    before = world.replicas()
    assert world.a_pass(world.topic(2, replicated=False)).changed == 0
    assert world.a_pass(world.topic(1, replicated=False, managed=False)).rank == Rank.DONE
    assert world.replicas() == before


def test_replicas_are_spread_over_a_new_broker_and_off_a_leaving_one(
    world: World, until_done: Callable[..., list[Outcome]]
) -> None:
    """Only when asked to: what lies badly stays otherwise."""
    world.make(2, 6, [[1, 2], [2, 1]] * 3)
    assert world.a_pass(world.topic(2)).changed == 0
    until_done(world.topic(2), spread=Spread())
    assert Counter(broker for held in world.replicas().values() for broker in held) == {1: 4, 2: 4, 3: 4}
    eventually(lambda: world.leaders() == {1: 2, 2: 2, 3: 2}, what="each leads two")
    until_done(world.topic(2), spread=Spread(frozenset({3})))
    assert {broker for held in world.replicas().values() for broker in held} == {1, 2}
    assert world.limits() == {}


def test_kafkas_own_topic_follows_only_if_the_platform_says_so(world: World) -> None:
    """It is brought to the platform's number, and never given fewer replicas than it has."""
    consumer = Consumer({**world.config, "group.id": world.name})
    world.make(1)
    try:
        consumer.commit(offsets=[TopicPartition(world.name, 0, 0)], asynchronous=False)
    finally:
        consumer.close()
    offsets = "__consumer_offsets"

    def factors() -> set[int]:
        described = world.admin.describe_topics(TopicCollection([offsets]))[offsets].result(20)
        return {len(partition.replicas) for partition in described.partitions}

    def follows(replicas: int) -> set[int]:
        KafkaTopics(world.cluster.kafka, offsets_replicas=replicas).ensure([world.topic(1)])
        return factors()

    with moves(world.config, 15.0) as moving:
        moving.move(offsets, {number: [1] for number in range(4)})
    eventually(lambda: factors() == {1}, what="one replica")
    assert follows(0) == {1}
    eventually(lambda: follows(2) == {2}, seconds=90.0, what="two replicas")
    eventually(lambda: follows(3) == {3}, seconds=90.0, what="three replicas")
    eventually(lambda: not world.kafka().configs([offsets])[offsets][LEADERS] or follows(3) == set(), what="no mark")
    assert follows(2) == {3}


class Killed(BaseException):
    """The operator is gone."""


def killed_after(writes: int, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """From now on the operator dies right after its n-th write to Kafka; the writes it made."""
    made: list[str] = []

    def note(what: str) -> None:
        made.append(what)
        if len(made) == writes:
            raise Killed

    set_configs, move, elect = KafkaSession.set_configs, KafkaMoves.move, Replication._elect

    def set_and_note(self: KafkaSession, kind: ResourceType, name: str, configs: Mapping[str, str | None]) -> bool:
        shown = set_configs(self, kind, name, configs)
        note(f"{kind.name} {', '.join(configs)}")
        return shown

    def move_and_note(self: KafkaMoves, topic: str, wanted: Mapping[int, Any]) -> None:
        move(self, topic, wanted)
        note("move")

    def elect_and_note(self: Replication, topic: str, partitions: tuple[int, ...]) -> int:
        elect(self, topic, partitions)
        note("elect")
        return 1

    monkeypatch.setattr(KafkaSession, "set_configs", set_and_note)
    monkeypatch.setattr(KafkaMoves, "move", move_and_note)
    monkeypatch.setattr(Replication, "_elect", elect_and_note)
    return made


def test_killed_after_every_single_write(cluster: Servers) -> None:
    """Whichever write was the last one, the next operator comes to the same end, and leaves nothing behind."""
    for writes in range(1, 100):
        world = World(cluster)
        world.make(1, 2, [[1], [1]])
        with pytest.MonkeyPatch.context() as monkeypatch:
            made = killed_after(writes, monkeypatch)

            def dies(world: World = world) -> bool:
                try:
                    return world.a_pass(world.topic(2, 2)).rank == Rank.DONE
                except Killed:
                    return True

            eventually(dies, seconds=60.0, what="it dies or is done")
        died = len(made) == writes
        eventually(lambda world=world: world.a_pass(world.topic(2, 2)).rank == Rank.DONE, seconds=60.0, what="done")
        eventually(lambda world=world: world.a_pass(world.topic(2, 2)).changed == 0, what="a pass that writes nothing")
        assert {len(held) for held in world.replicas().values()} == {2}
        eventually(lambda world=world: set(world.leaders().values()) == {1}, what=f"two lead after {made}")
        assert (world.settings()[LEADERS], world.limits()) == ("", {}), made
        world.kafka().release([world.topic(2, 2)], "Delete")
        if not died:
            print(f"{len(made)} writes: {made}")
            assert len(made) >= 6
            return
    pytest.fail("it never came to an end by itself")


def test_a_broker_dies_while_replicas_go_to_it(
    world: World, cluster: Servers, until_done: Callable[..., list[Outcome]]
) -> None:
    """The passes go on and name it; when it is back, the change is completed."""
    world.make(1, 6, [[1]] * 6)
    world.fill(6)
    world.a_pass(world.topic(3), throttle=SLOW)
    cluster.handles["kafka-3"].kill()
    try:

        def named() -> bool:
            try:
                told = world.a_pass(world.topic(3), throttle=SLOW)
            except TidemillError as error:  # brokers are finding a new controller
                if error.reason != Reason.UNREACHABLE:
                    raise
                return False
            assert told.rank == Rank.WAITING or told.reason == Reason.UNREACHABLE
            return "broker 3 does not answer" in told.message

        eventually(named, seconds=120.0, what="the broker is named")
    finally:
        cluster.handles["kafka-3"].start()
    for broker in ("1", "2", "3"):  # somebody lets it run faster; what they set is theirs
        KafkaSession(cluster.kafka, {}, 15.0).set_configs(ResourceType.BROKER, broker, dict.fromkeys(RATES, "9000000"))
    until_done(world.topic(3), throttle=SLOW)
    assert {tuple(sorted(held)) for held in world.replicas().values()} == {(1, 2, 3)}
    assert set(world.limits().values()) == {"9000000"}
    for broker in ("1", "2", "3"):
        KafkaSession(cluster.kafka, {}, 15.0).set_configs(ResourceType.BROKER, broker, dict.fromkeys(RATES))
