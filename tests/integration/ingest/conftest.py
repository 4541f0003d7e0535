"""Ingest as a process of its own on real Kafka, and what it has written there."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
from confluent_kafka import Consumer, TopicPartition

from kafka_admin import KafkaAdmin
from tidemill_contract.resource.spec import PipelineSpec
from tidemill_contract.runtime import AggregationRef, PipelineConfig
from waiting import eventually

NAMESPACE = "tests"


def pipeline_config(name: str, **spec: Any) -> PipelineConfig:
    """A pipeline of orders, keyed by country."""
    fields = [
        {"name": "country", "type": "string", "required": True},
        {"name": "amount", "type": "number"},
        {"name": "ts", "type": "timestamp", "required": True},
    ]
    metrics = [{"name": "orders", "function": "count"}]
    window = {"type": "tumbling", "size": "1m"}
    document = {
        "source": {"topic": {"partitions": 2}, "fields": fields, "key": "country", "eventTime": {"field": "ts"}},
        "aggregations": [{"name": "by_country", "groupBy": ["country"], "window": window, "metrics": metrics}],
        "auth": {"required": False},
    }
    return PipelineConfig(
        namespace=NAMESPACE,
        name=name,
        generation=1,
        spec=PipelineSpec.model_validate({**document, **spec}),
        aggregations=(AggregationRef(name="by_country"),),
    )


@dataclass
class Ingest:
    """An ingest process, the pipelines it is told of and its Kafka."""

    brokers: str
    folder: Path
    environment: dict[str, str] = field(default_factory=dict)
    port: int = 0
    status_port: int = 0
    process: subprocess.Popen[bytes] | None = None
    eventually = staticmethod(eventually)
    pipeline_config = staticmethod(pipeline_config)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def log(self) -> str:
        return (self.folder / "ingest.log").read_text()

    def add(self, config: PipelineConfig, *, topic: bool = True, **settings: str) -> PipelineConfig:
        """Make a pipeline, with its topic, and wait until the process knows it."""
        if topic:
            KafkaAdmin(self.brokers).create(config.events_topic, 2, config={"max.message.bytes": "2300000", **settings})
        (self.folder / f"{config.name}.json").write_text(config.to_json())
        if self.process is not None and config.spec.ingest.enabled:
            eventually(lambda: config.name in self.health()["pipelines"], seconds=10, what=f"{config.name} is known")
        return config

    def start(self, **environment: str) -> None:
        """Start the process and wait until it is ready."""
        self.spawn(**environment)
        eventually(lambda: self.get("/readyz") == 200, seconds=30, what=f"ingest is ready:\n{self.log}")

    def spawn(self, **environment: str) -> None:
        """Start the process."""
        with socket.socket() as one, socket.socket() as two:
            one.bind(("127.0.0.1", 0))
            two.bind(("127.0.0.1", 0))
            self.port, self.status_port = one.getsockname()[1], two.getsockname()[1]
        env = {
            **{name: value for name, value in os.environ.items() if not name.startswith("TIDEMILL_")},
            "TIDEMILL_NAMESPACE": NAMESPACE,
            "TIDEMILL_CONFIG_DIR": str(self.folder),
            "TIDEMILL_SECRETS_DIR": str(self.folder / "secrets"),
            "TIDEMILL_KAFKA_BROKERS": self.brokers,
            "TIDEMILL_PORT": str(self.port),
            "TIDEMILL_STATUS_PORT": str(self.status_port),
            **self.environment,
            **environment,
        }
        with (self.folder / "ingest.log").open("ab") as log:
            self.process = subprocess.Popen([sys.executable, "-m", "tidemill_ingest"], env=env, stdout=log, stderr=log)

    def get(self, path: str) -> int:
        """The status code of a GET; 0 while nobody answers."""
        try:
            return httpx.get(self.url + path, timeout=10).status_code
        except httpx.TransportError:
            return 0

    def health(self) -> dict[str, Any]:
        """/health with all it says; an empty dict while nobody answers."""
        try:
            return dict(httpx.get(f"http://127.0.0.1:{self.status_port}/health", timeout=10).json())
        except httpx.TransportError:
            return {}

    def events_url(self, pipeline: str, query: str = "") -> str:
        return f"{self.url}/v1/pipelines/{pipeline}/events{query}"

    def post(
        self, pipeline: str, body: bytes, query: str = "", *, kind: str = "application/x-ndjson", **headers: str
    ) -> httpx.Response:
        """Send a body; underscores in header names stand for hyphens."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        if kind:
            named["content-type"] = kind
        return httpx.post(self.events_url(pipeline, query), content=body, headers=named, timeout=60)

    def written(self, topic: str) -> list[Any]:
        """All records of a topic, by partition and offset."""
        consumer = Consumer(
            {"bootstrap.servers": self.brokers, "group.id": "ingest-tests", "enable.auto.commit": False}
        )
        records: list[Any] = []
        try:
            for partition in range(2):
                at = TopicPartition(topic, partition, 0)
                low, high = consumer.get_watermark_offsets(at, timeout=10, cached=False)
                if low == high:
                    continue
                consumer.assign([at])
                found: list[Any] = []
                while not found or found[-1].offset() < high - 1:
                    message = consumer.poll(10)
                    assert message is not None, f"{topic}/{partition}: {len(found)} of {high} records within 10 s"
                    assert message.error() is None, message.error()
                    found.append(message)
                records += found
        finally:
            consumer.close()
        return records

    def stop(self, number: int = signal.SIGTERM) -> int:
        """End the process; its exit status."""
        assert self.process is not None
        if self.process.poll() is None:
            self.process.send_signal(number)
        try:
            return self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise


@pytest.fixture
def make_ingest(tmp_path: Path) -> Iterator[Callable[..., Ingest]]:
    """Makes an ingest that a test starts, and may stop; it is ended after the test."""
    made: list[Ingest] = []

    def make(brokers: str, **environment: str) -> Ingest:
        folder = tmp_path / str(len(made))
        folder.mkdir()
        made.append(Ingest(brokers, folder, environment))
        return made[-1]

    yield make
    for ingest in made:
        if ingest.process is not None:
            ingest.stop()


@pytest.fixture(scope="module")
def ingest(servers: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ingest]:
    """One ingest for the tests of a module that leave it as it is."""
    shared = Ingest(servers.kafka, tmp_path_factory.mktemp("ingest"))
    shared.start()
    yield shared
    shared.stop()
