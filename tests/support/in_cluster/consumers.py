"""Consumers that replace the processors or stages of a pipeline in tests without nodes."""

from __future__ import annotations

import contextlib
import threading
from dataclasses import dataclass, field
from typing import Any

import psycopg
from confluent_kafka import Consumer, KafkaException, Producer, TopicPartition
from psycopg import sql

from in_cluster.cluster import Cluster, eventually
from tidemill_contract import names
from tidemill_operator.actuators.kafka.offsets import LATEST, OffsetReader
from tidemill_operator.errors import TidemillError
from tidemill_operator.keys import Key


@dataclass
class Consumers:
    """Members of the consumer group of a pipeline: one for each ready pod of the component.

    Positions move only in `work_off`.
    """

    cluster: Cluster
    servers: Any
    key: Key
    partitions: int
    component: str = "processor"
    consumers: list[Consumer] = field(default_factory=list)

    @property
    def topic(self) -> str:
        return f"{self.key.namespace}.{self.key.name}.events"

    def run(self, stopping: threading.Event) -> None:
        """Adjust the number of consumers to the number of ready pods until `stopping` is set."""
        while not stopping.is_set():
            try:
                live = self.cluster.child(self.key.namespace, "Deployment", f"{self.key.name}-{self.component}")
            except TidemillError:
                continue
            ready = int(live.get("status", {}).get("readyReplicas", 0)) if live else 0
            while len(self.consumers) < ready:
                self.consumers.append(self._member())
            while len(self.consumers) > ready:
                self.consumers.pop().close()
            for consumer in self.consumers:
                consumer.poll(0.05)
            stopping.wait(0.1)
        for consumer in self.consumers:
            consumer.close()

    def _member(self) -> Consumer:
        reader = ("stage",) if self.component == "stage" else ()
        group = names.consumer_group(self.key.namespace, self.key.name, *reader)
        at = {"bootstrap.servers": self.servers.kafka, "group.id": group, "enable.auto.commit": False, "log_level": 0}
        consumer = Consumer(at)
        consumer.subscribe([self.topic])
        return consumer

    def send(self, count: int) -> None:
        """Send `count` events to each partition."""
        producer = Producer({"bootstrap.servers": self.servers.kafka})
        for number in range(count * self.partitions):
            producer.produce(self.topic, b"{}", partition=number % self.partitions)
        assert producer.flush(30.0) == 0

    def work_off(self) -> None:
        """Move the position of each partition to its end."""
        places = [(self.topic, partition) for partition in range(self.partitions)]
        ends = OffsetReader(self.servers.kafka).offsets(places, LATEST).at
        if self.component == "stage":
            read = [TopicPartition(topic, partition, end) for (topic, partition), end in ends.items()]
            eventually(lambda: self._committed(read), what="the positions are committed")
            return
        table = sql.Identifier(names.schema(self.key.namespace, self.key.name), "_offsets")
        moved = sql.SQL("UPDATE {} SET next_offset = %s, consumed = %s WHERE reader = 'live' AND partition = %s")
        with psycopg.connect(self.servers.postgres.url) as session:
            for (_, partition), end in ends.items():
                session.execute(moved.format(table), (end, end, partition))

    def _committed(self, read: list[TopicPartition]) -> bool:
        with contextlib.suppress(KafkaException):  # the group is rebalancing
            self.consumers[0].commit(offsets=read, asynchronous=False)
            return True
        return False
