"""Kafka, Postgres and Redis for one machine: those the environment names, else real ones started as child processes."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from tidemill_operator.local.child import end_leftover
from tidemill_operator.local.ports import Ports
from tidemill_operator.servers import kafka as _kafka
from tidemill_operator.servers import postgres as _postgres
from tidemill_operator.servers import redis as _redis
from tidemill_operator.servers.addresses import PostgresAddress
from tidemill_operator.servers.errors import ServerError
from tidemill_operator.servers.server import Progress, Server

__all__ = ["PostgresAddress", "Server", "ServerError", "Servers", "start_servers"]

NEEDS = ("kafka", "postgres", "redis")


@dataclass
class Servers:
    """Addresses of the three servers, and handles of those that we started.

    Attributes:
        kafka: bootstrap brokers, `host:port,…`; empty if not asked for.
        postgres: the administrator's address; None if not asked for.
        redis: URL; empty if not asked for.
        handles: `kafka` (and `kafka-2`, …), `postgres`, `redis`, as far as they are ours.
    """

    kafka: str = ""
    postgres: PostgresAddress = field(default_factory=lambda: PostgresAddress("", 0, "", "", ""))
    redis: str = ""
    handles: dict[str, Server] = field(default_factory=dict)

    def stop(self) -> None:
        """Stop all that we started, at the same time; brokers of one cluster wait for each other otherwise."""
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
    on_progress: Progress | None = None,
) -> Servers:
    """Start what is asked for and not given by TIDEMILL_KAFKA_BROKERS, TIDEMILL_POSTGRES_URL or TIDEMILL_REDIS_URL.

    Returns when each of them answers. Data, ports and logs are below `data_dir` and used again by a second start.

    Args:
        data_dir: the folder of data, ports and logs; made if missing.
        environ: where addresses and PATH are read, and what the servers inherit.
        needs: some of kafka, postgres, redis.
        durable: False: Postgres does not wait for the disk (for tests).
        brokers: number of Kafka brokers.
        on_progress: told what happens, a line at a time.

    Raises:
        ServerError: one cannot be started; those that were are stopped again.
        ValueError: TIDEMILL_POSTGRES_URL is not a Postgres URL.
    """
    data_dir = data_dir.absolute()
    data_dir.mkdir(parents=True, exist_ok=True)
    for name in needs:
        for pid_file in (data_dir / "run").glob(f"{name}*.pid"):
            end_leftover(pid_file)
    ports = Ports(data_dir / "ports.json")
    servers = Servers(
        kafka=environ.get("TIDEMILL_KAFKA_BROKERS", "") if "kafka" in needs else "",
        redis=environ.get("TIDEMILL_REDIS_URL", "") if "redis" in needs else "",
    )
    started: list[Server] = []
    options = {"environ": environ, "on_progress": on_progress}

    def run_kafka() -> None:
        nodes = _kafka.kafka_brokers(data_dir, ports, count=brokers, **options)  # type: ignore[arg-type]
        started.extend(nodes)
        for node in nodes:
            node.spawn()
        for node in nodes:
            node.wait_ready()
        servers.kafka = ",".join(f"127.0.0.1:{node.port}" for node in nodes)

    def run_postgres() -> None:
        server, servers.postgres = _postgres.postgres_server(data_dir, ports, durable=durable, **options)  # type: ignore[arg-type]
        started.append(server)
        server.start()

    def run_redis() -> None:
        server = _redis.redis_server(data_dir, ports, **options)  # type: ignore[arg-type]
        started.append(server)
        server.start()
        servers.redis = f"redis://127.0.0.1:{server.port}/0"

    jobs = []
    if "kafka" in needs and not servers.kafka:
        jobs.append(run_kafka)
    if "postgres" in needs:
        if url := environ.get("TIDEMILL_POSTGRES_URL"):
            servers.postgres = PostgresAddress.from_url(url)
        else:
            jobs.append(run_postgres)
    if "redis" in needs and not servers.redis:
        jobs.append(run_redis)
    try:
        with ThreadPoolExecutor(max_workers=3) as pool:
            for future in [pool.submit(job) for job in jobs]:
                future.result()
        _await_given(servers, ours=started)
    except BaseException:
        for server in started:
            server.kill()
        raise
    servers.handles = {server.name: server for server in started}
    return servers


def _await_given(servers: Servers, *, ours: Sequence[Server], seconds: float = 30.0) -> None:
    """Wait for the Postgres and Redis that the environment names; Kafka's own clients wait and say so."""
    names = {server.name for server in ours}
    checks = {}
    if servers.postgres.host and "postgres" not in names:
        checks[f"Postgres at {servers.postgres.public_url}"] = partial(_postgres.answers, servers.postgres)
    if servers.redis and "redis" not in names:
        checks["Redis at TIDEMILL_REDIS_URL"] = partial(_redis.answers, servers.redis)
    deadline = time.monotonic() + seconds
    for what, check in checks.items():
        while not check():
            if time.monotonic() > deadline:
                raise ServerError(
                    f"{what} does not answer within {seconds:.0f} s: is it up, and are address and password right?"
                )
            time.sleep(0.2)
