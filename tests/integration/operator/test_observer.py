"""Tests of the figures that observer and scaler read from real servers, also while brokers restart."""

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
from tidemill_operator.actuators.kafka.offsets import OffsetReader
from tidemill_operator.errors import TidemillError
from tidemill_operator.keys import Key
from tidemill_operator.laptop.servers import Servers
from tidemill_operator.observer.figures import FRESH_SECONDS, Figures, Observation
from tidemill_operator.observer.observer import KAFKA_SECONDS, Observer
from tidemill_operator.observer.scaling_figures import FiguresReader, MeasuredPipeline
from waiting import eventually

pytestmark = pytest.mark.integration

KEY, SCHEMA = Key("shop", "watched", "u"), "shop__watched"
PARTITIONS = 6
# After a fault, a round that has begun and the next one may pass until figures are right.
SOON_SECONDS = 15.0
TABLES = f"""
CREATE SCHEMA {SCHEMA};
CREATE TABLE {SCHEMA}._readers (reader text, watermark bigint);
CREATE TABLE {SCHEMA}._offsets (reader text, partition int, next_offset bigint, consumed bigint, freshness_ms bigint,
                                last_event_at timestamptz, end_confirmed_at timestamptz);
INSERT INTO {SCHEMA}._readers VALUES ('live', NULL);
INSERT INTO {SCHEMA}._offsets SELECT 'live', n, 0, 0, NULL, now() FROM generate_series(0, {PARTITIONS - 1}) n;
"""


class WatchedPipeline:
    """A pipeline without processor that an observer reads every second."""

    def __init__(self, servers: Servers, replicas: int) -> None:
        self.servers, self.sent, self.topic = servers, 0, f"shop.watched-{uuid.uuid4().hex[:8]}.events"
        self.sends: list[tuple[float, int]] = []
        KafkaAdmin(servers.kafka).create(self.topic, PARTITIONS, replicas)
        self.session = psycopg.connect(servers.postgres.url, autocommit=True)
        self.session.execute(f"DROP SCHEMA IF EXISTS {SCHEMA} CASCADE")
        self.session.execute(TABLES)
        self.reported: list[tuple[float, Observation]] = []
        log = OffsetReader(servers.kafka, timeout_seconds=KAFKA_SECONDS)
        self.observer = Observer(log, servers.postgres, self._report, interval_seconds=1.0)
        self.observer.watch(KEY, SCHEMA, self.topic)
        self.observer.start()

    def _report(self, _: Key, observation: Observation) -> None:
        self.reported.append((time.monotonic(), observation))

    def send(self, number: int) -> None:
        producer = Producer({"bootstrap.servers": self.servers.kafka, "acks": "all", "log_level": 0})
        for _ in range(number):
            producer.produce(self.topic, b"{}", partition=self.sent % PARTITIONS)
            self.sent += 1
        assert producer.flush(60) == 0
        self.sends.append((time.monotonic(), self.sent))

    def outdated(self) -> list[tuple[float, int]]:
        """Return reported lags that were older than figures may be."""
        lags = [(at, observation.figures.lag) for at, observation in self.reported if observation.figures]
        return [
            (at, lag) for at, lag in lags if any(sent > lag for when, sent in self.sends if when < at - FRESH_SECONDS)
        ]

    def figures(self) -> Figures | None:
        return self.reported[-1][1].figures if self.reported else None

    def lag(self) -> int | None:
        figures = self.figures()
        return figures.lag if figures else None

    def is_right(self) -> bool:
        """Return whether the reported lag is the number of sent events."""
        return self.lag() == self.sent

    def close(self) -> None:
        self.observer.stop()
        self.session.close()


@pytest.fixture(scope="module")
def watched_pipeline(own_servers: Callable[..., Servers]) -> Iterator[WatchedPipeline]:
    watched_pipeline = WatchedPipeline(own_servers(needs=("kafka", "postgres"), brokers=3), 3)
    yield watched_pipeline
    watched_pipeline.close()


@pytest.fixture
def calm(servers: Servers) -> Iterator[WatchedPipeline]:
    """Return a pipeline on the session's servers, which run throughout."""
    pipeline = WatchedPipeline(servers, 1)
    yield pipeline
    pipeline.session.execute(f"DROP SCHEMA {SCHEMA} CASCADE")
    pipeline.close()


class Scaler:
    """A thread that reads figures as scaling does, and records each lag with its time."""

    def __init__(self, watched_pipeline: WatchedPipeline) -> None:
        self._topic = watched_pipeline.topic
        self._reader = FiguresReader(watched_pipeline.servers.kafka, watched_pipeline.servers.postgres)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.read: list[tuple[float, int]] = []

    def _run(self) -> None:
        watched = MeasuredPipeline(SCHEMA, self._topic, "tidemill.shop.watched", "nobody")
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


def test_lag_seconds_is_the_age_of_the_oldest_event_that_is_not_counted(calm: WatchedPipeline) -> None:
    """The age begins at the time of the record. Without lag, freshness is that of the last batch."""
    begun = time.monotonic()
    calm.send(60)
    eventually(lambda: (latest := calm.figures()) and latest.lag_seconds > 3, what="the oldest event gets older")
    at, observation = calm.reported[-1]
    assert observation.figures is not None
    assert (observation.figures.lag, observation.figures.freshness_seconds) == (60, observation.figures.lag_seconds)
    assert observation.figures.lag_seconds < at - begun + 1
    calm.session.execute(
        f"UPDATE {SCHEMA}._offsets SET next_offset = 10, consumed = 10, freshness_ms = 400, last_event_at = now()"
    )
    calm.session.execute(f"UPDATE {SCHEMA}._readers SET watermark = 1000")
    figures = eventually(lambda: (latest := calm.figures()) and not latest.lag and latest, what="no event lags")
    assert (figures.lag_seconds, figures.freshness_seconds) == (0.0, 0.4)
    assert figures.watermark_age_seconds == pytest.approx(time.time() - 1, abs=10)
    begun = time.monotonic()
    calm.send(6)
    figures = eventually(
        lambda: (latest := calm.figures()) and latest.lag and latest, what="the lag of the later events"
    )
    assert figures.lag_seconds < time.monotonic() - begun + 1


@pytest.mark.slow
def test_figures_stay_fresh_while_brokers_restart_one_after_another(watched_pipeline: WatchedPipeline) -> None:
    """The figures of observer and scaler are right soon after each restart."""
    watched_pipeline.send(600)
    eventually(lambda: watched_pipeline.lag() == 600, what="the lag is reported")
    with Scaler(watched_pipeline) as scaler:
        eventually(lambda: scaler.read, what="the scaler reads")
        for name in ("kafka", "kafka-2", "kafka-3"):
            watched_pipeline.servers.handles[name].stop()
            watched_pipeline.send(60)
            eventually(watched_pipeline.is_right, seconds=SOON_SECONDS, what=f"figures without {name}")
            watched_pipeline.servers.handles[name].start()
            watched_pipeline.send(60)
            eventually(watched_pipeline.is_right, seconds=SOON_SECONDS, what=f"figures after the restart of {name}")
            eventually(
                lambda: scaler.read[-1][1] == watched_pipeline.sent, seconds=SOON_SECONDS, what="figures of the scaler"
            )
    assert watched_pipeline.outdated() == []
    without_figures = sum(observation.figures is None for _, observation in watched_pipeline.reported)
    assert without_figures < len(watched_pipeline.reported) / 10, "most reports have figures"


@pytest.mark.slow
def test_a_broker_without_controllers_does_not_count_as_led(watched_pipeline: WatchedPipeline) -> None:
    """The request changes nothing: the topic keeps its partitions, and a missing topic is not created."""
    kafka_log, handles = (
        OffsetReader(watched_pipeline.servers.kafka, timeout_seconds=KAFKA_SECONDS),
        watched_pipeline.servers.handles,
    )
    client, absent = (
        AdminClient({"bootstrap.servers": watched_pipeline.servers.kafka}),
        f"{watched_pipeline.topic}.absent",
    )
    assert kafka_log.is_controller_reachable(watched_pipeline.topic)
    assert kafka_log.is_controller_reachable(absent)
    topics = client.list_topics(timeout=10).topics
    assert (len(topics[watched_pipeline.topic].partitions), absent in topics) == (PARTITIONS, False)
    with frozen(handles["kafka-2"]), frozen(handles["kafka-3"]):
        eventually(
            lambda: not kafka_log.is_controller_reachable(watched_pipeline.topic),
            seconds=SOON_SECONDS,
            what="no controller answers",
        )
    eventually(
        lambda: kafka_log.is_controller_reachable(watched_pipeline.topic),
        seconds=SOON_SECONDS,
        what="controllers answer again",
    )
