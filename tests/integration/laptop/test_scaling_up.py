"""Tests of scaling under `tidemill up` with real servers: replicas follow the lag, and every event counts once."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest
from confluent_kafka import Producer

from tidemill_contract import names
from tidemill_operator.laptop.servers import Servers
from tidemill_operator.observer.scaling_figures import FiguresReader, MeasuredPipeline
from waiting import eventually

pytestmark = [pytest.mark.integration, pytest.mark.slow]

PARTITIONS = 6
PIPELINE = """\
apiVersion: tidemill.dev/v1alpha1
kind: AnalyticsPipeline
metadata: {name: NAME}
spec:
  source:
    topic: {partitions: 6}
    fields:
      - {name: carrier, type: string, required: true}
      - {name: ts, type: timestamp, required: true}
    eventTime: {field: ts}
  aggregations:
    - name: by_carrier
      groupBy: [carrier]
      window: {type: tumbling, size: 1h}
      metrics:
        - {name: events, function: count}
  processor:
    scaling:
      maxReplicas: 3
      lagThreshold: 100
      pollInterval: 1s
      lookback: 3s
      catchUp: 10s
      scaleUpCooldown: 3s
      scaleDownStabilization: 5s
"""


STAGE = """\
  transform:
    python: {configMap: slow, file: slow.py, function: slow}
  aggregations:"""
# One process reads at most a thousand events a second.
SLOW = """\
import time


def slow(event):
    time.sleep(0.001)
    return {"carrier": f"c{event['number'] % 50}", "ts": event["ts"]}
"""


class Up:
    """A `tidemill up` on given servers; it may run several times."""

    def __init__(self, folder: Path, servers: Servers, name: str) -> None:
        self.folder, self.servers, self.name = folder, servers, name
        self.topic, self.schema = f"default.{name}.events", names.schema("default", name)
        self.environ = {name: value for name, value in os.environ.items() if not name.startswith("TIDEMILL_")}
        self.environ |= {
            "TIDEMILL_KAFKA_BROKERS": servers.kafka,
            "TIDEMILL_POSTGRES_URL": servers.postgres.url,
            "TIDEMILL_REDIS_URL": servers.redis,
        }
        self.started = 0

    @contextmanager
    def running(self) -> Iterator[None]:
        self.started += 1
        command = [sys.executable, "-m", "tidemill_operator.cli", "up", "-f", "a.yaml", "--ready-file", "ready.json"]
        command += ["--port-ingest", "0", "--port-api", "0"]
        with open(self.folder / f"up-{self.started}.log", "wb") as log:
            process = subprocess.Popen(command, cwd=self.folder, env=self.environ, stdout=log, stderr=subprocess.STDOUT)
        try:
            eventually(
                lambda: (self.folder / "ready.json").exists() or process.poll(), seconds=90, what=lambda: self.output
            )
            yield
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
            assert process.wait(60) == 0, self.output

    @property
    def output(self) -> str:
        return (self.folder / f"up-{self.started}.log").read_text()

    @property
    def pipeline(self) -> dict[str, Any]:
        state = json.loads((self.folder / ".tidemill" / "status.json").read_text())
        return dict(state["pipelines"][f"default/{self.name}"])

    @property
    def scaling(self) -> dict[str, Any]:
        return dict(self.pipeline["scaling"])

    def processors(self) -> int:
        """Return the number of ready processors."""
        return self.processes("processor")

    def processes(self, component: str) -> int:
        """Return the number of ready processes of a component."""
        workloads = json.loads((self.folder / ".tidemill" / "status.json").read_text())["workloads"]
        return sum(state["ready"] for name, state in workloads.items() if f"-{component}-" in name)

    def explain(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "tidemill_operator.cli", "explain", *arguments]
        return subprocess.run(
            command, cwd=self.folder, env=self.environ, capture_output=True, text=True, check=False, timeout=60
        )

    def query(self, text: str) -> int:
        with psycopg.connect(self.servers.postgres.url) as connection:
            return int(connection.execute(text).fetchone()[0])  # type: ignore[call-overload, index]


class Load:
    """A thread that sends events at a rate until the block ends."""

    def __init__(self, servers: Servers, topic: str, rate: int) -> None:
        self.sent = 0
        self._topic = topic
        self._rate = rate
        self._producer = Producer({"bootstrap.servers": servers.kafka, "acks": "all", "linger.ms": 20})
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        while not self._stop.wait(0.1):
            for _ in range(self._rate // 10):
                event = {"carrier": f"c{self.sent % 50}", "ts": 1_760_000_000_000 + self.sent}
                self._producer.produce(self._topic, json.dumps(event).encode(), partition=self.sent % PARTITIONS)
                self.sent += 1
            self._producer.poll(0)

    def __enter__(self) -> Load:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        assert self._producer.flush(30) == 0


@pytest.fixture
def make_up(server_folder: Path, servers: Servers) -> Callable[..., Up]:
    def make(name: str, *, stage: bool = False) -> Up:
        (server_folder / "slow.py").write_text(SLOW)
        text = PIPELINE.replace("NAME", name)
        (server_folder / "a.yaml").write_text(text.replace("  aggregations:", STAGE, 1) if stage else text)
        return Up(server_folder, servers, name)

    return make


def test_processors_follow_the_load_and_every_event_counts_once(make_up: Callable[..., Up]) -> None:
    """`tidemill explain` gives the reasons of each change, also after a restart of `up`."""
    up = make_up("scaled")
    with up.running():
        eventually(lambda: up.processors() == 1, seconds=30, what=lambda: up.output)
        with Load(up.servers, up.topic, rate=5_000) as load:
            eventually(lambda: up.processors() == 3, seconds=60, what=lambda: f"{up.scaling}\n{up.output}")
            explained = up.explain(up.name)
            assert explained.returncode == 0, explained.stderr
            assert f"default/{up.name}:" in explained.stdout
            assert "1 → 3  ScaledUp" in explained.stdout
            assert "for the lag, 100 events each" in explained.stdout
        eventually(lambda: up.processors() == 1, seconds=90, what=lambda: f"{up.scaling}\n{up.output}")
        consumed = f'SELECT coalesce(sum(consumed), 0) FROM "{up.schema}"._offsets'
        eventually(lambda: up.query(consumed) == load.sent, seconds=60, what=lambda: f"{load.sent} consumed")
        counted = f'SELECT coalesce(sum(_count), 0) FROM "{up.schema}".by_carrier_v1'
        assert up.query(counted) == load.sent
        reasons = {
            record["reason"] for record in json.loads(up.explain(up.name, "--output", "json").stdout)["decisions"]
        }
        assert {"ScaledUp", "ScaledDown", "Stabilizing"} <= reasons
        assert "1 → 3 processors (ScaledUp" in up.output
        assert "3 → 1 processors (ScaledDown" in up.output
    (up.folder / "ready.json").unlink(missing_ok=True)
    with up.running():
        decided = json.loads(up.explain(f"default/{up.name}", "--output", "json").stdout)["decisions"]
        assert "ScaledUp" in {record["reason"] for record in decided}
        assert up.explain("nobody").returncode == 1


@pytest.mark.matrix
def test_the_python_stage_scales_with_its_own_lag(make_up: Callable[..., Up]) -> None:
    """The stage gets three processes, and one process again after all events. Every event counts once."""
    up = make_up("staged", stage=True)
    with up.running():
        eventually(lambda: up.processes("stage") == 1, seconds=30, what=lambda: up.output)
        sent = 6_000
        producer = Producer({"bootstrap.servers": up.servers.kafka, "enable.idempotence": True, "linger.ms": 20})
        for number in range(sent):
            event = {"number": number, "ts": 1_760_000_000_000 + number}
            producer.produce(up.topic, json.dumps(event).encode(), partition=number % PARTITIONS)
        assert producer.flush(30) == 0
        eventually(lambda: up.processes("stage") == 3, seconds=60, what=lambda: up.output)
        counted = f'SELECT coalesce(sum(_count), 0) FROM "{up.schema}".by_carrier_v1'
        eventually(
            lambda: up.query(counted) == sent,
            seconds=60,
            what=lambda: f"{sent} events counted, not {up.query(counted)}",
        )
        eventually(lambda: up.processes("stage") == 1, seconds=60, what=lambda: f"{up.pipeline}\n{up.output}")
        # Ended processes have left their consumer group, so their partitions move before their session expires.
        began = time.monotonic()
        for number in range(PARTITIONS):
            producer.produce(
                up.topic, json.dumps({"number": number, "ts": 1_760_000_000_000}).encode(), partition=number
            )
        assert producer.flush(30) == 0
        eventually(lambda: up.query(counted) == sent + PARTITIONS, seconds=60, what="the last events count")
        assert time.monotonic() - began < 15.0
        assert "1 → 3 processes of the Python stage (ScaledUp" in up.output
        assert "3 → 1 processes of the Python stage (ScaledDown" in up.output
        # Transaction markers after the last record do not count as lag of the processors.
        eventually(lambda: up.scaling["lag"] == 0, seconds=30, what=lambda: str(up.scaling))
        eventually(lambda: up.pipeline["figures"].get("stageLag") == 0, seconds=30, what=lambda: str(up.pipeline))
        assert "Python stage: 1 replica" in up.explain(up.name).stdout


def test_the_scaling_figures_of_real_servers_are_right(make_up: Callable[..., Up]) -> None:
    """A partition without an offset lags from its start. A group with fewer members than replicas is rebalancing."""
    up = make_up("figured")
    with up.running():
        eventually(lambda: up.processors() == 1, seconds=30, what=lambda: up.output)
        with Load(up.servers, up.topic, rate=1_000) as load:
            eventually(lambda: load.sent >= 1_000, seconds=30, what=lambda: str(load.sent))
        consumed = f'SELECT coalesce(sum(consumed), 0) FROM "{up.schema}"._offsets'
        eventually(lambda: up.query(consumed) >= load.sent, seconds=60, what=lambda: f"{load.sent} consumed")
        reader = FiguresReader(up.servers.kafka, up.servers.postgres)
        watched = MeasuredPipeline(
            up.schema, up.topic, names.consumer_group("default", up.name), names.role(up.schema, "writer")
        )
        eventually(lambda: up.processors() == 1, seconds=60, what=lambda: up.output)
        eventually(
            lambda: not reader.read(watched, ready=1, rolling_out=False).rebalancing, seconds=60, what=lambda: up.output
        )
        figures = reader.read(watched, ready=1, rolling_out=False)
        assert (figures.lag, len(figures.partitions), figures.database_saturated) == (0, PARTITIONS, False)
        assert sum(partition.consumed for partition in figures.partitions.values()) == up.query(consumed)
        assert reader.read(watched, ready=2, rolling_out=True).rebalancing, "the second replica has not joined"
    with psycopg.connect(up.servers.postgres.url, autocommit=True) as connection:
        connection.execute(f'UPDATE "{up.schema}"._offsets SET next_offset = NULL WHERE partition = 0')
    stopped = reader.read(watched, ready=0, rolling_out=False)
    assert figures.freshness_seconds is not None
    assert 0 < figures.freshness_seconds < 60
    assert (stopped.freshness_seconds or 0) > figures.freshness_seconds, "results get older while no processor runs"
    first = stopped.partitions[0]
    assert (first.lag, stopped.lag) == (first.end - first.start, first.end - first.start)
    assert first.lag > 0
