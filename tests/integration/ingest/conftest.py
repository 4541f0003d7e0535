"""An ingest process on a real Kafka, and a reader of its records."""

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
    """Return the config of a pipeline of orders with the key country. `spec` replaces members."""
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
    """An ingest process, the configs of its pipelines and its Kafka.

    Attributes:
        folder: contains configs, secrets and the log.
        environment: variables for the process.
    """

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
        """Create config and topic of a pipeline, and wait until a running process serves the pipeline."""
        if topic:
            KafkaAdmin(self.brokers).create(config.events_topic, 2, config={"max.message.bytes": "2300000", **settings})
        (self.folder / f"{config.name}.json").write_text(config.to_json())
        if self.process is not None and config.spec.ingest.enabled:
            eventually(lambda: config.name in self.health()["pipelines"], seconds=10, what=f"{config.name} is served")
        return config

    def start(self, **environment: str) -> None:
        """Start the process and wait until it is ready."""
        self.spawn(**environment)
        eventually(lambda: self.get("/readyz") == 200, seconds=30, what=f"ingest is ready:\n{self.log}")

    def spawn(self, **environment: str) -> None:
        """Start the process with new ports, without waiting."""
        with socket.socket() as first, socket.socket() as second:
            first.bind(("127.0.0.1", 0))
            second.bind(("127.0.0.1", 0))
            self.port, self.status_port = first.getsockname()[1], second.getsockname()[1]
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
        """Return the status code of a GET, or 0 if nothing answers."""
        try:
            return httpx.get(self.url + path, timeout=10).status_code
        except httpx.TransportError:
            return 0

    def health(self) -> dict[str, Any]:
        """Return the body of `/health`, or an empty dict if nothing answers."""
        try:
            return dict(httpx.get(f"http://127.0.0.1:{self.status_port}/health", timeout=10).json())
        except httpx.TransportError:
            return {}

    def events_url(self, pipeline: str, query: str = "") -> str:
        return f"{self.url}/v1/pipelines/{pipeline}/events{query}"

    def post(
        self, pipeline: str, body: bytes, query: str = "", *, kind: str = "application/x-ndjson", **headers: str
    ) -> httpx.Response:
        """Send a body. Underscores in header names become hyphens."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        if kind:
            named["content-type"] = kind
        return httpx.post(self.events_url(pipeline, query), content=body, headers=named, timeout=60)

    def written(self, topic: str) -> list[Any]:
        """Return all records of a topic, ordered by partition and offset."""
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
                of_partition: list[Any] = []
                while not of_partition or of_partition[-1].offset() < high - 1:
                    message = consumer.poll(10)
                    assert message is not None, (
                        f"{topic}/{partition}: {len(of_partition)} of {high} records within 10 s"
                    )
                    assert message.error() is None, message.error()
                    of_partition.append(message)
                records += of_partition
        finally:
            consumer.close()
        return records

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Send a signal if the process still runs, wait for its end and return its exit status."""
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
    """Return a function that prepares an ingest. A test starts it, and the fixture stops it after the test."""
    prepared: list[Ingest] = []

    def make(brokers: str, **environment: str) -> Ingest:
        folder = tmp_path / str(len(prepared))
        folder.mkdir()
        prepared.append(Ingest(brokers, folder, environment))
        return prepared[-1]

    yield make
    for ingest in prepared:
        if ingest.process is not None:
            ingest.stop()


@pytest.fixture(scope="module")
def ingest(servers: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ingest]:
    """Start one ingest for all tests of a module that need neither a stop nor other settings."""
    shared = Ingest(servers.kafka, tmp_path_factory.mktemp("ingest"))
    shared.start()
    yield shared
    shared.stop()
