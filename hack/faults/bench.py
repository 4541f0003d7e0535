"""Runs the tested platform: `tidemill up`, with three brokers, Postgres and Redis behind proxies."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import psycopg
import yaml
from confluent_kafka.admin import AdminClient

from demo.runtime import DemoError, Runtime
from faults.checker import PIPELINE, Checker
from faults.proxy import Proxies, Proxy
from faults.sender import Acknowledged, BulkSender, IngestSender
from faults.watch import Watch
from tidemill_contract import names
from tidemill_operator.addresses import PostgresAddress
from tidemill_operator.laptop.servers import Server
from tidemill_operator.laptop.servers.kafka import kafka_brokers
from tidemill_operator.laptop.servers.postgres import postgres_server
from tidemill_operator.laptop.servers.redis import redis_server
from tidemill_operator.processes.child import descendants
from tidemill_operator.processes.ports import Ports

BROKERS = ("kafka", "kafka-2", "kafka-3")
LEADER = "leader"
_SESSION_MS = 6_000
_DISK_BYTES = 1_500_000_000
_FILLING_SECONDS, _FILLING_PAUSE_SECONDS = 3.0, 0.05


class Bench:
    """The running platform, and the tools that cause and observe a row's fault.

    Attributes:
        servers: The servers by name.
        proxies: The proxy of each server, by the server's name.
        runtime: The platform under test.
        postgres: The administrator's address of Postgres, without the proxy.
        ingest, bulk: The senders of events through ingest, and directly to Kafka.
        noted: The acknowledged events.
        checker: Compares the acknowledged events with the results.
        watch: Records health, figures and conditions.
        leader: The broker that led the first partition at the last check.
        disk: The small disk with Postgres' data, or None if the row needs no small disk.
    """

    def __init__(
        self,
        servers: Mapping[str, Server],
        proxies: Mapping[str, Proxy],
        runtime: Runtime,
        postgres: PostgresAddress,
        disk: Path | None = None,
    ) -> None:
        self.servers, self.proxies, self.runtime, self.postgres, self.disk = servers, proxies, runtime, postgres, disk
        self.schema = names.schema(runtime.namespace, runtime.name)
        self.topic = f"{runtime.namespace}.{runtime.name}.events"
        self.acknowledged, began = Acknowledged(), time.monotonic()
        self.ingest = IngestSender(runtime.url("ingest"), runtime.name, self.acknowledged, rate=500.0, began=began)
        self.bulk = BulkSender(runtime.kafka, self.topic, self.acknowledged, began=began)
        self.checker = Checker(runtime, self.acknowledged)
        brokers = [proxies[name].target for name in BROKERS]
        self.watch = Watch(
            runtime, postgres.url, brokers, acknowledged=lambda: self.acknowledged.count + self.acknowledged.poisoned
        )
        self.leader = BROKERS[0]

    def close(self) -> None:
        """Stop sending and watching, and wake all servers."""
        self.ingest.flow(on=False)
        self.watch.close()
        for name in self.servers:
            self.wake(name)
        for proxy in self.proxies.values():
            proxy.swallows, proxy.delay_seconds = False, 0.0
        self.bulk.close()
        self.ingest.close()

    def find_leader(self) -> None:
        """Update `leader`, the broker that leads the first partition."""
        client = AdminClient({"bootstrap.servers": self.runtime.kafka})
        number = client.list_topics(self.topic, timeout=20).topics[self.topic].partitions[0].leader
        self.leader = BROKERS[number - 1]

    def resolve_names(self, servers: Sequence[str]) -> Sequence[str]:
        """Return the names of servers, with LEADER replaced by the broker's name."""
        return [self.leader if name == LEADER else name for name in servers]

    def freeze(self, server: str) -> None:
        """Stop all processes of a server with SIGSTOP. Connections remain open, and requests get no answer."""
        self._signal(server, signal.SIGSTOP)

    def wake(self, server: str) -> None:
        """Continue all processes of a server with SIGCONT."""
        self._signal(server, signal.SIGCONT)

    def _signal(self, server: str, number: int) -> None:
        pid = self.servers[server].pid
        for process in [pid, *descendants(pid)] if pid else ():
            with suppress(ProcessLookupError):
                os.kill(process, number)

    def fill_disk(self) -> None:
        """Use all free space of Postgres' small disk.

        Raises:
            RuntimeError: The platform has no small disk.
        """
        if self.disk is None:
            raise RuntimeError("Postgres' data are not on a small disk; run the platform with small_disk=True")
        until = time.monotonic() + _FILLING_SECONDS
        with (self.disk / "filler").open("wb") as filler:
            # Postgres frees space when a transaction fails, and takes space meanwhile, so the loop tries again.
            while time.monotonic() < until:
                with suppress(OSError):
                    size, free = os.fstat(filler.fileno()).st_size, shutil.disk_usage(self.disk).free
                    os.posix_fallocate(filler.fileno(), size, max(free, 1))
                time.sleep(_FILLING_PAUSE_SECONDS)

    def empty_disk(self) -> None:
        """Free the space, and start Postgres again if it has ended."""
        if self.disk is not None:
            (self.disk / "filler").unlink(missing_ok=True)
        server = self.servers["postgres"]
        if not server.running:
            server.spawn()
        server.wait_ready()

    def pid(self, component: str) -> int:
        """Return the process id of a component's first replica.

        Raises:
            RuntimeError: No replica runs.
        """
        for name, state in self.runtime.status()["workloads"].items():
            if component in name and state["pid"]:
                return int(state["pid"])
        raise RuntimeError(f"no replica of {component} runs")

    def sql(self, statement: str, *arguments: object) -> list[tuple[Any, ...]]:
        """Run a statement as the administrator; `{schema}` is the pipeline's schema."""
        text = statement.replace("{schema}", f'"{self.schema}"')
        with psycopg.connect(self.postgres.url, connect_timeout=5, autocommit=True) as connection:
            cursor = connection.execute(text.encode(), arguments or None)
            return cursor.fetchall() if cursor.description else []

    def annotate(self, **annotations: str) -> None:
        """Set annotations in the file that `up` watches; an empty value removes one."""

        def change(_: dict[str, Any]) -> None:
            present = self.runtime.document["metadata"].setdefault("annotations", {})
            present |= {f"tidemill.dev/{name.replace('_', '-')}": value for name, value in annotations.items()}
            self.runtime.document["metadata"]["annotations"] = {name: value for name, value in present.items() if value}

        self.runtime.edit(change)


@contextmanager
def _disk(home: Path) -> Iterator[Path]:
    """Move the data of a stopped Postgres to a small disk in memory, which exists while the block runs.

    Raises:
        DemoError: The disk cannot be mounted, e.g. because the user is not root.
    """
    disk, data = home / "disk", home / "data"
    disk.mkdir()
    options = f"size={_DISK_BYTES},mode=0755"
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "tmpfs", disk], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise DemoError(f"a small disk cannot be mounted at {disk}: {done.stderr.strip()}; run this program as root")
    try:
        subprocess.run(["cp", "--archive", data, disk / "data"], check=True)
        shutil.rmtree(data)
        data.symlink_to(disk / "data")
        yield disk
    finally:
        subprocess.run(["umount", disk], check=True)


@contextmanager
def _servers(
    folder: Path, environ: Mapping[str, str], proxies: Proxies, *, small_disk: bool
) -> Iterator[tuple[Any, ...]]:
    folder.mkdir(parents=True)
    folder.chmod(0o755)
    ports = Ports(folder / "ports.json")
    fronts = {name: proxies.open(ports.get(name)) for name in (*BROKERS, "postgres", "redis")}
    brokers = kafka_brokers(
        folder, ports, environ=environ, count=len(BROKERS), advertised=[fronts[name].port for name in BROKERS]
    )
    postgres, address = postgres_server(folder, ports, environ=environ)
    started: Sequence[Server] = [*brokers, postgres, redis_server(folder, ports, environ=environ)]
    with _disk((folder / "postgres").resolve()) if small_disk else nullcontext() as disk:
        try:
            for server in started:
                server.spawn()
            for server in started:
                server.wait_ready()
            yield {server.name: server for server in started}, fronts, address, disk
        finally:
            for server in started:
                server.terminate()
            for server in started:
                server.stop()


@contextmanager
def running_bench(
    folder: Path, *, small_disk: bool = False, environ: Mapping[str, str] = os.environ
) -> Iterator[Bench]:
    """Run the platform while the block runs.

    Args:
        folder: The folder of all files, which every user may enter.
        small_disk: Whether Postgres' data are on a small disk, which a row can fill.
        environ: The environment of the servers and processes. Variables of Tidemill, such as addresses, are left out.
    """
    inherited = {name: value for name, value in environ.items() if not name.startswith("TIDEMILL_")}
    proxies = Proxies()
    try:
        with _servers(folder / "servers", inherited, proxies, small_disk=small_disk) as (
            servers,
            fronts,
            address,
            disk,
        ):
            file = folder / "faults.yaml"
            file.write_text(yaml.safe_dump(PIPELINE))
            environment = {
                "TIDEMILL_KAFKA_BROKERS": ",".join(f"127.0.0.1:{fronts[name].port}" for name in BROKERS),
                "TIDEMILL_POSTGRES_URL": replace(address, port=fronts["postgres"].port).url,
                "TIDEMILL_REDIS_URL": f"redis://127.0.0.1:{fronts['redis'].port}/0",
                "TIDEMILL_DEFAULT_REPLICATION_FACTOR": "3",
                "TIDEMILL_SESSION_TIMEOUT_MS": str(_SESSION_MS),
            }
            targets = ["--targets-file", str(folder / "up" / "targets.json")]
            runtime = Runtime(file, folder / "up", environment=environment, any_ports=True, options=targets)
            try:
                runtime.start()
                platform = Bench(servers, fronts, runtime, address, disk)
                try:
                    yield platform
                finally:
                    platform.close()
            finally:
                runtime.stop()
    finally:
        proxies.close()
