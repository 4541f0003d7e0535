"""A Kafka Connect worker on loopback, which stores connectors and source positions in Kafka."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path

import httpx

from tidemill_operator.laptop.servers.connect_jars import find_connect_jars
from tidemill_operator.laptop.servers.kafka_jars import find_java
from tidemill_operator.laptop.servers.server import Progress, Server
from tidemill_operator.plan.connect.workers import NAME as GROUP
from tidemill_operator.plan.connect.workers import WARNINGS_TO_CONSOLE, common_properties
from tidemill_operator.processes.child import Command
from tidemill_operator.processes.files import write_atomic
from tidemill_operator.processes.ports import Ports, is_free

NAME = "connect"
_PROVIDER = "tidemill"
_JVM = ("-Xms64m", "-Xmx512m", "-XX:+UseSerialGC", "-Xshare:auto", "-Djava.awt.headless=true")
_READY_SECONDS = 120.0


def secrets_folder(data_dir: Path) -> Path:
    """Return the folder from which the worker reads secrets (`<namespace>/<secret>/<key>`)."""
    return data_dir / NAME / "secrets"


def secret_reference(data_dir: Path) -> str:
    """Return the template for references to a Secret's key in connector configs."""
    return f"${{{_PROVIDER}:{secrets_folder(data_dir)}/{{namespace}}/{{name}}:{{key}}}}"


def connect_worker(
    data_dir: Path,
    ports: Ports,
    *,
    brokers: str,
    plugins: Sequence[Path],
    environ: Mapping[str, str] = os.environ,
    on_progress: Progress | None = None,
) -> Server:
    """Return a worker that is ready to be started.

    Raises:
        ServerError: Java or the jars are missing.
    """
    folder = data_dir / NAME
    secrets_folder(data_dir).mkdir(mode=0o700, parents=True, exist_ok=True)
    java, jars = find_java(environ), find_connect_jars(environ, on_progress)
    port = ports.get(NAME)
    user_plugins = [path.strip() for path in environ.get("TIDEMILL_CONNECT_PLUGINS", "").split(",") if path.strip()]
    # Log only warnings, because Connect would log connector configs at level INFO.
    write_atomic(folder / "log4j2.properties", WARNINGS_TO_CONSOLE)
    properties = _properties(data_dir, port, brokers, [*map(str, plugins), *user_plugins], scan=bool(user_plugins))
    write_atomic(folder / "worker.properties", "".join(f"{key}={value}\n" for key, value in properties.items()))
    logging = f"-Dlog4j2.configurationFile=file:{folder / 'log4j2.properties'}"
    program = [java, *_JVM, logging, "-cp", f"{jars}/*", "org.apache.kafka.connect.cli.ConnectDistributed"]
    return Server(
        Command(NAME, [*program, str(folder / "worker.properties")], environment=environ, grace_seconds=15.0),
        port=port,
        data_dir=data_dir,
        ready=partial(_answers, port),
        on_progress=on_progress,
        ready_seconds=_READY_SECONDS,
    )


def _properties(data_dir: Path, port: int, brokers: str, plugins: Iterable[str], *, scan: bool) -> dict[str, str]:
    return {
        **common_properties(GROUP, brokers=brokers, replicas=1, partitions={"offset": 4, "status": 1}),
        "listeners": f"http://127.0.0.1:{port}",
        "plugin.path": ",".join(plugins),
        # Scan only if a plugin may lack a service manifest, because scanning takes seconds.
        "plugin.discovery": "hybrid_warn" if scan else "service_load",
        "config.providers": _PROVIDER,
        f"config.providers.{_PROVIDER}.class": "org.apache.kafka.common.config.provider.DirectoryConfigProvider",
        f"config.providers.{_PROVIDER}.param.allowed.paths": str(secrets_folder(data_dir)),
        # with a single worker, a rebalance need not wait for other workers
        "scheduled.rebalance.max.delay.ms": "0",
        "session.timeout.ms": "6000",
        "heartbeat.interval.ms": "2000",
    }


def _answers(port: int) -> bool:
    if is_free(port):
        return False
    try:
        return httpx.get(f"http://127.0.0.1:{port}/connectors", timeout=5.0, trust_env=False).is_success
    except httpx.HTTPError:
        return False
