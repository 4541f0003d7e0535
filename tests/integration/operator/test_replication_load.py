"""Tests of changes of replicas and partitions under load on three real brokers: every event counts once.

The tests kill operator, broker and processor meanwhile.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
import yaml
from confluent_kafka import KafkaError, Message, Producer

from tidemill_contract import names
from tidemill_operator.actuators.kafka.topics import KafkaTopics
from tidemill_operator.errors import TidemillError
from tidemill_operator.laptop.servers import Servers
from tidemill_operator.plan.kafka.replication import THROTTLED_LEADERS
from tidemill_operator.processes.child import start_time
from waiting import eventually

pytestmark = [pytest.mark.integration, pytest.mark.slow]

BASE, MINUTE = 1_760_000_040_000, 60_000
# Copying the topic takes some time at this rate, but replicas keep up with the load.
THROTTLE = "500000"
SPEC: dict[str, Any] = {
    "source": {
        "topic": {"partitions": 3, "replicationFactor": 1},
        "fields": [
            {"name": "ts", "type": "timestamp", "required": True},
            {"name": "k", "type": "string", "required": True},
            {"name": "v", "type": "integer", "required": True},
            {"name": "pad", "type": "string"},
        ],
        "eventTime": {"field": "ts", "maxDisorder": "5s"},
    },
    "aggregations": [
        {
            "name": "by_k",
            "groupBy": ["k"],
            "window": {"type": "tumbling", "size": "1m", "grace": "1s"},
            "metrics": [
                {"name": "events", "function": "count"},
                {"name": "total", "function": "sum", "field": "v"},
            ],
        }
    ],
    "processor": {"flushInterval": "200ms"},
}


class Up:
    """A `tidemill up` on given servers, which the test edits and kills."""

    def __init__(self, folder: Path, servers: Servers, name: str) -> None:
        self.folder, self.servers, self.name = folder, servers, name
        self.topics = [f"default.{name}.{kind}" for kind in ("events", "results", "dead-letters")]
        self.kafka = KafkaTopics(servers.kafka)
        self.process: subprocess.Popen[bytes] | None = None
        self.log = folder / "up.log"
        self.environ = {name: value for name, value in os.environ.items() if not name.startswith("TIDEMILL_")}
        self.environ |= {
            "TIDEMILL_KAFKA_BROKERS": servers.kafka,
            "TIDEMILL_POSTGRES_URL": servers.postgres.url,
            "TIDEMILL_REDIS_URL": servers.redis,
            "TIDEMILL_REPLICATION_THROTTLE": THROTTLE,
        }

    def edit(self, **topic: int) -> None:
        SPEC["source"]["topic"] |= topic
        document = {"apiVersion": "tidemill.dev/v1alpha1", "kind": "AnalyticsPipeline", "metadata": {"name": self.name}}
        new = self.folder / "new"
        new.write_text(yaml.safe_dump({**document, "spec": SPEC}))
        new.replace(self.folder / "a.yaml")

    def start(self) -> None:
        command = [sys.executable, "-m", "tidemill_operator.cli", "up", "-f", "a.yaml"]
        command += ["--port-ingest", "0", "--port-api", "0"]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                command, cwd=self.folder, env=self.environ, stdout=log, stderr=subprocess.STDOUT
            )

    def kill(self) -> None:
        """Kill `up`, and wait until its processes have ended."""
        pids = self.pids()
        assert self.process is not None
        self.process.kill()
        self.process.wait()
        eventually(lambda: not any(start_time(pid) for pid in pids), what="its processes have ended")

    def stop(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            self.process.wait(60)

    def pids(self, component: str = "") -> list[int]:
        workloads = json.loads((self.folder / ".tidemill" / "status.json").read_text())["workloads"]
        return [state["pid"] for name, state in workloads.items() if component in name and state["pid"]]

    @property
    def status(self) -> dict[str, Any]:
        path = self.folder / ".tidemill" / "state" / "default" / f"{self.name}.json"
        return dict(json.loads(path.read_text())["status"]) if path.exists() else {}

    def ready(self) -> bool:
        conditions = {condition["type"]: condition["status"] for condition in self.status.get("conditions", ())}
        return conditions.get("Ready") == "True" and conditions.get("Progressing") == "False"

    def moving(self) -> list[str]:
        """Return the messages in the status of topics whose replicas move."""
        topics = self.status.get("topics", ())
        return [topic["replicasChange"]["message"] for topic in topics if "replicasChange" in topic]

    def factors(self) -> set[int]:
        return {topic.replication_factor for topic in self.kafka.observe(self.topics).values()}

    def settled(self, *, replicas: int, in_sync: int) -> bool:
        """Return whether all topics have this number of replicas, and the change is complete."""
        try:
            config, factors = self.kafka.configs(self.topics), self.factors()
        except TidemillError:  # a broker may just have died
            return False
        settings = {(config[topic]["min.insync.replicas"], config[topic][THROTTLED_LEADERS]) for topic in self.topics}
        return settings == {(str(in_sync), "")} and factors == {replicas} and self.ready() and not self.moving()

    def query(self, text: str) -> list[tuple[Any, ...]]:
        schema = names.schema("default", self.name)
        with psycopg.connect(self.servers.postgres.url, options="-c TimeZone=UTC") as connection:
            return connection.execute(text.replace("{s}", f'"{schema}"')).fetchall()

    def consumed(self) -> int:
        try:
            return int(self.query("SELECT coalesce(sum(consumed), 0) FROM {s}._offsets")[0][0])
        except psycopg.errors.UndefinedTable:
            return 0

    def windows(self) -> dict[tuple[str, int], tuple[int, int]]:
        rows = self.query("SELECT k, extract(epoch FROM window_start) * 1000, _count, _sum_v FROM {s}.by_k_v1")
        return {(k, int(start)): (int(count), int(total)) for k, start, count, total in rows}


class Load:
    """A thread that sends events until it is stopped, and records what Kafka acknowledged."""

    def __init__(self, servers: Servers, topic: str) -> None:
        self.counts: Counter[tuple[str, int]] = Counter()
        self.totals: Counter[tuple[str, int]] = Counter()
        self.acknowledged = self.sent = 0
        self.refused: list[str] = []
        self._topic = topic
        self._producer = Producer({
            "bootstrap.servers": servers.kafka,
            "acks": "all",
            "enable.idempotence": True,
            "linger.ms": 20,
            "delivery.timeout.ms": 600_000,
            "topic.metadata.refresh.interval.ms": 1000,
            "log_level": 0,
        })  # fmt: skip
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def send(self, number: int, pad: int = 100) -> None:
        for _ in range(number):
            key, at = f"k{self.sent % 7}", BASE + self.sent * 10
            window = (key, at // MINUTE * MINUTE)
            value = json.dumps({"ts": at, "k": key, "v": self.sent, "pad": "x" * pad}).encode()

            def note(error: KafkaError | None, _: Message, window: Any = window, v: int = self.sent) -> None:
                if error is not None:
                    self.refused.append(error.str())
                    return
                self.acknowledged += 1
                self.counts[window] += 1
                self.totals[window] += v

            self._producer.produce(self._topic, value, on_delivery=note)
            self.sent += 1
            self._producer.poll(0)

    def _run(self) -> None:
        while not self._stop.wait(0.1):
            self.send(30)

    def start(self) -> None:
        self._thread.start()

    def flush(self) -> None:
        assert self._producer.flush(180) == 0

    def stop(self) -> None:
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()
        self.flush()

    @property
    def windows(self) -> dict[tuple[str, int], tuple[int, int]]:
        return {window: (self.counts[window], self.totals[window]) for window in self.counts}


@pytest.fixture(scope="module")
def servers(own_servers: Callable[..., Servers]) -> Servers:
    return own_servers(brokers=3)


@pytest.fixture
def up(server_folder: Path, servers: Servers, request: pytest.FixtureRequest) -> Iterator[Up]:
    SPEC["source"]["topic"] = {"partitions": 3, "replicationFactor": 1}
    running = Up(server_folder, servers, request.node.name.split("_")[1])
    running.edit()
    running.start()
    try:
        eventually(running.ready, seconds=180.0, what="the pipeline is ready")
        yield running
    except BaseException:
        print(running.log.read_text()[-20_000:])
        raise
    finally:
        running.stop()


@pytest.fixture
def load(up: Up, servers: Servers) -> Iterator[Load]:
    load = Load(servers, up.topics[0])
    yield load
    load.stop()


def check_counts(up: Up, load: Load) -> None:
    """Assert that every event was acknowledged and counts once in its window, and none is a dead letter."""
    load.stop()
    assert (load.acknowledged, load.refused) == (load.sent, [])
    eventually(lambda: up.consumed() >= load.sent, seconds=180.0, what=f"{load.sent} events are counted")
    assert up.consumed() == load.sent
    assert up.windows() == load.windows
    assert up.query("SELECT count(*) FROM {s}._dead_letters") == [(0,)]


def test_replicas_change_under_load_without_losing_an_event(up: Up, load: Load, servers: Servers) -> None:
    """The factor changes from 1 to 3 to 2. The operator is killed, and then a broker that has replicas."""
    load.send(12_000, pad=500)
    load.flush()
    load.start()
    up.edit(replicationFactor=3)
    eventually(up.moving, seconds=120.0, what="replicas move")
    up.kill()
    up.start()
    eventually(
        lambda: up.moving() and up.pids("processor"), seconds=120.0, what="the next operator continues the change"
    )
    servers.handles["kafka-2"].kill()
    counted = load.acknowledged
    try:
        eventually(lambda: load.acknowledged > counted + 50, seconds=60.0, what="the other brokers accept events")
        assert up.moving() or up.factors() != {3}
    finally:
        servers.handles["kafka-2"].start()
    eventually(lambda: up.settled(replicas=3, in_sync=2), seconds=300.0, what="3 replicas of each partition")
    up.edit(replicationFactor=2)
    eventually(lambda: up.settled(replicas=2, in_sync=1), seconds=180.0, what="2 replicas of each partition")
    check_counts(up, load)


def test_partitions_grow_under_load_without_a_late_event(up: Up, load: Load) -> None:
    """Partitions grow from 3 to 12, and the processors are killed meanwhile. No event is late."""
    load.start()
    eventually(lambda: up.consumed() > 200, seconds=120.0, what="events are counted")
    up.edit(partitions=12)
    eventually(lambda: up.kafka.observe(up.topics)[up.topics[0]].partitions == 12, seconds=120.0, what="12 partitions")
    for pid in up.pids("processor"):
        os.kill(pid, signal.SIGKILL)

    def all_read() -> bool:
        rows = up.query("SELECT count(*) FROM {s}._offsets WHERE reader = 'live' AND consumed > 0")
        return rows == [(12,)]

    eventually(all_read, seconds=180.0, what="events of all 12 partitions are counted")
    check_counts(up, load)
    assert up.query("SELECT count(*) FROM {s}._offsets WHERE reader = 'live'") == [(12,)]
