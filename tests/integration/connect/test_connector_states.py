"""Tests of the connector actuator on a real Kafka Connect worker and a real Kafka."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from confluent_kafka import Consumer

from kafka_admin import KafkaAdmin
from running.hanging import frozen
from tidemill_operator.actuators.connect.client import ConnectClient
from tidemill_operator.actuators.connect.connectors import KafkaConnect
from tidemill_operator.actuators.connect.restarts import Restarts
from tidemill_operator.errors import Reason, TidemillError
from tidemill_operator.laptop.servers import Server, Servers
from tidemill_operator.laptop.servers.connect import connect_worker, secret_reference, secrets_folder
from tidemill_operator.laptop.servers.connect_jars import find_plugins
from tidemill_operator.outcome import Outcome, Rank
from tidemill_operator.plan.connect.connectors import FILES, owner_text
from tidemill_operator.plan.live import Owner
from tidemill_operator.plan.model import Connector
from tidemill_operator.processes.files import write_atomic
from tidemill_operator.processes.ports import Ports
from waiting import eventually

pytestmark = [pytest.mark.integration, pytest.mark.slow]

OWNER = Owner("shop", "lines", "u-1", "test")
TOPIC = "shop.lines.events"
ROUTE = "transforms.tidemillTopic"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("connect")


@pytest.fixture(scope="module")
def worker(servers: Servers, folder: Path) -> Iterator[Server]:
    """Start a Connect worker for this module, with the plugin that reads files."""
    plugins = find_plugins([FILES], os.environ)
    server = connect_worker(folder, Ports(folder / "ports.json"), brokers=servers.kafka, plugins=plugins)
    server.start()
    KafkaAdmin(servers.kafka).create(TOPIC)
    yield server
    server.stop()


def connector(file: str, name: str = "files", owner: Owner = OWNER, **config: str) -> Connector:
    """Return a connector that writes the lines of a file to TOPIC."""
    full_name = f"shop.lines.{name}"
    configs = {
        "name": full_name,
        "connector.class": FILES,
        "tasks.max": "1",
        "tidemill.owner": owner_text(owner),
        "topic": "elsewhere",
        "file": file,
        "value.converter": "org.apache.kafka.connect.storage.StringConverter",
        "transforms": "tidemillTopic",
        f"{ROUTE}.type": "org.apache.kafka.connect.transforms.RegexRouter",
        f"{ROUTE}.regex": ".*",
        f"{ROUTE}.replacement": TOPIC,
        **config,
    }
    return Connector(full_name, name, dict(sorted(configs.items())))


@pytest.fixture
def client(worker: Server) -> Iterator[ConnectClient]:
    # The long timeout is for a busy machine.
    rest = ConnectClient(f"http://127.0.0.1:{worker.port}", seconds=60)
    yield rest
    rest.close()


@pytest.fixture
def actuator(client: ConnectClient) -> Iterator[KafkaConnect]:
    connectors = KafkaConnect(client)
    yield connectors
    connectors.remove(owner=OWNER)


def stored(worker: Server, name: str) -> dict[str, Any]:
    """Return Connect's stored config and status of a connector, or an empty dict without this connector."""
    url = f"http://127.0.0.1:{worker.port}/connectors/{name}"
    info, status = (httpx.get(f"{url}{path}", timeout=10, trust_env=False) for path in ("", "/status"))
    return {**info.json(), "status": status.json()} if info.is_success else {}


def settle(actuator: KafkaConnect, *wanted: Connector, adopt: bool = False) -> list[Outcome]:
    """Run passes until one changes nothing and all connectors are done. Return its outcomes."""

    def done() -> list[Outcome]:
        outcomes = actuator.ensure(wanted, owner=OWNER, adopt=adopt)
        return outcomes if all(outcome.rank == Rank.DONE and not outcome.changed for outcome in outcomes) else []

    return eventually(done, what="connectors as specified", seconds=60)


def read_values(servers: Servers, *wanted: str) -> None:
    """Read the topic from its start until it has contained all these values."""
    settings = {
        "bootstrap.servers": servers.kafka,
        "group.id": f"t-{time.monotonic()}",
        "auto.offset.reset": "earliest",
    }
    consumer, values = Consumer(settings), set()
    consumer.subscribe([TOPIC])
    try:

        def all_read() -> bool:
            message = consumer.poll(1.0)
            if message is not None and not message.error():
                values.add((message.value() or b"").decode())
            return values >= set(wanted)

        eventually(all_read, what=lambda: f"{wanted}; read {values}", seconds=60)
    finally:
        consumer.close()


def test_a_connector_is_created_repaired_paused_and_deleted(
    servers: Servers, worker: Server, folder: Path, actuator: KafkaConnect
) -> None:
    """Its records arrive in the pipeline's topic. A change by others is reverted. A second pass writes nothing."""
    file = folder / "lines.txt"
    file.write_text("one\ntwo\n")
    wanted = connector(str(file))
    first = actuator.ensure([wanted], owner=OWNER)
    assert [(outcome.rank, outcome.changed) for outcome in first] == [(Rank.WAITING, 1)]
    (outcome,) = settle(actuator, wanted)
    assert outcome.observed == {"name": "files", "state": "RUNNING", "tasks": [{"id": 0, "state": "RUNNING"}]}
    read_values(servers, "one", "two")

    changed = {**wanted.config, "file": "/elsewhere", "stray": "1"}
    url = f"http://127.0.0.1:{worker.port}/connectors/{wanted.name}/config"
    httpx.put(url, json=changed, timeout=30, trust_env=False).raise_for_status()
    settle(actuator, wanted)
    assert stored(worker, wanted.name)["config"] == wanted.config

    (paused,) = settle(actuator, replace(wanted, paused=True))
    assert paused.observed["state"] == stored(worker, wanted.name)["status"]["connector"]["state"] == "PAUSED"
    settle(actuator, wanted)
    assert stored(worker, wanted.name)["status"]["connector"]["state"] == "RUNNING"

    (deleted,) = actuator.ensure([], owner=OWNER)
    assert (deleted.name, deleted.changed) == (wanted.name, 1)
    eventually(lambda: not stored(worker, wanted.name), what="the connector is deleted", seconds=30)
    assert actuator.ensure([], owner=OWNER) == []


def test_a_connector_that_is_created_paused_never_runs(folder: Path, actuator: KafkaConnect) -> None:
    """Thus a pipeline that is created suspended reads nothing."""
    file = folder / "unread.txt"
    file.write_text("unread\n")
    wanted = replace(connector(str(file), "halted"), paused=True)
    (outcome,) = settle(actuator, wanted)
    assert outcome.observed["state"] == "PAUSED"


def test_a_failed_task_is_named_and_restarted_with_growing_delays(
    folder: Path, client: ConnectClient, actuator: KafkaConnect
) -> None:
    """The message names connector, task and cause. A corrected connector runs at once."""
    now = [1_000.0]
    restarts = Restarts(lambda: now[0])
    file = folder / "failing.txt"
    file.write_text("a line\n")
    broken = connector(
        str(file),
        "broken",
        **{
            "transforms": "part,tidemillTopic",
            "transforms.part.type": "org.apache.kafka.connect.transforms.ExtractField$Value",
            "transforms.part.field": "x",
        },
    )
    restarting = KafkaConnect(client, restarts)

    def failing() -> Outcome | None:
        (outcome,) = restarting.ensure([broken], owner=OWNER)
        return outcome if outcome.rank == Rank.FAILED else None

    outcome = eventually(failing, what="a failed task", seconds=60)
    assert outcome.reason == Reason.CONNECTOR_FAILED
    assert "task 0 of connector shop.lines.broken failed: " in outcome.message
    assert "Only Struct objects supported" in outcome.message
    assert "restarted once, again at 1970-01-01T00:16:50Z" in outcome.message
    assert outcome.observed["tasks"] == [{"id": 0, "state": "FAILED"}]

    # The restarted task fails again, and the next restart waits for its delay.
    again = eventually(failing, what="the task failed again", seconds=60)
    assert "restarted once" in again.message
    now[0] += 10
    assert (
        "restarted 2 times, again at 1970-01-01T00:17:10Z"
        in eventually(failing, what="the task failed a third time", seconds=60).message
    )

    settle(restarting, connector(str(file), "broken"))


def test_connectors_of_another_pipeline_are_not_changed_unless_adopted(
    worker: Server, folder: Path, client: ConnectClient, actuator: KafkaConnect
) -> None:
    """Without adoption, such a connector is a conflict, and it is not deleted with this pipeline."""
    file = folder / "foreign.txt"
    file.write_text("")
    foreign = connector(str(file), "foreign", Owner("shop", "lines", "u-2", "test"))
    client.create(foreign.name, foreign.config, paused=False)
    eventually(lambda: stored(worker, foreign.name), what="the connector of the other pipeline", seconds=30)
    wanted = connector(str(file), "foreign")
    (outcome,) = actuator.ensure([wanted], owner=OWNER)
    assert (outcome.rank, outcome.reason) == (Rank.FAILED, Reason.RESOURCE_CONFLICT)
    assert "belongs to the pipeline test/shop/lines/u-2" in outcome.message
    assert actuator.ensure([], owner=OWNER) == actuator.remove(owner=OWNER) == []
    assert stored(worker, foreign.name)["config"] == foreign.config
    settle(actuator, wanted, adopt=True)
    assert stored(worker, foreign.name)["config"] == wanted.config
    assert [outcome.name for outcome in actuator.remove(owner=OWNER)] == [wanted.name]


def test_connect_stores_a_reference_to_a_secret_instead_of_its_value(
    servers: Servers, worker: Server, folder: Path, actuator: KafkaConnect
) -> None:
    """The worker resolves the reference, and the connector uses the value."""
    file = folder / "behind-a-secret.txt"
    file.write_text("from the secret file\n")
    write_atomic(secrets_folder(folder) / "shop" / "place" / "path", str(file), mode=0o600)
    reference = secret_reference(folder)
    for placeholder, text in {"{namespace}": "shop", "{name}": "place", "{key}": "path"}.items():
        reference = reference.replace(placeholder, text)
    wanted = connector(reference, "secret")
    settle(actuator, wanted)
    read_values(servers, "from the secret file")
    assert str(file) not in str(stored(worker, wanted.name)["config"])
    assert stored(worker, wanted.name)["config"]["file"] == reference


def test_an_unknown_class_is_refused_with_a_remedy(worker: Server, actuator: KafkaConnect) -> None:
    """The remedy is to install the plugin, and no connector is created."""
    wanted = connector("/none", "unknown", **{"connector.class": "com.example.NoConnector"})
    (outcome,) = actuator.ensure([wanted], owner=OWNER)
    assert (outcome.rank, outcome.reason) == (Rank.FAILED, Reason.REFUSED)
    assert "com.example.NoConnector" in outcome.message
    assert "install the connector's plugin" in outcome.message
    assert stored(worker, wanted.name) == {}


def test_a_worker_that_is_unreachable_is_reported_within_ten_seconds(
    worker: Server, folder: Path, actuator: KafkaConnect
) -> None:
    """Calls also end with an error if the worker hangs. After a restart, the connector runs again."""
    file = folder / "away.txt"
    file.write_text("")
    wanted = connector(str(file), "away")
    settle(actuator, wanted)
    began = time.monotonic()
    quick_client = ConnectClient(f"http://127.0.0.1:{worker.port}", seconds=2)
    with frozen(worker), pytest.raises(TidemillError) as error:
        KafkaConnect(quick_client).ensure([wanted], owner=OWNER)
    quick_client.close()
    assert error.value.reason == Reason.UNREACHABLE
    assert time.monotonic() - began < 10
    worker.kill()
    began = time.monotonic()
    with pytest.raises(TidemillError) as error:
        actuator.ensure([wanted], owner=OWNER)
    assert error.value.reason == Reason.UNREACHABLE
    assert f"Kafka Connect at http://127.0.0.1:{worker.port} does not answer" in str(error.value)
    assert time.monotonic() - began < 10
    worker.start()
    settle(actuator, wanted)
