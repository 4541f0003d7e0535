"""What an observer and the scaler read of a pipeline while its brokers are restarted."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable, Iterator

import psycopg
import pytest
from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient

from kafka_admin import KafkaAdmin
from running.hanging import frozen
from tidemill_operator.actuators.kafka.log import KafkaLog
from tidemill_operator.errors import TidemillError
from tidemill_operator.keys import Key
from tidemill_operator.laptop.servers import Servers
from tidemill_operator.observer.figures import FRESH_SECONDS, Figures, Observation
from tidemill_operator.observer.observer import KAFKA_SECONDS, Observer
from tidemill_operator.observer.scaling_figures import FiguresReader, Watched
from waiting import eventually

pytestmark = pytest.mark.integration

KEY, SCHEMA = Key("shop", "watched", "u"), "shop__watched"
PARTITIONS = 6
# From the end of a fault to figures that are right: a round that has begun, and one more.
SOON_SECONDS = 15.0
TABLES = f"""
CREATE SCHEMA {SCHEMA};
CREATE TABLE {SCHEMA}._readers (reader text, watermark bigint);
CREATE TABLE {SCHEMA}._offsets (reader text, partition int, next_offset bigint, consumed bigint, freshness_ms bigint,
                                last_event_at timestamptz, end_confirmed_at timestamptz);
INSERT INTO {SCHEMA}._readers VALUES ('live', NULL);
INSERT INTO {SCHEMA}._offsets SELECT 'live', n, 0, 0, NULL, now() FROM generate_series(0, {PARTITIONS - 1}) n;
"""


class World:
    """A pipeline that nobody processes, watched every second."""

    def __init__(self, servers: Servers, replicas: int) -> None:
        self.servers, self.sent, self.topic = servers, 0, f"shop.watched-{uuid.uuid4().hex[:8]}.events"
        self.sends: list[tuple[float, int]] = []
        KafkaAdmin(servers.kafka).create(self.topic, PARTITIONS, replicas)
        self.session = psycopg.connect(servers.postgres.url, autocommit=True)
        self.session.execute(f"DROP SCHEMA IF EXISTS {SCHEMA} CASCADE")
        self.session.execute(TABLES)
        self.shown: list[tuple[float, Observation]] = []
        log = KafkaLog(servers.kafka, timeout_seconds=KAFKA_SECONDS)
        self.observer = Observer(log, servers.postgres, self._show, interval_seconds=1.0)
        self.observer.watch(KEY, SCHEMA, self.topic)
        self.observer.start()

    def _show(self, _: Key, seen: Observation) -> None:
        self.shown.append((time.monotonic(), seen))

    def send(self, number: int) -> None:
        producer = Producer({"bootstrap.servers": self.servers.kafka, "acks": "all", "log_level": 0})
        for _ in range(number):
            producer.produce(self.topic, b"{}", partition=self.sent % PARTITIONS)
            self.sent += 1
        assert producer.flush(60) == 0
        self.sends.append((time.monotonic(), self.sent))

    def old(self) -> list[tuple[float, int]]:
        """Lags that were shown when more than so much had been there for longer than figures may be old."""
        before = [(at, seen.figures.lag) for at, seen in self.shown if seen.figures]
        return [
            (at, lag) for at, lag in before if any(sent > lag for when, sent in self.sends if when < at - FRESH_SECONDS)
        ]

    def figures(self) -> Figures | None:
        return self.shown[-1][1].figures if self.shown else None

    def lag(self) -> int | None:
        figures = self.figures()
        return figures.lag if figures else None

    def is_right(self) -> bool:
        """Whether the lag is seen, of which all that was sent is a part."""
        return self.lag() == self.sent

    def close(self) -> None:
        self.observer.stop()
        self.session.close()


@pytest.fixture(scope="module")
def world(own_servers: Callable[..., Servers]) -> Iterator[World]:
    made = World(own_servers(needs=("kafka", "postgres"), brokers=3), 3)
    yield made
    made.close()


@pytest.fixture
def calm(servers: Servers) -> Iterator[World]:
    """On the session's servers, which nobody disturbs."""
    made = World(servers, 1)
    yield made
    made.session.execute(f"DROP SCHEMA {SCHEMA} CASCADE")
    made.close()


class Scaler:
    """Reads figures in a thread, as scaling does, until it is stopped; keeps the lags and when they were read."""

    def __init__(self, world: World) -> None:
        self._topic = world.topic
        self._reader = FiguresReader(world.servers.kafka, world.servers.postgres)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.read: list[tuple[float, int]] = []

    def _run(self) -> None:
        watched = Watched(SCHEMA, self._topic, "tidemill.shop.watched", "nobody")
        while not self._stopping.wait(0.2):
            try:
                figures = self._reader.read(watched, ready=0, rolling_out=False)
            except TidemillError:
                continue
            self.read.append((time.monotonic(), figures.lag))

    def __enter__(self) -> Scaler:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._thread.join()


def test_the_age_of_the_oldest_event_that_is_not_counted(calm: World) -> None:
    """By its record's time, and not by when it was noticed; freshness is that age, then what the last batch took."""
    begun = time.monotonic()
    calm.send(60)
    eventually(lambda: (found := calm.figures()) and found.lag_seconds > 3, what="the oldest event gets older")
    at, seen = calm.shown[-1]
    assert seen.figures is not None
    assert (seen.figures.lag, seen.figures.freshness_seconds) == (60, seen.figures.lag_seconds)
    assert seen.figures.lag_seconds < at - begun + 1
    calm.session.execute(
        f"UPDATE {SCHEMA}._offsets SET next_offset = 10, consumed = 10, freshness_ms = 400, last_event_at = now()"
    )
    calm.session.execute(f"UPDATE {SCHEMA}._readers SET watermark = 1000")
    figures = eventually(lambda: (found := calm.figures()) and not found.lag and found, what="all is counted")
    assert (figures.lag_seconds, figures.freshness_seconds) == (0.0, 0.4)
    assert figures.watermark_age_seconds == pytest.approx(time.time() - 1, abs=10)
    begun = time.monotonic()
    calm.send(6)
    figures = eventually(lambda: (found := calm.figures()) and found.lag and found, what="what came after is seen")
    assert figures.lag_seconds < time.monotonic() - begun + 1


@pytest.mark.slow
def test_brokers_are_restarted_one_after_another(world: World) -> None:
    """Figures are never older than they may be, and right soon after each restart; so are the scaler's."""
    world.send(600)
    eventually(lambda: world.lag() == 600, what="the lag is seen")
    with Scaler(world) as scaler:
        eventually(lambda: scaler.read, what="the scaler reads")
        for name in ("kafka", "kafka-2", "kafka-3"):
            world.servers.handles[name].stop()
            world.send(60)
            eventually(world.is_right, seconds=SOON_SECONDS, what=f"figures without {name}")
            world.servers.handles[name].start()
            world.send(60)
            eventually(world.is_right, seconds=SOON_SECONDS, what=f"figures after {name} is back")
            eventually(lambda: scaler.read[-1][1] == world.sent, seconds=SOON_SECONDS, what="and the scaler's")
    assert world.old() == []
    blank = sum(seen.figures is None for _, seen in world.shown)
    assert blank < len(world.shown) / 10, "figures go on"


@pytest.mark.slow
def test_a_broker_without_controllers_tells_ends_but_not_that_it_is_led(world: World) -> None:
    """Asking changes nothing: the topic keeps its partitions, and none is made that is not there."""
    kafka_log, handles = KafkaLog(world.servers.kafka, timeout_seconds=KAFKA_SECONDS), world.servers.handles
    client, absent = AdminClient({"bootstrap.servers": world.servers.kafka}), f"{world.topic}.absent"
    assert kafka_log.led(world.topic)
    assert kafka_log.led(absent)
    topics = client.list_topics(timeout=10).topics
    assert (len(topics[world.topic].partitions), absent in topics) == (PARTITIONS, False)
    with frozen(handles["kafka-2"]), frozen(handles["kafka-3"]):
        eventually(lambda: not kafka_log.led(world.topic), seconds=SOON_SECONDS, what="no controller answers")
    eventually(lambda: kafka_log.led(world.topic), seconds=SOON_SECONDS, what="controllers answer again")
