"""Tests of connectors in a cluster: as resources of Strimzi, and on Connect workers that the operator deploys.

The API server, Kafka and the worker are real. The test takes the part of Strimzi's operator.
"""

from __future__ import annotations

import base64
import socket
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Consumer, TopicPartition

from kube.standin import ACCOUNT, HOME
from played.strimzi import CLUSTER, CRD, NAMESPACE, Strimzi
from played.worker import Worker
from tidemill_operator.actuators.connect.client import ConnectClient
from tidemill_operator.actuators.connect.connectors import KafkaConnect
from tidemill_operator.actuators.connect.strimzi import StrimziConnectors
from tidemill_operator.actuators.kubernetes.api import KAFKA_CONNECTOR, PIPELINE
from tidemill_operator.actuators.kubernetes.connect import Clients
from tidemill_operator.cluster import rbac
from tidemill_operator.cluster.queue import Result
from tidemill_operator.cluster_settings import ConnectWorkers
from tidemill_operator.keys import Key
from tidemill_operator.plan.connect.connectors import FILES, OWNER

pytestmark = [pytest.mark.kubernetes, pytest.mark.integration]

_RBAC = "rbac.authorization.k8s.io"
FIELDS = [{"name": "country", "type": "string"}]
TOPIC = {"partitions": 1, "replicationFactor": 1}
WORKERS = ("Deployment", "Service", "NetworkPolicy", "PodDisruptionBudget", "ServiceAccount")


def source(*connectors: dict[str, Any]) -> dict[str, Any]:
    return {"topic": TOPIC, "fields": FIELDS, **({"connectors": list(connectors)} if connectors else {})}


def files(**members: Any) -> dict[str, Any]:
    return {"name": "files", "class": FILES, "config": {"batch.size": "10"}, **members}


@pytest.fixture
def strimzi(cluster: Any) -> Iterator[Callable[[], Strimzi]]:
    """Prepare a namespace where the operator may manage connectors. Return a function that installs Strimzi's CRD."""
    metadata = {"name": ACCOUNT, "namespace": NAMESPACE}
    role = {"apiGroup": _RBAC, "kind": "Role", "name": ACCOUNT}
    subjects = [{"kind": "ServiceAccount", "name": ACCOUNT, "namespace": HOME}]
    cluster.api.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}})
    version = f"{_RBAC}/v1"
    cluster.api.apply({"apiVersion": version, "kind": "Role", "metadata": metadata, "rules": rbac.strimzi_rules()})
    cluster.api.apply(
        {"apiVersion": version, "kind": "RoleBinding", "metadata": metadata, "roleRef": role, "subjects": subjects}
    )

    def install() -> Strimzi:
        cluster.api.apply(CRD)
        return Strimzi(cluster.api)

    yield install
    for item in cluster.api.list(KAFKA_CONNECTOR, NAMESPACE):
        cluster.api.delete(KAFKA_CONNECTOR, NAMESPACE, item["metadata"]["name"])


@pytest.fixture
def through_strimzi(passes: Any) -> Any:
    """Return passes on a platform with Strimzi, with only the operator's rights."""
    backend = StrimziConnectors(passes.api, namespace=NAMESPACE, cluster=CLUSTER)
    return replace(passes, connect=KafkaConnect(backend), settings={"connect_strimzi": f"{NAMESPACE}/{CLUSTER}"})


def test_connectors_follow_the_spec_through_strimzi(
    cluster: Any,
    strimzi: Callable[[], Strimzi],
    through_strimzi: Any,
    namespace: str,
    make: Callable[..., Key],
    eventually: Callable[..., Any],
) -> None:
    """Connectors are created when Strimzi's CRD exists, repaired, restarted and paused.

    They are deleted with the pipeline, even if its data are kept.
    """
    passes = through_strimzi
    lines = make("lines", namespace, source=source(files()))

    def condition() -> str:
        passes.once(lines)
        matching = [c for c in cluster.get(lines)["status"]["conditions"] if c["type"] == "ConnectorsReady"]
        return str(matching[0]["message"]) if matching else ""

    eventually(lambda: "install Strimzi" in condition(), what="the missing CRD is named")
    played = strimzi()
    name = f"{namespace}.lines.files"

    def resource() -> dict[str, Any]:
        return cluster.api.get(KAFKA_CONNECTOR, NAMESPACE, name) or {}

    def settled(what: str) -> None:
        def done() -> bool:
            played.step()
            return passes.once(lines) is Result.SETTLED

        eventually(done, what=what)

    eventually(lambda: passes.once(lines) and resource(), what="the connector has a resource")
    assert cluster.condition(lines, "ConnectorsReady") == ("False", "Waiting")
    settled("the connector runs")
    wanted = resource()["spec"]
    assert (wanted["class"], wanted["config"]["batch.size"]) == (FILES, "10")
    tasks = [{"id": 0, "state": "RUNNING"}]
    assert cluster.get(lines)["status"]["connectors"] == [{"name": "files", "state": "RUNNING", "tasks": tasks}]
    version = resource()["metadata"]["resourceVersion"]
    assert passes.once(lines) is Result.SETTLED
    assert resource()["metadata"]["resourceVersion"] == version, "a pass without a difference has written"

    cluster.api.merge(KAFKA_CONNECTOR, NAMESPACE, name, {"spec": {"config": {"batch.size": "11"}, "state": "stopped"}})
    settled("changes of others are reverted")
    assert resource()["spec"] == wanted

    played.failing[name, 0] = "java.io.IOException: disk gone"
    played.step()
    assert "task 0 of connector" in condition()
    assert resource()["metadata"]["annotations"] == {"strimzi.io/restart-task": "0"}
    settled("the restarted task runs")
    assert played.restarted == [(name, "0")]

    cluster.patch(lines, spec={"suspend": True})
    settled("the connector is paused")
    assert resource()["spec"]["state"] == "paused"
    cluster.api.delete(PIPELINE, namespace, "lines")
    eventually(lambda: passes.once(lines) is Result.GONE, what="the pipeline is gone")
    assert resource() == {}


@pytest.fixture
def worker(tmp_path: Path) -> Worker:
    """Return a worker's pod: a folder for its files, and a free port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return Worker(tmp_path, int(probe.getsockname()[1]))


@pytest.fixture
def rest(worker: Worker) -> Iterator[ConnectClient]:
    """Return a client of the worker's REST API."""
    client = ConnectClient(worker.url)
    yield client
    client.close()


@pytest.fixture
def with_workers(passes: Any, worker: Worker) -> Iterator[Any]:
    """Return passes on a platform whose Connect workers the operator deploys."""
    clients = Clients(lambda _: worker.url)
    yield replace(
        passes,
        placement=replace(
            passes.placement, connect=ConnectWorkers("registry.example/connect:1", caller_namespace=HOME)
        ),
        workers=clients,
        settings={"connect_secrets": f"${{directory:{worker.folder}/secrets:{{file}}}}"},
    )
    clients.close()


@pytest.mark.matrix
def test_workers_run_while_a_pipeline_of_the_namespace_has_connectors(
    cluster: Any,
    servers: Any,
    with_workers: Any,
    worker: Worker,
    rest: ConnectClient,
    namespace: str,
    make: Callable[..., Key],
    eventually: Callable[..., Any],
) -> None:
    """A real worker runs from its rendered Deployment. It reads a Secret, and two pipelines share it.

    The operator deletes it with the last pipeline that has connectors.
    """
    passes, name = with_workers, "tidemill-connect"
    read = worker.folder / "lines.txt"
    read.write_text('"one"\n"two"\n')
    secret = {"name": "places", "key": "lines"}
    lines = make("lines", namespace, source=source(files(secrets={"file": secret})))

    def message() -> str:
        passes.once(lines)
        conditions = cluster.get(lines)["status"]["conditions"]
        return next((str(c["message"]) for c in conditions if c["type"] == "ConnectorsReady"), "")

    eventually(lambda: cluster.child(namespace, "Deployment", name) or not message(), what="the workers are deployed")
    for kind in WORKERS:
        assert cluster.child(namespace, kind, name), kind
    worker.mount(cluster.child(namespace, "Secret", f"{name}-worker"), below="config")
    with worker.running(cluster.child(namespace, "Deployment", name)):
        left = {**files()["config"], "connector.class": FILES, "topic": "x", OWNER: f"test/{namespace}/lines/before"}
        rest.create(f"{namespace}.lines.left", left, paused=True)
        eventually(lambda: "Secret places has no key lines" in message(), what="the missing Secret is named")
        assert rest.names() == [], "the connector of a deleted pipeline remains"
        text = base64.b64encode(str(read).encode()).decode()
        metadata = {"name": "places", "namespace": namespace}
        cluster.api.create({"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "data": {"lines": text}})
        passes.once(lines)
        worker.mount(cluster.child(namespace, "Secret", f"{name}-secrets"), below="secrets")
        passes.until(lines, Result.SETTLED)
        assert cluster.condition(lines, "ConnectorsReady") == ("True", "Applied")
        eventually(lambda: records(servers.kafka, f"{namespace}.lines.events") == 2, what="the lines are in the topic")
        before = cluster.versions(namespace)
        assert passes.once(lines) is Result.SETTLED
        assert cluster.versions(namespace) == before

        more = make("more", namespace, source=source(files(paused=True)))
        passes.until(more, Result.SETTLED)
        assert set(rest.names()) == {f"{namespace}.lines.files", f"{namespace}.more.files"}
        owners = cluster.child(namespace, "Deployment", name)["metadata"]["ownerReferences"]
        assert {owner["name"] for owner in owners} == {"lines", "more"}

        cluster.patch(lines, spec={"source": {"connectors": None}})
        passes.until(lines, Result.SETTLED)
        assert rest.names() == [f"{namespace}.more.files"]
        assert not cluster.child(namespace, "Secret", f"{name}-secrets").get("data"), "the Secret still has the value"
        cluster.api.delete(PIPELINE, namespace, "more")
        eventually(lambda: passes.once(more) is Result.GONE, what="the second pipeline is gone")
        assert rest.names() == []
    left = {(kind, child) for kind, child in cluster.children(namespace) if child.startswith(name)}
    assert left == set()


def records(brokers: str, topic: str) -> int:
    """Return the number of records in the only partition of a topic, without transaction markers."""
    consumer = Consumer({"bootstrap.servers": brokers, "group.id": "count", "isolation.level": "read_committed"})
    try:
        consumer.assign([TopicPartition(topic, 0, 0)])
        consumed = consumer.consume(10, timeout=5)
        return len([message for message in consumed if message.error() is None])
    finally:
        consumer.close()
