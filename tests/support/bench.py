"""One pipeline on real servers: topics and schema made by the test, workloads started by it as processes."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from confluent_kafka import Consumer, Producer
from confluent_kafka.admin import AdminClient, NewTopic

from pipelines.pipeline_schema import connect_admin, create_schema
from tidemill_contract.functions.partials import quote
from tidemill_contract.runtime import PipelineConfig
from waiting import eventually

Output = Literal["results", "anomalies", "dead-letters"]


def delete_topics(kafka: AdminClient, names: list[str]) -> None:
    """Make way: another module of the session may have had a pipeline of the same name."""

    def known() -> list[str]:
        return [name for name in names if name in kafka.list_topics(timeout=10).topics]

    if found := known():
        for future in kafka.delete_topics(found).values():
            future.result(30)
        eventually(lambda: not known(), what="the topics are gone")


def free_ports(number: int) -> list[int]:
    """Ports on which nobody listens."""
    with ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(number)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]


@dataclass
class Bench:
    """One pipeline with its topics, schema and processors."""

    servers: Any
    config: PipelineConfig
    folder: Path
    environment: dict[str, str] = field(default_factory=dict)
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)
    ports: list[int] = field(default_factory=list)
    status_ports: list[int] = field(default_factory=list)
    """Where figures and full health are told: of a processor the same port."""

    eventually = staticmethod(eventually)

    @property
    def schema(self) -> str:
        """The quoted schema."""
        return quote(self.config.schema_name)

    def query(self, text: str, parameters: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
        """Rows of a query; `{s}` stands for the schema."""
        with connect_admin(self.servers) as connection:
            return connection.execute(text.replace("{s}", self.schema), parameters).fetchall()

    def start(
        self, instance: int = 0, *, module: str = "tidemill_processor", **environment: str
    ) -> subprocess.Popen[bytes]:
        """Start a processor, or another workload of the pipeline."""
        port, status_port = free_ports(2)
        env = {
            **os.environ,
            "TIDEMILL_PIPELINE": self.config.name,
            "TIDEMILL_NAMESPACE": self.config.namespace,
            "TIDEMILL_CONFIG_DIR": str(self.folder),
            "TIDEMILL_SECRETS_DIR": str(self.folder / "secrets"),
            "TIDEMILL_KAFKA_BROKERS": self.servers.kafka,
            "TIDEMILL_POSTGRES_HOST": self.servers.postgres.host,
            "TIDEMILL_POSTGRES_PORT": str(self.servers.postgres.port),
            "TIDEMILL_POSTGRES_DATABASE": self.servers.postgres.database,
            "TIDEMILL_REDIS_URL": self.servers.redis,
            "TIDEMILL_PORT": str(port),
            "TIDEMILL_STATUS_PORT": str(status_port),
            "TIDEMILL_SESSION_TIMEOUT_MS": "6000",
            "TIDEMILL_INSTANCE": f"{self.config.name}-{instance}",
            **self.environment,
            **environment,
        }
        log = (self.folder / f"{module}-{len(self.processes)}.log").open("wb")
        with log:
            process = subprocess.Popen([sys.executable, "-m", module], env=env, stderr=log, stdout=log)
        self.processes.append(process)
        self.ports.append(port)
        self.status_ports.append(port if module.startswith("tidemill_processor") else status_port)
        return process

    def health(self, index: int = -1) -> dict[str, Any]:
        """/health of a workload; an empty dict while it does not answer."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.status_ports[index]}/health", timeout=5) as answer:
                return dict(json.load(answer))
        except urllib.error.HTTPError as error:
            return dict(json.load(error))
        except OSError:
            return {}

    def metrics(self, index: int = -1) -> str:
        """/metrics of a workload."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.status_ports[index]}/metrics", timeout=5) as answer:
            return str(answer.read().decode())

    def produce(
        self, values: list[bytes], *, partition: int | None = None, headers: list[tuple[str, bytes]] | None = None
    ) -> None:
        """Produce records and wait until all are acknowledged."""
        producer = Producer(
            {
                "bootstrap.servers": self.servers.kafka,
                "enable.idempotence": True,
                "linger.ms": 5,
                "message.max.bytes": 2_000_000,
            }
        )
        for number, value in enumerate(values):
            at = number % (self.config.spec.source.topic.partitions or 1) if partition is None else partition
            producer.produce(self.config.events_topic, value, partition=at, headers=headers or [])
            producer.poll(0)
        assert producer.flush(30) == 0

    @contextmanager
    def reading(self, kind: Output, **settings: Any) -> Iterator[Consumer]:
        """A consumer of an output topic (results, anomalies, dead-letters) from its beginning, with more settings."""
        consumer = Consumer(
            {
                "bootstrap.servers": self.servers.kafka,
                "group.id": f"read-{time.time_ns()}",
                "auto.offset.reset": "earliest",
                **settings,
            }
        )
        consumer.subscribe([self.config.topic(kind)])
        try:
            yield consumer
        finally:
            consumer.close()

    def records(self, kind: Output) -> list[dict[str, Any]]:
        """All records of an output topic, less those that repeat an id."""
        found, ended = {}, 0
        with self.reading(kind, **{"enable.partition.eof": True}) as consumer:
            while ended < (self.config.spec.source.topic.partitions or 1):
                for message in consumer.consume(500, 1.0):
                    if message.error() is not None:
                        ended += 1
                    else:
                        found[dict(message.headers())["id"]] = json.loads(message.value())
        return list(found.values())

    def consumed(self) -> int:
        """Records that are accounted for in Postgres."""
        return int(self.query("SELECT coalesce(sum(consumed), 0) FROM {s}._offsets")[0][0])

    def await_consumed(self, number: int, *, seconds: float = 90.0) -> None:
        """Wait until that many records are accounted for."""
        eventually(lambda: self.consumed() >= number, seconds=seconds, what=f"{number} records consumed")
        assert number == self.consumed()

    def stop(self) -> None:
        """End all processors."""
        for process in self.processes:
            if process.poll() is None:
                process.send_signal(signal.SIGCONT)
                process.terminate()
        for process in self.processes:
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


MakeBench = Callable[..., Bench]
"""`make(config, at=…, **environment)`: a bench on the session's servers, or on those of `at`."""


def _create_topics(servers: Any, config: PipelineConfig) -> None:
    kafka = AdminClient({"bootstrap.servers": servers.kafka})
    read = dict.fromkeys([config.events_topic, config.read_topic])  # a Python stage writes the second
    topics = [*read, *(config.topic(kind) for kind in get_args(Output))]
    wanted = [
        NewTopic(name, config.spec.source.topic.partitions or 1, 1, config={"max.message.bytes": "2200000"})
        for name in topics
    ]
    delete_topics(kafka, topics)
    for future in kafka.create_topics(wanted).values():
        future.result(30)


@contextmanager
def benches(servers: Any, folder: Path) -> Iterator[MakeBench]:
    """Make benches as long as the block runs."""
    made: list[Bench] = []

    def make(config: PipelineConfig, *, at: Any = None, **environment: str) -> Bench:
        on = at or servers
        with connect_admin(on) as connection:
            create_schema(connection, config, started=False)
        if on.kafka:
            _create_topics(on, config)
        secrets = folder / "secrets" / config.name
        secrets.mkdir(parents=True)
        (folder / f"{config.name}.json").write_text(config.to_json())
        login = {"user": on.postgres.user, "password": on.postgres.password}
        (secrets / "writer.json").write_text(json.dumps(login))
        (secrets / "reader.json").write_text(json.dumps(login))
        bench = Bench(on, config, folder, environment)
        made.append(bench)
        return bench

    try:
        yield make
    finally:
        for bench in made:
            bench.stop()
