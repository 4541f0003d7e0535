"""Tests of a pipeline with a list or a pattern of topics, on a real Kafka and Postgres.

Real processors are killed, and topics are added, removed and grown. Each event is counted once, by topic and partition.
"""

from __future__ import annotations

import json
import os
import re
import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from confluent_kafka import Consumer, Producer, TopicPartition
from confluent_kafka.admin import AdminClient

from kafka_admin import KafkaAdmin
from pipelines.local_pipeline import LocalPipeline
from tidemill_contract.resource.kinds.kafka import KafkaSpec
from tidemill_operator.actuators.kafka.clusters import Clusters
from tidemill_operator.laptop.servers import Servers
from waiting import eventually

pytestmark = pytest.mark.integration

EU, US, ASIA = (f"listed.{region}" for region in ("eu", "us", "asia"))
DOCUMENT: dict[str, Any] = {
    "apiVersion": "tidemill.dev/v1alpha1",
    "kind": "AnalyticsPipeline",
    "metadata": {"name": "orders", "namespace": "listed", "uid": "uid-1", "generation": 1},
    "spec": {
        "source": {
            "topic": {"managed": False, "startFrom": "latest"},
            "topics": [EU, US],
            "fields": [
                {"name": "sent_to", "type": "string", "required": True},
                {"name": "number", "type": "integer"},
                {"name": "part", "type": "integer", "from": "partition"},
            ],
        },
        "aggregations": [
            {
                "name": "by_place",
                "groupBy": ["sent_to", "part"],
                "window": {"type": "tumbling", "size": "1d"},
                "metrics": [{"name": "numbers", "function": "sum", "field": "number"}],
            }
        ],
        "processor": {"replicas": 2, "flushInterval": "100ms"},
        "api": {"enabled": False},
    },
}
Counts = dict[tuple[str, int], tuple[int, int]]


class Sender:
    """Sends numbered events, and counts the events that Kafka has acknowledged, by topic and partition."""

    def __init__(self, brokers: str) -> None:
        self._brokers, self._topics = brokers, set[tuple[str, int]]()
        self._number, self._lock = 0, threading.Lock()
        self.counts, self.sums = Counter[tuple[str, int]](), Counter[tuple[str, int]]()

    def send(self, topic: str, partitions: int, events: int) -> None:
        """Send events to all partitions in turn, and wait until Kafka has acknowledged them."""
        with self._lock:
            # An earlier client may not know the new partitions of a topic yet.
            if (topic, partitions) not in self._topics:
                self._topics.add((topic, partitions))
                self._producer = Producer({"bootstrap.servers": self._brokers, "acks": "all", "log_level": 0})
            for index in range(events):
                self._number += 1
                self._send(topic, index % partitions, self._number)
            self._producer.flush(30.0)

    def _send(self, topic: str, partition: int, number: int) -> None:
        def delivered(error: Any, _: Any) -> None:
            assert error is None, error
            self.counts[topic, partition] += 1
            self.sums[topic, partition] += number

        value = json.dumps({"sent_to": topic, "number": number}).encode()
        self._producer.produce(topic, value, partition=partition, on_delivery=delivered)
        self._producer.poll(0)

    def expected(self) -> Counts:
        """Return the expected counts and sums by topic and partition."""
        return {place: (count, self.sums[place]) for place, count in self.counts.items()}


class Listed:
    """The pipeline, its topics, and the sender of its events."""

    def __init__(self, local: LocalPipeline, servers: Servers) -> None:
        self.local, self.servers = local, servers
        self.kafka, self.sender = KafkaAdmin(servers.kafka), Sender(servers.kafka)

    def counted(self) -> Counts:
        """Return the stored counts and sums by topic and partition."""
        rows = self.local.query(
            "SELECT sent_to, part, sum(_count), sum(_sum_number) FROM {s}.by_place_v1 GROUP BY 1, 2"
        )
        return {(topic, int(part)): (int(count), int(total)) for topic, part, count, total in rows}

    def await_exact(self, *, passes: bool = False) -> None:
        """Wait until the stored counts equal the expected counts. With `passes`, reconcile meanwhile."""

        def exact() -> bool:
            if passes:
                self.local.reconcile()
            return self.counted() == self.sender.expected()

        eventually(exact, seconds=120.0, what=lambda: f"equal counts: {self.counted()} != {self.sender.expected()}")

    def edit(self, topics: list[str]) -> None:
        """Change the list of topics, and reconcile."""
        self.local.document["spec"]["source"]["topics"] = topics
        self.local.document["metadata"]["generation"] += 1
        self.local.reconcile()

    def processors(self) -> dict[str, int]:
        """Return the process ids of the running processors by name."""
        return {name: pid for name, pid in self.local.pids().items() if name.startswith("processor") and pid}

    def await_start(self) -> None:
        """Start the pipeline, send events to each partition, and wait until all events are counted."""
        self.local.settle()
        query = "SELECT count(*) FROM {s}._offsets WHERE topic_id IS NOT NULL"
        eventually(lambda: self.local.query(query) == [(5,)], what="all partitions are read")
        self.sender.send(EU, 2, 100)
        self.sender.send(US, 3, 90)
        self.await_exact()

    def await_reading(self, *topics: str) -> None:
        """Wait until both processors read these topics and no others."""
        logs = [self.local.folder / "logs" / f"listed.orders-processor-{number}.log" for number in (0, 1)]

        def latest() -> list[list[str]]:
            return [re.findall(r"topics: ((?:listed\.\w+(?:, )?)+)", log.read_text())[-1].split(", ") for log in logs]

        eventually(lambda: latest() == [list(topics)] * 2, what=lambda: f"{topics} are read: {latest()}")

    def total(self) -> int:
        """Return the number of counted events."""
        return sum(count for count, _ in self.counted().values())

    def letter(self, topic: str, partition: int) -> tuple[str, str]:
        """Send an invalid record, and return the topic and the partition that its dead letter names."""
        brokers, letters = {"bootstrap.servers": self.servers.kafka, "log_level": 0}, "listed.orders.dead-letters"
        producer = Producer(brokers)
        producer.produce(topic, b"no event", partition=partition)
        producer.flush(30.0)
        consumer = Consumer({**brokers, "group.id": "listed-letters"})
        try:
            partitions = consumer.list_topics(letters, timeout=30.0).topics[letters].partitions
            consumer.assign([TopicPartition(letters, number, 0) for number in partitions])
            letter = eventually(lambda: next(iter(consumer.consume(1, 1.0)), None), what="a dead letter")
        finally:
            consumer.close()
        headers = {name: value.decode() for name, value in letter.headers() or ()}
        return headers["topic"], headers["partition"]

    def slots(self) -> dict[tuple[str, int], int]:
        """Return the slots by topic and partition."""
        rows = self.local.query("SELECT topic, partition, slot FROM {s}._slots")
        return {(topic, partition): slot for topic, partition, slot in rows}


@pytest.fixture
def listed(make_local: Callable[[dict[str, Any]], LocalPipeline], servers: Servers) -> Iterator[Listed]:
    admin = KafkaAdmin(servers.kafka)
    admin.create(EU, 2)
    admin.create(US, 3)
    yield Listed(make_local(DOCUMENT), servers)
    client = AdminClient({"bootstrap.servers": servers.kafka, "log_level": 0})
    for future in client.delete_topics([EU, US, ASIA]).values():
        future.exception(30.0)


def test_events_of_all_topics_count_once(listed: Listed) -> None:
    """Processors are killed while events arrive. Then a topic gets more partitions, and a topic is added."""
    local, sender = listed.local, listed.sender
    listed.await_start()
    stop = threading.Event()

    def keep_sending() -> None:
        while not stop.is_set():
            sender.send(EU, 2, 200)
            sender.send(US, 3, 300)

    thread = threading.Thread(target=keep_sending, daemon=True)
    thread.start()
    before, counted = listed.processors(), listed.total()
    os.kill(next(iter(before.values())), signal.SIGKILL)
    eventually(
        lambda: len(now := listed.processors()) == 2 and now != before and listed.total() > counted,
        what="another process counts events",
    )
    for pid in listed.processors().values():
        os.kill(pid, signal.SIGKILL)
    stop.set()
    thread.join(30.0)
    listed.await_exact()
    assert local.query("SELECT count(*) FROM {s}._dead_letters") == [(0,)]

    before = eventually(lambda: len(now := listed.processors()) == 2 and now, what="both processors run")
    slots = listed.slots()
    assert slots == {(EU, 0): 0, (EU, 1): 1, (US, 0): 2, (US, 1): 3, (US, 2): 4}
    listed.kafka.grow(EU, 4)
    sender.send(EU, 4, 400)
    listed.await_exact(passes=True)

    # The added topic is read from its start although `startFrom` is `latest`. Processors keep running.
    listed.kafka.create(ASIA, 1)
    sender.send(ASIA, 1, 500)
    listed.edit([EU, US, ASIA])
    listed.await_exact(passes=True)
    assert listed.processors() == before
    assert listed.slots() == slots | {(EU, 2): 5, (EU, 3): 6, (ASIA, 0): 7}
    assert local.query("SELECT count(*) FROM {s}._lost") == [(0,)]


def test_a_new_topic_that_the_pattern_matches_is_counted_from_its_start(listed: Listed) -> None:
    """Processors keep running. The pattern matches the pipeline's output topics too, but they are not read."""
    local, sender = listed.local, listed.sender
    del local.document["spec"]["source"]["topics"]
    local.document["spec"]["source"]["topicPattern"] = r"listed\..+"
    listed.await_start()
    before, slots = listed.processors(), listed.slots()
    assert slots == {(EU, 0): 0, (EU, 1): 1, (US, 0): 2, (US, 1): 3, (US, 2): 4}
    listed.kafka.create(ASIA, 2)
    sender.send(ASIA, 2, 500)
    sender.send(EU, 2, 50)
    listed.await_exact(passes=True)
    assert listed.processors() == before
    assert listed.slots() == slots | {(ASIA, 0): 5, (ASIA, 1): 6}
    assert local.query("SELECT count(*) FROM {s}._lost") == [(0,)]
    assert local.query("SELECT count(*) FROM {s}._dead_letters") == [(0,)]
    # The operator lists the topics of another cluster with a client of that cluster.
    topics = Clusters(lambda *_: {}).names("listed", KafkaSpec(bootstrap_servers=listed.servers.kafka))
    assert {EU, US, ASIA, "listed.orders.dead-letters"} <= set(topics)


@pytest.mark.matrix
def test_the_other_topics_are_counted_while_a_topic_is_removed_or_deleted(listed: Listed) -> None:
    """A topic is removed from the list and added again, and is then deleted and created again."""
    local, sender = listed.local, listed.sender
    listed.await_start()
    listed.edit([EU])
    listed.await_reading(EU)
    sender.send(US, 3, 30)
    sender.send(EU, 2, 40)
    before, expected = listed.counted(), sender.expected()
    eventually(
        lambda: all(listed.counted()[EU, part] == expected[EU, part] for part in (0, 1)),
        what="the remaining topic is counted",
    )
    assert all(listed.counted()[US, part] == before[US, part] != expected[US, part] for part in range(3))
    listed.edit([EU, US])
    listed.await_exact(passes=True)
    assert local.query("SELECT count(*) FROM {s}._lost") == [(0,)]

    client = AdminClient({"bootstrap.servers": listed.servers.kafka, "log_level": 0})
    client.delete_topics([US])[US].result(30.0)
    eventually(
        lambda: "DataLoss" in {c["reason"] for c in (local.reconcile(), local.status)[1]["conditions"]},  # type: ignore[index]
        what="the deleted topic is reported",
    )
    assert f"topic {US} is gone" in local.message("TopicsReady")
    sender.send(EU, 2, 100)
    listed.await_exact()
    # The topic is created again with fewer partitions, and with other events at the same offsets.
    listed.kafka.create(US, 2)
    sender.send(US, 2, 40)
    listed.await_exact(passes=True)
    assert "EventsLost" in local.reconcile()
    assert US in local.message("EventsLost")
    assert listed.letter(US, 1) == (US, "1")
