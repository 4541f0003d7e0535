"""Fixtures over real servers: schemas and topics of pipelines, and processors as processes of their own."""

from __future__ import annotations

import copy
import datetime as dt
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
from typing import Any

import jsonschema
import psycopg
import pytest
from confluent_kafka import Consumer, Producer
from confluent_kafka.admin import AdminClient, NewTopic

from tidemill_contract import names
from tidemill_contract.functions.partials import quote
from tidemill_contract.runtime import PipelineConfig, WorkloadSettings
from tidemill_operator.actuators.base import Actuators
from tidemill_operator.actuators.kafka.topics import KafkaTopics
from tidemill_operator.actuators.local.runtime import LocalRuntime
from tidemill_operator.actuators.local.secrets import FileSecrets
from tidemill_operator.actuators.postgres.schema import PostgresSchemas
from tidemill_operator.plan.postgres.schema import desired_schema
from tidemill_operator.reconcile import reconcile, release
from tidemill_operator.settings import Platform
from tidemill_processor.database import Database

SCHEMAS = Path(__file__).resolve().parents[2] / "docs" / "reference"

PipelineSchema = tuple[psycopg.Connection[Any], Database]


def connect_admin(servers: Any) -> psycopg.Connection[Any]:
    """The administrator's connection, in UTC."""
    at = servers.postgres
    return psycopg.connect(
        host=at.host,
        port=at.port,
        dbname=at.database,
        user=at.user,
        password=at.password,
        autocommit=True,
        options="-c TimeZone=UTC",
    )


def eventually(check: Callable[[], Any], *, seconds: float = 90.0, what: str = "condition") -> Any:
    """The first true value of `check`, asked for until a deadline."""
    deadline = time.monotonic() + seconds
    while True:
        value = check()
        if value:
            return value
        if time.monotonic() > deadline:
            pytest.fail(f"{what}: not within {seconds} s; last seen: {value!r}")
        time.sleep(0.1)


@pytest.fixture(name="eventually", scope="session")
def _eventually() -> Callable[..., Any]:
    """The same for tests without a bench."""
    return eventually


@pytest.fixture
def documented() -> Callable[[str, dict[str, Any]], None]:
    """Holds a record of an output topic against the schema in the documentation: `documented("results", record)`."""
    times = jsonschema.FormatChecker(formats=())
    times.checks("date-time", raises=ValueError)(dt.datetime.fromisoformat)

    def check(kind: str, record: dict[str, Any]) -> None:
        schema = json.loads((SCHEMAS / f"{kind}.schema.json").read_text())
        jsonschema.validate(record, schema, jsonschema.Draft202012Validator, format_checker=times)

    return check


@pytest.fixture
def admin(servers: Any) -> Iterator[psycopg.Connection[Any]]:
    """The administrator's connection of the session's Postgres."""
    with connect_admin(servers) as connection:
        yield connection


def delete_topics(kafka: AdminClient, names: list[str]) -> None:
    """Make way: another module of the session may have had a pipeline of the same name."""

    def known() -> list[str]:
        return [name for name in names if name in kafka.list_topics(timeout=10).topics]

    if found := known():
        for future in kafka.delete_topics(found).values():
            future.result(30)
        eventually(lambda: not known(), what="the topics are gone")


def create_schema(admin: psycopg.Connection[Any], config: PipelineConfig, *, started: bool) -> None:
    """A pipeline's tables; `started`: with positions at zero, as if partitions had been taken up."""
    wanted = desired_schema(config)
    schema = quote(wanted.name)
    admin.execute(f"DROP SCHEMA IF EXISTS {schema} CASCADE")
    admin.execute(f"CREATE SCHEMA {schema}")
    for table in wanted.tables:
        columns = ", ".join([*(f"{quote(c.name)} {c.definition}" for c in table.columns), *table.constraints])
        kind = (
            f" PARTITION BY {table.partition_by}"
            if table.partition_by
            else f" WITH ({table.storage})"
            if table.storage
            else ""
        )
        admin.execute(f"CREATE TABLE {schema}.{quote(table.name)} ({columns}){kind}")
        for name, definition in table.indexes:
            admin.execute(f"CREATE INDEX {quote(name)} ON {schema}.{quote(table.name)} {definition}")
    for _, text in wanted.functions:
        admin.execute(text)
    for row in wanted.aggregations:
        admin.execute(
            f"INSERT INTO {schema}._aggregations"
            " (name, version, table_name, reader, shape, partition_days, retention_ms)"
            " VALUES (%s, %s, %s, %s, %s, %s, %s)",
            (row.name, row.version, row.table_name, row.reader, row.shape, row.partition_days, row.retention_ms),
        )
    admin.execute(f"INSERT INTO {schema}._readers (reader) VALUES ('live')")
    admin.execute(f"INSERT INTO {schema}._generation (generation) VALUES (%s)", (wanted.generation,))
    at = ("x", 0) if started else (None, None)
    for partition in range(wanted.partitions):
        admin.execute(
            f"INSERT INTO {schema}._offsets (reader, partition, topic_id, next_offset) VALUES ('live', %s, %s, %s)",
            (partition, *at),
        )


@pytest.fixture
def make_schema(admin: psycopg.Connection[Any]) -> Callable[[PipelineConfig], PipelineSchema]:
    """Makes a pipeline's tables; the positions of its partitions stand at the start."""

    def make(config: PipelineConfig) -> PipelineSchema:
        create_schema(admin, config, started=True)
        return admin, Database(WorkloadSettings(), config, 10)

    return make


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
        self.status_ports.append(port if module == "tidemill_processor" else status_port)
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
    def reading(self, kind: str, **settings: Any) -> Iterator[Consumer]:
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

    def records(self, kind: str) -> list[dict[str, Any]]:
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


def _create_topics(servers: Any, config: PipelineConfig) -> None:
    kafka = AdminClient({"bootstrap.servers": servers.kafka})
    topics = [config.events_topic, *(config.topic(kind) for kind in ("results", "anomalies", "dead-letters"))]
    wanted = [
        NewTopic(name, config.spec.source.topic.partitions or 1, 1, config={"max.message.bytes": "2200000"})
        for name in topics
    ]
    delete_topics(kafka, topics)
    for future in kafka.create_topics(wanted).values():
        future.result(30)


@contextmanager
def _bench_maker(servers: Any, tmp_path: Path) -> Iterator[Callable[..., Bench]]:
    benches = []

    def make(config: PipelineConfig, *, at: Any = None, **environment: str) -> Bench:
        on = at or servers
        with connect_admin(on) as connection:
            create_schema(connection, config, started=False)
        if on.kafka:
            _create_topics(on, config)
        secrets = tmp_path / "secrets" / config.name
        secrets.mkdir(parents=True)
        (tmp_path / f"{config.name}.json").write_text(config.to_json())
        login = {"user": on.postgres.user, "password": on.postgres.password}
        (secrets / "writer.json").write_text(json.dumps(login))
        (secrets / "reader.json").write_text(json.dumps(login))
        bench = Bench(on, config, tmp_path, environment)
        benches.append(bench)
        return bench

    try:
        yield make
    finally:
        for bench in benches:
            bench.stop()


@pytest.fixture
def make_bench(servers: Any, tmp_path: Path) -> Iterator[Callable[..., Bench]]:
    """Makes a pipeline with topics and schema; its processors are started by the test and ended after it."""
    with _bench_maker(servers, tmp_path) as make:
        yield make


@pytest.fixture(scope="module")
def make_shared_bench(servers: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Bench]]:
    """The same for benches that all tests of a module share."""
    with _bench_maker(servers, tmp_path_factory.mktemp("bench")) as make:
        yield make


@pytest.fixture(scope="module")
def make_bench_at(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Bench]]:
    """The same on servers that the module names: `make_bench_at(config, at=…)`; without Kafka there are no topics."""
    with _bench_maker(None, tmp_path_factory.mktemp("bench")) as make:
        yield make


@dataclass
class LocalPipeline:
    """One pipeline under the local runtime, reconciled by the test: real processes on the session's servers."""

    servers: Any
    folder: Path
    document: dict[str, Any]
    actuators: Actuators
    runtime: LocalRuntime
    status: dict[str, Any] | None = None

    eventually = staticmethod(eventually)

    @property
    def namespace(self) -> str:
        """Its namespace."""
        return str(self.document["metadata"]["namespace"])

    @property
    def name(self) -> str:
        """Its name."""
        return str(self.document["metadata"]["name"])

    @property
    def schema(self) -> str:
        """Its Postgres schema."""
        return names.schema(self.namespace, self.name)

    def query(self, text: str) -> list[tuple[Any, ...]]:
        """Rows of a query; `{s}` stands for the schema."""
        with connect_admin(self.servers) as connection:
            return connection.execute(text.replace("{s}", quote(self.schema))).fetchall()

    def reconcile(self, actuators: Actuators | None = None) -> dict[str, str]:
        """One pass; the conditions that are true, with their reasons."""
        self.status = reconcile(
            self.document,
            platform=Platform(),
            actuators=actuators or self.actuators,
            previous=self.status,
            now=dt.datetime.now(dt.UTC),
        )
        return {c["type"]: c["reason"] for c in self.status["conditions"] if c["status"] == "True"}

    def settle(self, *, seconds: float = 90.0) -> dict[str, str]:
        """Passes until it is ready; the conditions that are true then."""
        return dict(
            eventually(
                lambda: found if "Ready" in (found := self.reconcile()) and "Progressing" not in found else None,
                seconds=seconds,
                what=f"{self.name} is ready",
            )
        )

    def message(self, kind: str) -> str:
        """What a condition says."""
        assert self.status is not None
        return next(str(c["message"]) for c in self.status["conditions"] if c["type"] == kind)

    def pids(self) -> dict[str, int | None]:
        """Its processes, by `processor-0`, `ingest-0`, …."""
        prefixes = (f"{self.namespace}.{self.name}-", f"{self.namespace}.tidemill-")
        return {
            name.removeprefix(prefix): state.pid
            for name, state in self.runtime.states().items()
            for prefix in prefixes
            if name.startswith(prefix)
        }

    def url(self, component: str) -> str:
        """Where ingest or API listens for this pipeline."""
        return f"{self.runtime.endpoints(self.namespace, self.name)[component]}/v1/pipelines/{self.name}"

    def consumed(self) -> int:
        """Records that are accounted for in Postgres."""
        return int(self.query("SELECT coalesce(sum(consumed), 0) FROM {s}._offsets")[0][0])


@pytest.fixture
def make_local(servers: Any, tmp_path: Path) -> Iterator[Callable[[dict[str, Any]], LocalPipeline]]:
    """Prepares a pipeline for the local runtime; topics, schema and processes go after the test."""
    made: list[LocalPipeline] = []

    def make(document: dict[str, Any]) -> LocalPipeline:
        at, folder = servers.postgres, tmp_path / str(len(made))
        addresses = {
            "TIDEMILL_KAFKA_BROKERS": servers.kafka,
            "TIDEMILL_POSTGRES_HOST": at.host,
            "TIDEMILL_POSTGRES_PORT": str(at.port),
            "TIDEMILL_POSTGRES_DATABASE": at.database,
            "TIDEMILL_REDIS_URL": servers.redis,
        }
        runtime = LocalRuntime(folder, environ=os.environ, addresses=addresses, ports={"ingest": 0, "api": 0})
        actuators = Actuators(
            kafka=KafkaTopics(servers.kafka),
            postgres=PostgresSchemas(at),
            secrets=FileSecrets(runtime.secrets_root),
            runtime=runtime,
        )
        runtime.start()
        made.append(LocalPipeline(servers, folder, copy.deepcopy(document), actuators, runtime))
        return made[-1]

    yield make
    for one in made:
        one.document["spec"]["reclaimPolicy"] = "Delete"
        try:
            release(one.document, platform=Platform(), actuators=one.actuators)
        finally:
            one.runtime.close()
