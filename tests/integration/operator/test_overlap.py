"""Tests of several operators that reconcile one pipeline on a real Kafka and Postgres: only one writes at a time."""

from __future__ import annotations

import datetime as dt
import json
import multiprocessing
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from played.no_processes import NoProcesses
from tidemill_operator.actuators.base import Actuators
from tidemill_operator.actuators.kafka.topics import KafkaTopics
from tidemill_operator.actuators.local.secrets import FileSecrets
from tidemill_operator.actuators.postgres import ownership
from tidemill_operator.actuators.postgres.schema import PostgresSchemas
from tidemill_operator.addresses import PostgresAddress
from tidemill_operator.errors import LockNotHeldError, Reason
from tidemill_operator.laptop.servers import Servers
from tidemill_operator.outcome import Outcome
from tidemill_operator.reconcile import reconcile, release
from tidemill_operator.settings import Platform

pytestmark = pytest.mark.integration
_PASSES, _PROCESSES = 6, 2


class Leader:
    """An elected or a former leader; it replaces the cluster's Lease."""

    def __init__(self, epoch: int, *, leads: bool = True) -> None:
        self.epoch, self.leads = epoch, leads

    def raise_epoch_above(self, epoch: int) -> int:
        if not self.leads:
            raise LockNotHeldError(Reason.WAITING, f"another leads (epoch {epoch})")
        self.epoch = epoch + 1
        return self.epoch


def document(namespace: str, *, partitions: int = 3, generation: int = 1) -> dict[str, Any]:
    return {
        "apiVersion": "tidemill.dev/v1alpha1",
        "kind": "AnalyticsPipeline",
        "metadata": {"name": "orders", "namespace": namespace, "uid": "uid-1", "generation": generation},
        "spec": {
            "reclaimPolicy": "Delete",
            "source": {
                "topic": {"partitions": partitions},
                "fields": [{"name": "shop", "type": "string"}, {"name": "amount", "type": "number"}],
            },
            "aggregations": [
                {
                    "name": "by_shop",
                    "groupBy": ["shop"],
                    "window": {"type": "tumbling", "size": "1h"},
                    "metrics": [{"name": "orders", "function": "count"}],
                }
            ],
        },
    }


class Operator:
    """One of several operators, which share a folder of secrets."""

    def __init__(self, kafka: str, postgres: PostgresAddress, folder: Path, leader: Leader | None = None) -> None:
        self.platform = Platform(kafka_brokers=kafka, postgres=postgres, replication_factor=1)
        self.schemas = PostgresSchemas(postgres, leadership=leader)
        self.actuators = Actuators(
            kafka=KafkaTopics(kafka), postgres=self.schemas, secrets=FileSecrets(folder), runtime=NoProcesses()
        )
        self.status: dict[str, Any] | None = None

    def apply(self, resource: dict[str, Any]) -> dict[str, Any]:
        now = dt.datetime.now(dt.UTC)
        self.status = reconcile(
            resource, platform=self.platform, actuators=self.actuators, previous=self.status, now=now
        )
        return self.status


def work(kafka: str, postgres: PostgresAddress, folder: Path, namespace: str, gate: Any, reports: Any) -> None:
    """Run passes over one pipeline in a process, and report every false condition."""
    operator = Operator(kafka, postgres, folder)
    gate.wait(60)
    bad, passes = [], 0
    for _ in range(_PASSES):
        try:
            status = operator.apply(document(namespace))
        except LockNotHeldError:
            continue  # the next pass tries again
        passes += 1
        bad += [c for c in status["conditions"] if c["status"] == "False" and c["type"] != "Progressing"]
    reports.put({"bad": bad, "passes": passes, "status": operator.status})


@pytest.fixture
def namespace(servers: Servers, tmp_path: Path) -> Iterator[str]:
    name = f"overlap-{secrets.token_hex(3)}"
    yield name
    ending = Operator(servers.kafka, servers.postgres, tmp_path / "secrets")
    release(document(name), platform=ending.platform, actuators=ending.actuators)


@pytest.mark.slow
def test_two_processes_can_reconcile_one_new_pipeline_at_once(servers: Servers, namespace: str, tmp_path: Path) -> None:
    """One process creates topics and schema, and the other finds them. No condition of either is ever false."""
    spawn = multiprocessing.get_context("spawn")
    gate, reports = spawn.Barrier(_PROCESSES), spawn.Queue()
    arguments = (servers.kafka, servers.postgres, tmp_path / "secrets", namespace, gate, reports)
    processes = [spawn.Process(target=work, args=arguments) for _ in range(_PROCESSES)]
    for process in processes:
        process.start()
    results = [reports.get(timeout=180) for _ in processes]
    for process in processes:
        process.join(30)
    assert [item["bad"] for item in results] == [[], []]
    assert sum(item["passes"] for item in results) > _PASSES
    ready = [next(c["status"] for c in item["status"]["conditions"] if c["type"] == "Ready") for item in results]
    assert ready == ["True", "True"]
    assert results[0]["status"]["topics"] == results[1]["status"]["topics"]
    # A further pass changes nothing, so the logins have the passwords of the shared files.
    after = Operator(servers.kafka, servers.postgres, tmp_path / "secrets")
    assert changes_of_a_pass(after, namespace) == 0


def changes_of_a_pass(operator: Operator, namespace: str) -> int:
    """Run a pass, and return the number of its changes."""
    counted: list[int] = []

    def count(ensure: Callable[..., list[Outcome]]) -> Callable[..., list[Outcome]]:
        def call(*arguments: Any, **keywords: Any) -> list[Outcome]:
            outcomes = ensure(*arguments, **keywords)
            counted.append(sum(outcome.changed for outcome in outcomes))
            return outcomes

        return call

    kafka, postgres = operator.actuators.kafka, operator.actuators.postgres
    kafka.ensure, postgres.ensure = count(kafka.ensure), count(postgres.ensure)  # type: ignore[method-assign]
    operator.apply(document(namespace))
    assert len(counted) == 2
    return sum(counted)


def test_a_pass_waits_for_another_and_fails_if_the_other_takes_too_long(
    servers: Servers, namespace: str, tmp_path: Path
) -> None:
    first, second = (Operator(servers.kafka, servers.postgres, tmp_path / "secrets") for _ in range(2))
    schema = first.apply(document(namespace))["schema"]
    with first.schemas.lock(schema), pytest.raises(LockNotHeldError, match="another operator has held schema"):
        second.apply(document(namespace))
    assert second.status is None
    with first.schemas.lock(schema):
        waiting = threading.Thread(target=second.apply, args=(document(namespace),))
        waiting.start()
        time.sleep(0.5)
        assert second.status is None
    waiting.join(60)
    assert second.status is not None


def test_a_leader_of_an_earlier_epoch_writes_nothing(servers: Servers, namespace: str, tmp_path: Path) -> None:
    """The old leader was frozen while a later leader changed the pipeline."""
    folder = tmp_path / "secrets"
    old, new = (Operator(servers.kafka, servers.postgres, folder, Leader(epoch)) for epoch in (1, 2))
    old.apply(document(namespace))
    status = new.apply(document(namespace, partitions=5, generation=2))
    assert status["topics"][0]["partitions"] == 5
    woken = Operator(servers.kafka, servers.postgres, folder, Leader(1, leads=False))
    with pytest.raises(LockNotHeldError, match="epoch 2"):
        woken.apply(document(namespace))
    after = new.apply(document(namespace, partitions=5, generation=2))
    assert after["topics"] == status["topics"]
    assert "Stalled" not in {condition["type"] for condition in after["conditions"]}


def test_a_pass_stops_before_its_next_write_when_a_later_leader_took_over(
    servers: Servers, namespace: str, tmp_path: Path
) -> None:
    """The pass confirms its lock before DDL and before changes of topics, since the process may have been frozen."""
    old = Operator(servers.kafka, servers.postgres, tmp_path / "secrets", Leader(1, leads=False))
    first = Operator(servers.kafka, servers.postgres, tmp_path / "secrets", Leader(1))
    schema = first.apply(document(namespace))["schema"]
    with old.schemas.lock(schema) as confirm:
        confirm()
        with administrator(servers) as connection:
            mark = json.loads(comment(connection, schema)) | {"epoch": 2}
            connection.execute(f"COMMENT ON SCHEMA \"{schema}\" IS '{json.dumps(mark)}'")
        with pytest.raises(LockNotHeldError):
            confirm()


def test_a_leader_whose_lease_was_created_again_continues_from_the_stored_epoch(
    servers: Servers, namespace: str, tmp_path: Path
) -> None:
    """A new Lease counts epochs from 1, but the schema has an epoch of the deleted Lease."""
    Operator(servers.kafka, servers.postgres, tmp_path / "secrets", Leader(7)).apply(document(namespace))
    leader = Leader(1)
    status = Operator(servers.kafka, servers.postgres, tmp_path / "secrets", leader).apply(document(namespace))
    assert leader.epoch == 8
    with administrator(servers) as connection:
        assert json.loads(comment(connection, status["schema"]))["epoch"] == 8


def test_a_frozen_operator_loses_its_lock_on_the_schema(
    servers: Servers, namespace: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A frozen process keeps its connection open, but Postgres ends its idle transaction and so frees the lock.

    A slow operator gets the lock back when it confirms, unless a later leader has held it.
    """
    folder = tmp_path / "secrets"
    slow = Operator(servers.kafka, servers.postgres, folder, Leader(1))
    frozen = Operator(servers.kafka, servers.postgres, folder, Leader(1, leads=False))
    new = Operator(servers.kafka, servers.postgres, folder, Leader(2))
    schema = slow.apply(document(namespace))["schema"]
    monkeypatch.setattr(ownership, "MAX_HOLD_MS", 500)
    with slow.schemas.lock(schema) as confirm:
        time.sleep(2.0)
        monkeypatch.setattr(ownership, "MAX_HOLD_MS", 30_000)
        confirm()
        with pytest.raises(LockNotHeldError, match="another operator has held"):
            new.apply(document(namespace))
    monkeypatch.setattr(ownership, "MAX_HOLD_MS", 500)
    with frozen.schemas.lock(schema) as confirm:
        time.sleep(2.0)
        monkeypatch.setattr(ownership, "MAX_HOLD_MS", 30_000)
        new.apply(document(namespace))
        with pytest.raises(LockNotHeldError, match="epoch 2"):
            confirm()


def administrator(servers: Servers) -> psycopg.Connection[Any]:
    at = servers.postgres
    return psycopg.connect(
        host=at.host, port=at.port, dbname=at.database, user=at.user, password=at.password, autocommit=True
    )


def comment(connection: psycopg.Connection[Any], schema: str) -> str:
    query = "SELECT obj_description(oid, 'pg_namespace') FROM pg_namespace WHERE nspname = %s"
    row = connection.execute(query, (schema,)).fetchone()
    assert row is not None
    return str(row[0])
