"""Tests of the removal of the operator's Connect workers. The namespace and Kafka Connect are in memory."""

from __future__ import annotations

import base64
import copy
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pytest

from tidemill_contract.resource.connectors.worker_files import worker_folder
from tidemill_operator.actuators.connect.connectors import KafkaConnect
from tidemill_operator.actuators.connect.memory import MemoryConnect
from tidemill_operator.actuators.kubernetes.api import KINDS, PIPELINE, Api, Document, Kind
from tidemill_operator.actuators.kubernetes.connect import Clients, NamespaceConnect, WorkerSettings
from tidemill_operator.actuators.kubernetes.runtime import KubernetesRuntime, NamespaceLocks
from tidemill_operator.cluster.removal.finalizer import FINALIZER, Finalizer
from tidemill_operator.cluster_settings import ConnectWorkers, Placement
from tidemill_operator.errors import Reason, TidemillError
from tidemill_operator.plan.connect import workers
from tidemill_operator.plan.connect.connectors import OWNER, owner_text
from tidemill_operator.plan.live import Owner
from tidemill_operator.plan.model import Connector
from tidemill_operator.plan.render import object_metadata
from tidemill_operator.plan.render.object_metadata import OwnerReference
from tidemill_operator.settings import Platform
from tidemill_operator.testing import MemoryTopics, MemoryWorld

NS, NAME = "shop", workers.NAME
PLACEMENT = Placement(
    images={}, connect=ConnectWorkers("connect:1", egress_ports=(5432,), caller_namespace="tidemill-system")
)
PLATFORM = Platform(runtime="kubernetes", cluster_id="west", kafka_brokers="kafka:9092")


class MemoryApi:
    """The objects of a namespace by kind and name. An applied object replaces the former one."""

    def __init__(self) -> None:
        self.items: dict[tuple[str, str], Document] = {}
        self.applied = 0

    def get(self, kind: Kind, namespace: str | None, name: str, *, uncached: bool = False) -> Document | None:
        return copy.deepcopy(self.items.get((kind.kind, name)))

    def get_maybe_cached(self, kind: Kind, namespace: str, name: str) -> Document | None:
        return self.get(kind, namespace, name)

    def list(self, kind: Kind, namespace: str | None = None, **_: Any) -> list[Document]:
        return [copy.deepcopy(item) for (kind_name, _), item in self.items.items() if kind_name == kind.kind]

    def list_owned(self, kind: Kind, namespace: str, uids: tuple[str, ...]) -> list[Document]:
        kind_items = self.list(kind)
        return [item for item in kind_items if item["metadata"]["labels"][object_metadata.OWNER_UID] in uids]

    def names_by_uid(self, namespace: str, *, uncached: bool = False) -> dict[str, str]:
        return {item["metadata"]["uid"]: item["metadata"]["name"] for item in self.list(PIPELINE)}

    def apply(self, body: Document, **_: Any) -> Document:
        self.applied += 1
        key = body["kind"], body["metadata"]["name"]
        former = self.items.get(key, {"metadata": {"uid": f"uid-{self.applied}"}})
        managed = [{"manager": "tidemill", "operation": "Apply", "fieldsV1": {}}]
        added = {"uid": former["metadata"]["uid"], "resourceVersion": str(self.applied), "managedFields": managed}
        status = {"status": former["status"]} if "status" in former else {}
        self.items[key] = copy.deepcopy({**body, **status, "metadata": {**body["metadata"], **added}})
        return copy.deepcopy(self.items[key])

    def merge(self, kind: Kind, namespace: str, name: str, patch: Document) -> Document:
        live = self.items[kind.kind, name]
        live["metadata"]["ownerReferences"] = patch["metadata"]["ownerReferences"]
        for file in patch.get("data", {}):
            live["data"].pop(file)
        return copy.deepcopy(live)

    def delete(self, kind: Kind, namespace: str, name: str, *, uid: str = "") -> bool:
        return self.items.pop((kind.kind, name), None) is not None


class World:
    """A namespace with pipelines and a Kafka Connect in memory."""

    def __init__(self) -> None:
        self.memory, self.connect, self.placement = MemoryApi(), MemoryConnect(), PLACEMENT
        self.locks, self.clients = NamespaceLocks(), Clients()
        self.clients._by_namespace[NS] = KafkaConnect(self.connect)

    @property
    def api(self) -> Api:
        return cast(Api, self.memory)

    def pipeline(self, name: str, **metadata: str) -> None:
        spec = {"source": {"connectors": [{"name": "db"}]}}
        metadata = {"name": name, "uid": f"uid-{name}", **metadata}
        self.memory.items[PIPELINE.kind, name] = {"kind": PIPELINE.kind, "metadata": metadata, "spec": spec}

    def connect_of(self, name: str) -> NamespaceConnect:
        assert self.placement.connect is not None
        settings = WorkerSettings(PLATFORM, self.placement, self.placement.connect, MemoryTopics(), self.clients)
        owner = OwnerReference(f"uid-{name}", name)
        return NamespaceConnect(self.api, settings, owner, namespace=NS, locks=self.locks)

    def ensure(self, name: str, reference: str = "db") -> str:
        """Run the pass of a pipeline with a connector. Return why it waits, or why its connector is refused."""
        owner = Owner(NS, name, f"uid-{name}", "west")
        config = {"connector.class": "x.Y", OWNER: owner_text(owner)}
        wanted = Connector(f"{NS}.{name}.db", "db", config, paused=False, secrets=((reference, "password"),))
        try:
            (outcome, *_) = self.connect_of(name).ensure([wanted], owner=owner)
            return outcome.message
        except TidemillError as error:
            return str(error)

    def remove(self, name: str) -> None:
        self.connect_of(name).remove(owner=Owner(NS, name, f"uid-{name}", "west"))

    def available(self, replicas: int) -> None:
        self.memory.items["Deployment", NAME]["status"] = {"availableReplicas": replicas}

    def objects(self) -> set[str]:
        return {f"{kind} {name}" for kind, name in self.memory.items if name.startswith(NAME)}

    def secret(self, name: str, text: str) -> None:
        data = {"password": base64.b64encode(text.encode()).decode()}
        self.memory.items["Secret", name] = {"kind": "Secret", "metadata": {"name": name}, "data": data}


@pytest.fixture
def world() -> World:
    """Return a namespace with the pipelines `orders` and `returns`, whose shared workers never ran."""
    namespace_world = World()
    namespace_world.secret("db", "hunter2")
    for name in ("orders", "returns"):
        namespace_world.pipeline(name)
    for name in ("orders", "returns"):
        assert "Kafka Connect starts: 0 of 1 replicas" in namespace_world.ensure(name)
    return namespace_world


def test_a_network_policy_follows_the_settings(world: World) -> None:
    """Changed ports take effect. Without NetworkPolicies, the former one is deleted."""
    policy = KINDS["NetworkPolicy"].kind, NAME
    assert world.placement.connect is not None
    changed = replace(world.placement.connect, egress_ports=(3306,))
    world.placement = replace(world.placement, connect=changed)
    world.ensure("orders")
    assert world.memory.items[policy]["spec"]["egress"][-1] == {"ports": [{"port": 3306, "protocol": "TCP"}]}
    world.placement = replace(world.placement, network_policies=False)
    world.ensure("orders")
    assert policy not in world.memory.items
    assert f"Deployment {NAME}" in world.objects()


def test_all_objects_of_disabled_workers_are_deleted(world: World) -> None:
    """The next pass of any pipeline deletes the workers, and the copies of logins and passwords."""
    assert {f"Secret {NAME}-worker", f"Secret {NAME}-secrets", f"Deployment {NAME}"} <= world.objects()
    placement = replace(PLACEMENT, connect=None)
    runtime = KubernetesRuntime(world.api, placement, OwnerReference("uid-orders", "orders"), world.locks)
    runtime.remove(NS, "other")
    assert world.objects() == set()
    assert ("Secret", "db") in world.memory.items


def test_workers_that_do_not_run_are_removed_with_the_last_pipeline(world: World) -> None:
    """Workers that do not run are not asked.

    While another pipeline needs them, the deletion waits and names the reason.
    """
    world.connect.make_unreachable()
    with pytest.raises(TidemillError, match="0 of 1 replicas of tidemill-connect") as raised:
        world.remove("orders")
    assert raised.value.remedy == "check connect.image of the chart, so that the workers start; returns need them too"
    world.pipeline("returns", deletionTimestamp="2026-11-30T00:00:00Z")
    world.remove("orders")
    assert world.objects() == set()
    world.remove("returns")


def test_connectors_left_by_removed_workers_are_deleted_by_the_next_workers(world: World) -> None:
    """The connectors of a pipeline that exists without connectors are deleted too."""
    config = {OWNER: f"west/{NS}/returns/uid-returns"}
    world.connect.put(f"{NS}.returns.db", config)
    world.memory.items[PIPELINE.kind, "returns"]["spec"] = {}
    world.remove("orders")
    world.ensure("orders")
    world.available(1)
    assert "starts" in world.ensure("orders")
    assert set(world.connect.connectors) == {f"{NS}.orders.db"}


def test_a_waiting_deletion_is_reported_in_the_condition() -> None:
    """The condition Ready has the remedy. While only pods are still ending, nothing is written."""
    metadata = {"name": "orders", "namespace": NS, "uid": "uid-orders", "finalizers": [FINALIZER]}
    status = {"conditions": [{"type": "Ready", "status": "True", "reason": "Applied"}], "schema": "s"}
    document = {"metadata": metadata, "spec": {}, "status": status}
    cluster, written = MemoryWorld(), []
    world = SimpleNamespace(platform=PLATFORM, actuators=lambda *_: (cluster.actuators, None))
    recorder = SimpleNamespace(write_event=lambda *_: None)
    finalizer = Finalizer(cast(Any, world), cast(Any, recorder), NamespaceLocks(), write=lambda _, s: written.append(s))
    cluster.runtime.failure = TidemillError(Reason.WAITING, "2 pods of shop/orders are still ending")
    finalizer.finalize(document)
    assert written == []
    cluster.runtime.failure = TidemillError(Reason.STUCK, "Kafka Connect does not run", "let its pods start")
    finalizer.finalize(document)
    (ready,) = written[0]["conditions"]
    expected = "its data cannot be deleted yet: Kafka Connect does not run; let its pods start"
    assert (ready["status"], ready["reason"], ready["message"]) == ("False", "Stuck", expected)


def test_a_secret_cannot_refer_to_a_file_of_the_workers(world: World) -> None:
    """The rule for configs applies to the content of Secrets too."""
    world.available(1)
    world.secret("path", "/data/../etc/tidemill/connect/worker.properties")
    assert "key password of Secret path refers to /etc/tidemill" in world.ensure("orders", reference="path")
    assert f"{NS}.orders.db" not in world.connect.connectors


@pytest.mark.parametrize(
    "value",
    [
        f"{workers.CONFIG_DIR}/{workers.PROPERTIES}",
        workers.SECRETS_DIR,
        "//proc/self/environ",
        "/opt/x/../../var/run/secrets/token",
        "../run/secrets/token",
        "/data/a, /proc/1/environ",
        "jdbc:sqlite:/etc/tidemill/a",
        "file:///%65tc/tidemill/a",
    ],
)
def test_paths_of_the_workers_own_files_are_found(value: str) -> None:
    assert worker_folder(value)
    assert not worker_folder(
        value.replace("etc", "srv").replace("%65tc", "srv").replace("proc", "x").replace("run", "x")
    )


@pytest.mark.parametrize("value", ["", "/", "/data/proc/a", "/processed", "https://api/proc", "public.orders", "a/b"])
def test_other_values_are_no_paths_of_the_workers(value: str) -> None:
    assert worker_folder(value) is None
