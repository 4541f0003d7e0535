"""One pipeline on real servers: the test creates its topics and schema, and starts its workloads as processes."""

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
    """Delete topics that exist: another module of the session may have had a pipeline of the same name."""

    def existing() -> list[str]:
        return [name for name in names if name in kafka.list_topics(timeout=10).topics]

    if names_on_brokers := existing():
        for future in kafka.delete_topics(names_on_brokers).values():
            future.result(30)
        eventually(lambda: not existing(), what="the topics are deleted")


def free_ports(number: int) -> list[int]:
    """Return ports on which no process listens."""
    with ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(number)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]


@dataclass
class Bench:
    """One pipeline with its topics, schema and workloads."""

    servers: Any
    config: PipelineConfig
    folder: Path
    environment: dict[str, str] = field(default_factory=dict)
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)
    ports: list[int] = field(default_factory=list)
    status_ports: list[int] = field(default_factory=list)
    """Ports of /metrics and full /health. A processor has only one port."""

    eventually = staticmethod(eventually)

    @property
    def schema(self) -> str:
        """The quoted name of the schema."""
        return quote(self.config.schema_name)

    def query(self, text: str, parameters: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
        """Return the rows of a query, in which `{s}` stands for the schema."""
        with connect_admin(self.servers) as connection:
            return connection.execute(text.replace("{s}", self.schema), parameters).fetchall()

    def start(
        self, instance: int = 0, *, module: str = "tidemill_processor", **environment: str
    ) -> subprocess.Popen[bytes]:
        """Start a processor, or the workload of another module."""
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
        """Return /health of a workload, or an empty dict while it does not answer."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.status_ports[index]}/health", timeout=5) as answer:
                return dict(json.load(answer))
        except urllib.error.HTTPError as error:
            return dict(json.load(error))
        except OSError:
            return {}

    def metrics(self, index: int = -1) -> str:
        """Return the text of /metrics of a workload."""
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
        """Yield a consumer that reads an output topic from its beginning. `settings` are those of librdkafka."""
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
        """Return all records of an output topic; of records with the same id, only the last."""
        by_id, ended = {}, 0
        with self.reading(kind, **{"enable.partition.eof": True}) as consumer:
            while ended < (self.config.spec.source.topic.partitions or 1):
                for message in consumer.consume(500, 1.0):
                    if message.error() is not None:
                        ended += 1
                    else:
                        by_id[dict(message.headers())["id"]] = json.loads(message.value())
        return list(by_id.values())

    def consumed(self) -> int:
        """Return the number of records that Postgres has as consumed."""
        return int(self.query("SELECT coalesce(sum(consumed), 0) FROM {s}._offsets")[0][0])

    def await_consumed(self, number: int, *, seconds: float = 90.0) -> None:
        """Wait until exactly this number of records is consumed."""
        eventually(lambda: self.consumed() >= number, seconds=seconds, what=f"{number} records consumed")
        assert number == self.consumed()

    def stop(self) -> None:
        """End all workloads."""
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
"""`make(config, at=…, **environment)` creates a pipeline on the session's servers, or on those of `at`."""


def _create_topics(servers: Any, config: PipelineConfig) -> None:
    kafka = AdminClient({"bootstrap.servers": servers.kafka})
    read = dict.fromkeys([config.events_topic, config.read_topic])  # A Python stage writes the second topic.
    topics = [*read, *(config.topic(kind) for kind in get_args(Output))]
    new_topics = [
        NewTopic(name, config.spec.source.topic.partitions or 1, 1, config={"max.message.bytes": "2200000"})
        for name in topics
    ]
    delete_topics(kafka, topics)
    for future in kafka.create_topics(new_topics).values():
        future.result(30)


@contextmanager
def benches(servers: Any, folder: Path) -> Iterator[MakeBench]:
    """Yield a function that creates benches. Their workloads are ended after the block."""
    created: list[Bench] = []

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
        created.append(bench)
        return bench

    try:
        yield make
    finally:
        for bench in created:
            bench.stop()
