"""CPU time and memory of processes, and a pipeline whose topics and schema the operator's actuators create."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import psycopg

from tidemill_contract.functions.partials import quote
from tidemill_contract.resource.spec import API_VERSION, KIND, AnalyticsPipeline
from tidemill_contract.runtime import PipelineConfig
from tidemill_operator.actuators.kafka.topics import KafkaTopics
from tidemill_operator.actuators.local.secrets import FileSecrets
from tidemill_operator.actuators.postgres.schema import PostgresSchemas
from tidemill_operator.laptop.servers import Servers
from tidemill_operator.outcome import Rank
from tidemill_operator.plan.build import build_plan, owner_of
from tidemill_operator.settings import Platform

T = TypeVar("T")
NAMESPACE = "bench"
_TICK = os.sysconf("SC_CLK_TCK")


class Cpu:
    """User and system time of a process and of all its children, also of children that have ended."""

    def __init__(self, pid: int | None) -> None:
        assert pid is not None
        self._pid = pid

    def seconds(self) -> float:
        """Return the CPU seconds that the processes have used until now."""
        children: dict[int, list[int]] = {}
        used: dict[int, int] = {}
        for entry in os.listdir("/proc"):
            if entry.isdigit():
                try:
                    fields = Path(f"/proc/{entry}/stat").read_text().rpartition(")")[2].split()
                except OSError:
                    continue
                children.setdefault(int(fields[1]), []).append(int(entry))
                used[int(entry)] = sum(map(int, fields[11:15]))
        ticks, todo = 0, [self._pid]
        while todo:
            pid = todo.pop()
            ticks += used.get(pid, 0)
            todo += children.get(pid, [])
        return ticks / _TICK


def peak_rss_mib(pid: int) -> float:
    """Return the maximal resident set size of a process since its start, in MiB."""
    return _status_mib(pid, "VmHWM")


def rss_mib(pid: int) -> float:
    """Return the resident set size of a process, in MiB."""
    return _status_mib(pid, "VmRSS")


def _status_mib(pid: int, name: str) -> float:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(name):
            return int(line.split()[1]) / 1024
    return 0.0


def await_condition(check: Callable[[], T], *, seconds: float, interval: float) -> T:
    """Call `check` until it returns a true value, and return this value.

    Raises:
        TimeoutError: No call within the time limit returned a true value.
    """
    deadline = time.monotonic() + seconds
    while True:
        if value := check():
            return value
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {seconds} s")
        time.sleep(interval)


def free_port() -> int:
    """Return a free port of the loopback interface."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Pipeline:
    """A pipeline with its topics, schema and secrets. The benchmark starts its processes.

    The operator's actuators create the topics, the schema and the secrets.
    """

    def __init__(self, servers: Servers, folder: Path, name: str, spec: dict[str, Any]) -> None:
        document = {
            "apiVersion": API_VERSION,
            "kind": KIND,
            "metadata": {"name": name, "namespace": NAMESPACE},
            "spec": spec,
        }
        self._servers, self._folder, self.name = servers, folder, name
        platform = Platform(kafka_brokers=servers.kafka, postgres=servers.postgres, redis_url=servers.redis)
        resource = AnalyticsPipeline.model_validate(document)
        plan = build_plan(resource, platform, generation=1)
        self.config = PipelineConfig.from_json(plan.config)
        self.schema = quote(plan.schema.name)
        secrets = FileSecrets(folder / "secrets").ensure(
            NAMESPACE, name, writer=plan.schema.writer, reader=plan.schema.reader
        )
        outcomes = PostgresSchemas(servers.postgres).ensure(
            plan.schema, owner=owner_of(resource, platform), secrets=secrets
        )
        outcomes += KafkaTopics(servers.kafka).ensure(plan.topics)
        failed = [outcome for outcome in outcomes if outcome.rank is Rank.FAILED]
        if failed:
            raise RuntimeError(f"{name}: {failed}")
        self._configs = folder / "pipelines" / NAMESPACE
        self._configs.mkdir(parents=True, exist_ok=True)
        (self._configs / f"{name}.json").write_text(plan.config)

    def connect(self) -> psycopg.Connection[Any]:
        """Return a connection to Postgres as the administrator."""
        at = self._servers.postgres
        return psycopg.connect(
            host=at.host, port=at.port, dbname=at.database, user=at.user, password=at.password, autocommit=True
        )

    def environment(self, port: int) -> dict[str, str]:
        """Return the environment of a process of the pipeline that serves on `port`."""
        return {
            **os.environ,
            "TIDEMILL_NAMESPACE": NAMESPACE,
            "TIDEMILL_PIPELINE": self.name,
            "TIDEMILL_CONFIG_DIR": str(self._configs),
            "TIDEMILL_SECRETS_DIR": str(self._folder / "secrets" / NAMESPACE),
            "TIDEMILL_KAFKA_BROKERS": self._servers.kafka,
            "TIDEMILL_POSTGRES_HOST": self._servers.postgres.host,
            "TIDEMILL_POSTGRES_PORT": str(self._servers.postgres.port),
            "TIDEMILL_POSTGRES_DATABASE": self._servers.postgres.database,
            "TIDEMILL_REDIS_URL": self._servers.redis,
            "TIDEMILL_PORT": str(port),
        }

    @contextmanager
    def run(
        self, module: str, port: int | None = None, extra: Mapping[str, str] | None = None
    ) -> Iterator[subprocess.Popen[bytes]]:
        """Start a process of the pipeline, and end the process with the block. The folder keeps its log."""
        process = self.start(module, port, extra)
        try:
            yield process
        finally:
            process.terminate()
            process.wait(30)

    def start(
        self, module: str, port: int | None = None, extra: Mapping[str, str] | None = None
    ) -> subprocess.Popen[bytes]:
        """Start a process of the pipeline, with `extra` in its environment. The caller ends the process."""
        with (self._folder / f"{self.name}-{module}.log").open("ab") as log:
            environment = {**self.environment(port or free_port()), **(extra or {})}
            return subprocess.Popen([sys.executable, "-m", module], env=environment, stdout=log, stderr=log)
