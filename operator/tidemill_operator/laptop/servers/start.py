"""Starts Kafka, Postgres and Redis as child processes, unless the environment names their addresses."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from tidemill_contract import tls
from tidemill_operator.addresses import PostgresAddress
from tidemill_operator.laptop.servers import connect as _connect
from tidemill_operator.laptop.servers import kafka as _kafka
from tidemill_operator.laptop.servers import postgres as _postgres
from tidemill_operator.laptop.servers import redis as _redis
from tidemill_operator.laptop.servers.errors import ServerError
from tidemill_operator.laptop.servers.server import Progress, Server
from tidemill_operator.processes.child import end_leftover
from tidemill_operator.processes.ports import Ports

NEEDS = ("kafka", "postgres", "redis")


@dataclass
class Servers:
    """The addresses of Kafka, Postgres and Redis, and the servers that were started.

    Attributes:
        kafka: bootstrap brokers, `host:port,…`, or empty if Kafka is not needed.
        redis: the URL of Redis, or empty if Redis is not needed.
        redis_ca: PEM file of the certificate authorities for Redis, or empty for the system's authorities.
        handles: the started servers by name.
    """

    kafka: str = ""
    postgres: PostgresAddress = field(default_factory=lambda: PostgresAddress("", 0, "", "", ""))
    redis: str = ""
    redis_ca: str = ""
    handles: dict[str, Server] = field(default_factory=dict)

    def set_connect(self, server: Server | None) -> None:
        """Add the Kafka Connect worker to `handles`, or remove it if `server` is None."""
        # a new dict, because other threads may read the old dict
        others = {name: handle for name, handle in self.handles.items() if name != _connect.NAME}
        self.handles = others if server is None else {**others, server.name: server}

    def stop(self) -> None:
        """Stop all started servers at the same time, because brokers wait for each other."""
        for server in self.handles.values():
            server.terminate()
        for server in self.handles.values():
            server.stop()


def start_servers(
    data_dir: Path,
    *,
    environ: Mapping[str, str] = os.environ,
    needs: Sequence[str] = NEEDS,
    durable: bool = True,
    brokers: int = 1,
    reserved: Collection[int] = (),
    on_progress: Progress | None = None,
) -> Servers:
    """Start the servers in `needs`, and return once every server answers.

    A server is not started if TIDEMILL_KAFKA_BROKERS, TIDEMILL_POSTGRES_URL or TIDEMILL_REDIS_URL names its address.

    Args:
        data_dir: the folder for the servers' data, logs and port numbers, which the next start reuses.
        environ: environment variables, including PATH and server addresses. Started servers inherit these variables.
        needs: which of kafka, postgres and redis are needed.
        durable: whether Postgres commits wait until the data is on disk.
        brokers: number of Kafka brokers.
        reserved: ports that are meant for other processes.
        on_progress: called with lines of progress.

    Raises:
        ServerError: a server cannot be started; the servers that had started are stopped.
    """
    data_dir = data_dir.absolute()
    data_dir.mkdir(parents=True, exist_ok=True)
    for name in needs:
        for pid_file in (data_dir / "run").glob(f"{name}*.pid"):
            end_leftover(pid_file)
    starter = _ServerStarter(data_dir, environ, Ports(data_dir / "ports.json", reserved=reserved), on_progress)
    servers = starter.servers
    jobs: list[Callable[[], None]] = []
    if "kafka" in needs:
        servers.kafka = environ.get("TIDEMILL_KAFKA_BROKERS", "")
        jobs += [] if servers.kafka else [partial(starter.kafka, brokers)]
    if "postgres" in needs:
        address = PostgresAddress.from_env(environ)
        servers.postgres = address or servers.postgres
        jobs += [] if address else [partial(starter.postgres, durable=durable)]
    if "redis" in needs:
        servers.redis = environ.get("TIDEMILL_REDIS_URL", "")
        servers.redis_ca = (
            tls.ca_path("TIDEMILL_REDIS_CA", environ.get("TIDEMILL_REDIS_CA", "")) if servers.redis else ""
        )
        jobs += [] if servers.redis else [starter.redis]
    try:
        _run(jobs, starter)
        _wait_for_external(starter.servers, started=starter.started)
    except BaseException:
        starter.abort()
        raise
    starter.servers.handles = {server.name: server for server in starter.started}
    return starter.servers


class _ServerStarter:
    def __init__(self, data_dir: Path, environ: Mapping[str, str], ports: Ports, on_progress: Progress | None) -> None:
        self.servers = Servers()
        self.started: list[Server] = []
        self._data_dir = data_dir
        self._ports = ports
        self._environ = environ
        self._on_progress = on_progress

    def kafka(self, count: int) -> None:
        nodes = _kafka.kafka_brokers(
            self._data_dir, self._ports, environ=self._environ, count=count, on_progress=self._on_progress
        )
        self.started += nodes
        for node in nodes:
            node.spawn()
        for node in nodes:
            node.wait_ready()
        self.servers.kafka = ",".join(f"127.0.0.1:{node.port}" for node in nodes)

    def postgres(self, *, durable: bool) -> None:
        server, self.servers.postgres = _postgres.postgres_server(
            self._data_dir, self._ports, environ=self._environ, durable=durable, on_progress=self._on_progress
        )
        self.started.append(server)
        server.start()

    def redis(self) -> None:
        server = _redis.redis_server(self._data_dir, self._ports, environ=self._environ, on_progress=self._on_progress)
        self.started.append(server)
        server.start()
        self.servers.redis = f"redis://127.0.0.1:{server.port}/0"

    def abort(self) -> None:
        for server in self.started:
            server.kill()


def _run(jobs: Sequence[Callable[[], None]], starter: _ServerStarter) -> None:
    with ThreadPoolExecutor(max_workers=len(NEEDS)) as pool:
        try:
            for future in [pool.submit(job) for job in jobs]:
                future.result()
        except BaseException:
            starter.abort()
            raise


def _wait_for_external(servers: Servers, *, started: Sequence[Server], seconds: float = 30.0) -> None:
    """Wait for the Postgres and Redis servers that this process did not start."""
    names = {server.name for server in started}
    checks = {}
    if servers.postgres.host and "postgres" not in names:
        checks[f"Postgres at {servers.postgres.public_url}"] = partial(_postgres.connection_error, servers.postgres)
    if servers.redis and "redis" not in names:
        checks["Redis at TIDEMILL_REDIS_URL"] = partial(_redis.connection_error, servers.redis, servers.redis_ca)
    deadline = time.monotonic() + seconds
    for what, check in checks.items():
        while error := check():
            if remedy := tls.certificate_remedy(what.partition(" ")[0].lower(), error):
                raise ServerError(f"{what}: {error}: {remedy}")
            if time.monotonic() > deadline:
                raise ServerError(
                    f"{what} does not answer within {seconds:.0f} s ({error}): check the server, its address"
                    " and its password"
                )
            time.sleep(0.2)
