"""Starts Kafka servers on loopback, each in the roles of broker and controller."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import uuid
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient

from tidemill_contract.files import read_text
from tidemill_operator.laptop.servers.errors import ServerError
from tidemill_operator.laptop.servers.kafka_jars import find_jars, find_java
from tidemill_operator.laptop.servers.server import Progress, Server
from tidemill_operator.plan.connect.workers import WARNINGS_TO_CONSOLE
from tidemill_operator.processes.child import Command
from tidemill_operator.processes.files import write_atomic
from tidemill_operator.processes.ports import Ports, is_free

_LOG_CONFIG = f"""{WARNINGS_TO_CONSOLE}\
logger.server.name = kafka.server.KafkaRaftServer
logger.server.level = INFO
"""
# Options that make the JVM start fast.
_JVM = ("-XX:+UseSerialGC", "-Xshare:auto", "-Djava.awt.headless=true")
_HEAP, _HEAP_OF_MANY = ("-Xms256m", "-Xmx512m"), ("-Xms128m", "-Xmx384m")
_FORMAT_SECONDS = 120.0


def kafka_brokers(
    data_dir: Path,
    ports: Ports,
    *,
    environ: Mapping[str, str] = os.environ,
    count: int = 1,
    advertised: Sequence[int] = (),
    on_progress: Progress | None = None,
) -> list[Server]:
    """Return brokers with formatted storage, ready to be started.

    Raises:
        ServerError: Java, Maven or the jars are missing, or formatting failed.
    """
    home = data_dir / "kafka"
    home.mkdir(parents=True, exist_ok=True)
    java, jars = find_java(environ), find_jars(environ, on_progress)
    cluster_id = _cluster_id(home, count)
    names = ["kafka" if node == 1 else f"kafka-{node}" for node in range(1, count + 1)]
    client_ports = [ports.get(name) for name in names]
    controller_ports = [ports.get(f"{name}-controller") for name in names]
    voters = ",".join(f"{node}@127.0.0.1:{port}" for node, port in enumerate(controller_ports, 1))
    bootstrap = ",".join(f"127.0.0.1:{port}" for port in client_ports)
    servers = []
    for node, (name, port, controller) in enumerate(zip(names, client_ports, controller_ports, strict=True), 1):
        folder = home / str(node)
        properties = _properties(node, folder / "data", voters, client=port, controller=controller, count=count)
        if advertised:
            properties["advertised.listeners"] = f"PLAINTEXT://127.0.0.1:{advertised[node - 1]}"
        _configure(folder, properties)
        java_command = _java_command(java, jars, folder, count)
        _format(java_command, folder, cluster_id)
        command = Command(
            name,
            [*java_command, "kafka.Kafka", str(folder / "server.properties")],
            environment=environ,
            grace_seconds=15.0,
        )
        servers.append(
            Server(
                command,
                port=port,
                data_dir=data_dir,
                ready=partial(_answers, port, bootstrap, count),
                on_progress=on_progress,
            )
        )
    return servers


def _cluster_id(home: Path, count: int) -> str:
    path = home / "cluster.json"
    if not path.exists():
        cluster_id = base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
        # StorageTool would read an id that begins with a hyphen as an option.
        write_atomic(path, json.dumps({"id": "A" + cluster_id[1:], "brokers": count}))
    record = json.loads(read_text(path))
    if record["brokers"] != count:
        raise ServerError(
            f"{home} holds a cluster of {record['brokers']} brokers, not {count}: use another data folder"
        )
    return str(record["id"])


def _properties(node: int, data: Path, voters: str, *, client: int, controller: int, count: int) -> dict[str, str]:
    replicas = str(min(count, 3))
    in_sync = "2" if count >= 3 else "1"
    return {
        "process.roles": "broker,controller",
        "node.id": str(node),
        "broker.rack": f"rack-{node}",
        "controller.quorum.voters": voters,
        "listeners": f"PLAINTEXT://127.0.0.1:{client},CONTROLLER://127.0.0.1:{controller}",
        "advertised.listeners": f"PLAINTEXT://127.0.0.1:{client}",
        "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT",
        "controller.listener.names": "CONTROLLER",
        "inter.broker.listener.name": "PLAINTEXT",
        "log.dirs": str(data),
        "auto.create.topics.enable": "false",
        "delete.topic.enable": "true",
        "default.replication.factor": replicas,
        "min.insync.replicas": in_sync,
        "offsets.topic.replication.factor": replicas,
        "offsets.topic.num.partitions": "4",
        "transaction.state.log.replication.factor": replicas,
        "transaction.state.log.min.isr": in_sync,
        "transaction.state.log.num.partitions": "4",
        "share.coordinator.state.topic.replication.factor": replicas,
        "share.coordinator.state.topic.min.isr": in_sync,
        "group.initial.rebalance.delay.ms": "0",
        # By default, the session of a killed broker ends only after 9 s. Until then, the broker cannot register again.
        "broker.session.timeout.ms": "4000",
        "broker.heartbeat.interval.ms": "1000",
        "log.segment.delete.delay.ms": "1000",
        "log.cleaner.dedupe.buffer.size": str(32 * 1024 * 1024),
        "num.io.threads": "4",
        "num.network.threads": "2",
    }


def _configure(folder: Path, properties: Mapping[str, str]) -> None:
    write_atomic(folder / "log4j2.properties", _LOG_CONFIG)
    write_atomic(folder / "server.properties", "".join(f"{key}={value}\n" for key, value in properties.items()))


def _java_command(java: str, jars: Path, folder: Path, count: int) -> list[str]:
    heap = _HEAP if count == 1 else _HEAP_OF_MANY
    logging = f"-Dlog4j2.configurationFile=file:{folder / 'log4j2.properties'}"
    return [java, *heap, *_JVM, logging, "-cp", f"{jars}/*"]


def _format(java_command: list[str], folder: Path, cluster_id: str) -> None:
    data = folder / "data"
    marker = folder / "formatted"
    if marker.exists():
        return
    # If the file `formatted` is missing, formatting was not completed, so the data can be deleted.
    shutil.rmtree(data, ignore_errors=True)
    command = [
        *java_command,
        "kafka.tools.StorageTool",
        "format",
        "-t",
        cluster_id,
        "-c",
        str(folder / "server.properties"),
    ]
    result = subprocess.run(command, capture_output=True, text=True, timeout=_FORMAT_SECONDS, check=False)
    if result.returncode != 0:
        raise ServerError(f"formatting Kafka's storage in {data} failed:\n{(result.stdout + result.stderr)[-2000:]}")
    write_atomic(marker, cluster_id)


def _answers(port: int, bootstrap: str, count: int) -> bool:
    if is_free(port):  # do not connect yet, because the client would log each refused connection
        return False
    try:
        admin = AdminClient(
            {"bootstrap.servers": bootstrap, "log_level": 0, "socket.connection.setup.timeout.ms": 2000}
        )
        return len(admin.list_topics(timeout=2.0).brokers) >= count
    except KafkaException:
        return False
