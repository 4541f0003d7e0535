"""Tests of passes over a pipeline whose connectors are resources of Strimzi, in memory. The test plays Strimzi."""

from __future__ import annotations

import copy
import datetime as dt
from typing import Any

import pytest

from played.strimzi import CLUSTER, NAMESPACE, Strimzi, memory_api
from tidemill_operator.actuators.connect.connectors import KafkaConnect
from tidemill_operator.actuators.connect.restarts import Restarts
from tidemill_operator.actuators.connect.strimzi import StrimziConnectors
from tidemill_operator.errors import Reason, TidemillError
from tidemill_operator.plan.connect import strimzi
from tidemill_operator.reconcile import reconcile, release
from tidemill_operator.settings import Platform
from tidemill_operator.testing import MemoryWorld

NOON = dt.datetime(2026, 3, 1, 12, tzinfo=dt.UTC)
NAME, RESOURCE = "shop.orders.shop_db", "shop.orders.shop-db"
TRACE = "org.x.ConnectException: failed\n\tat x\nCaused by: java.io.IOException: disk gone, password=hunter2\n\tat y"
PLATFORM = Platform(runtime="kubernetes", connect_strimzi=f"{NAMESPACE}/{CLUSTER}")


class Bench:
    """A pipeline with one connector of two tasks. `now` is the clock of the restarts."""

    def __init__(self, document: dict[str, Any], world: MemoryWorld) -> None:
        self.document = copy.deepcopy(document)
        self.document["spec"]["source"]["connectors"] = [
            {
                "name": "shop_db",
                "class": "io.debezium.connector.postgresql.PostgresConnector",
                "tasks": 2,
                "config": {"database.hostname": "db"},
                "secrets": {"database.password": {"name": "shop-db", "key": "password"}},
            }
        ]
        self.document["spec"]["source"]["format"] = {"envelope": "debezium"}
        self.now, self.world, self.status = NOON.timestamp(), world, {}
        self.api, typed = memory_api()
        self.strimzi = Strimzi(self.api)
        backend = StrimziConnectors(typed, namespace=NAMESPACE, cluster=CLUSTER)
        self.world.connect = KafkaConnect(backend, Restarts(lambda: self.now))

    def step(self, **spec: Any) -> tuple[str, str, str]:
        """Edit the spec if members are given, and run a pass. Return status, reason and message of ConnectorsReady."""
        if spec:
            self.document["spec"] |= spec
            self.document["metadata"]["generation"] += 1
        arguments: dict[str, Any] = {"actuators": self.world.actuators, "previous": self.status or None, "now": NOON}
        self.status = reconcile(self.document, platform=PLATFORM, progress_error=lambda: None, **arguments)
        conditions = (c for c in self.status["conditions"] if c["type"] == "ConnectorsReady")
        return next(((c["status"], c["reason"], c["message"]) for c in conditions), ("", "", ""))

    def settle(self) -> tuple[str, str, str]:
        """Run a pass, then Strimzi, then a pass."""
        self.step()
        self.strimzi.step()
        return self.step()


@pytest.fixture
def bench(document: dict[str, Any], world: MemoryWorld) -> Bench:
    return Bench(document, world)


def test_a_connector_is_a_resource_that_strimzi_reports_on(bench: Bench) -> None:
    """The resource has the label of Strimzi and a reference to the Secret. Its config has no name."""
    assert bench.step() == ("False", "Waiting", f"connector {NAME} starts")
    resource = bench.api.items[RESOURCE]
    assert resource["metadata"]["labels"][strimzi.CLUSTER] == CLUSTER
    assert resource["metadata"]["namespace"] == NAMESPACE
    spec = resource["spec"]
    assert (spec["class"], spec["tasksMax"], spec["state"]) == (
        "io.debezium.connector.postgresql.PostgresConnector",
        2,
        "running",
    )
    assert spec["config"]["database.password"] == "${secrets:shop/shop-db:password}"
    assert spec["config"]["topic.prefix"] == NAME
    assert not spec["config"].keys() & {"name", "connector.class", "tasks.max"}
    assert bench.step() == ("False", "Waiting", f"Strimzi has not reported connector {NAME} yet")
    bench.strimzi.step()
    assert bench.step() == ("True", "Applied", "")
    tasks = [{"id": task, "state": "RUNNING"} for task in (0, 1)]
    assert bench.status["connectors"] == [{"name": "shop_db", "state": "RUNNING", "tasks": tasks}]
    assert bench.api.take_writes() == [f"create {RESOURCE}"]


@pytest.mark.parametrize(
    "patch",
    [
        {"spec": {"config": {"database.hostname": "other"}}},
        {"spec": {"config": {"more": 5}}},
        {"spec": {"tasksMax": 3}},
        {"spec": {"class": "x.Other"}},
        {"spec": {"autoRestart": {"enabled": True}}},
        {"metadata": {"labels": {strimzi.CLUSTER: "other"}}},
    ],
)
def test_a_changed_resource_is_repaired(bench: Bench, patch: dict[str, Any]) -> None:
    bench.settle()
    before = copy.deepcopy(bench.api.items[RESOURCE])
    bench.api.merge(None, NAMESPACE, RESOURCE, patch)  # type: ignore[arg-type]
    bench.api.take_writes()
    assert bench.step()[:2] == ("True", "Waiting")
    assert bench.api.take_writes() == [f"replace {RESOURCE}"]
    after = bench.api.items[RESOURCE]
    assert after["spec"] == before["spec"]
    assert after["metadata"]["labels"] == before["metadata"]["labels"]
    assert bench.settle() == ("True", "Applied", "")


def test_a_suspended_pipeline_pauses_its_connectors_and_other_states_are_reverted(bench: Bench) -> None:
    """While Strimzi has not applied the new state, the condition is waiting and nothing is written."""
    bench.settle()
    bench.api.take_writes()
    bench.step(suspend=True)
    assert bench.step()[1:] == ("Waiting", f"Strimzi has not applied the newest resource of connector {NAME} yet")
    bench.strimzi.step()
    assert bench.step() == ("True", "Applied", "")
    assert bench.status["connectors"][0]["state"] == "PAUSED"
    bench.step(suspend=False)
    assert bench.settle() == ("True", "Applied", "")
    states = [f'merge {{"spec": {{"state": "{state}"}}}} into {RESOURCE}' for state in ("paused", "running")]
    assert bench.api.take_writes() == states
    bench.api.merge(None, NAMESPACE, RESOURCE, {"spec": {"state": "stopped"}})  # type: ignore[arg-type]
    assert bench.settle() == ("True", "Applied", "")
    assert bench.api.items[RESOURCE]["spec"]["state"] == "running"


def test_failed_tasks_are_restarted_in_turn_with_growing_delays(bench: Bench) -> None:
    """Strimzi restarts one task for each annotation. The message has the last cause, without a password."""
    bench.settle()
    bench.strimzi.failing = {(RESOURCE, 0): TRACE, (RESOURCE, 1): TRACE}
    bench.strimzi.step()
    state, reason, message = bench.step()
    assert (state, reason) == ("False", "ConnectorFailed")
    assert f"task 1 of connector {NAME} failed: java.io.IOException: disk gone, password=…" in message
    assert "hunter2" not in str(bench.status)
    for second in range(1, 200):
        bench.now = NOON.timestamp() + second
        bench.strimzi.failing = {(RESOURCE, 0): TRACE, (RESOURCE, 1): TRACE}
        bench.strimzi.step()
        bench.strimzi.failing = {(RESOURCE, 0): TRACE, (RESOURCE, 1): TRACE}
        bench.strimzi.step()
        bench.step()
    assert bench.strimzi.restarted == [(RESOURCE, task) for task in "01010"], (
        "the restarts are after 0, 10, 30, 70 and 150 seconds"
    )
    bench.strimzi.failing = {}
    assert bench.settle() == ("True", "Applied", "")


def test_a_resource_that_strimzi_refuses_is_reported(bench: Bench) -> None:
    bench.strimzi.refused[RESOURCE] = "PUT /connectors/x/config returned 400 (Bad Request): password=hunter2 is wrong"
    state, reason, message = bench.settle()
    assert (state, reason) == ("False", "Refused")
    assert message.startswith("Strimzi reports ConnectRestException: PUT /connectors/x/config returned 400")
    assert "hunter2" not in str(bench.status)
    bench.strimzi.refused = {}
    assert bench.settle() == ("True", "Applied", "")


def test_a_missing_crd_of_strimzi_is_reported_with_the_remedy(bench: Bench) -> None:
    """A pipeline can be deleted without the resource."""
    bench.api.served = False
    assert bench.step() == (
        "False",
        "NotSupported",
        "the cluster has no resource KafkaConnector (kafka.strimzi.io/v1beta2); install Strimzi, or set connect.image"
        " or connect.url instead of connect.strimzi",
    )
    release({**bench.document, "status": bench.status}, platform=PLATFORM, actuators=bench.world.actuators)
    source = {key: member for key, member in bench.document["spec"]["source"].items() if key != "connectors"}
    assert bench.step(source=source) == ("", "", "")


def test_a_resource_of_another_owner_is_left_alone_until_it_is_adopted(bench: Bench) -> None:
    spec = {"class": "x.Source", "tasksMax": 1, "config": {"topic": "theirs"}}
    bench.api.create({"metadata": {"name": RESOURCE, "namespace": NAMESPACE, "labels": {}}, "spec": spec})
    bench.api.take_writes()
    assert bench.step()[:2] == ("False", "ResourceConflict")
    assert bench.api.take_writes() == []
    bench.document["metadata"]["annotations"] = {"tidemill.dev/adopt": "true"}
    assert bench.settle() == ("True", "Applied", "")
    assert bench.api.items[RESOURCE]["spec"]["config"]["database.hostname"] == "db"


def test_resources_are_deleted_with_their_connector_or_pipeline(bench: Bench) -> None:
    """The resource of another pipeline is kept. An API server that does not answer delays the deletion."""
    bench.api.create({"metadata": {"name": "shop.others.shop-db"}, "spec": {"class": "x", "tasksMax": 1}})
    bench.settle()
    source = copy.deepcopy(bench.document["spec"]["source"])
    source["connectors"][0]["name"] = "db_2_"
    bench.step(source=source)
    assert set(bench.api.items) == {"shop.others.shop-db", "shop.orders.db-2.1"}
    bench.api.failure = TidemillError(Reason.UNREACHABLE, "the Kubernetes API does not answer")
    deleted = {**bench.document, "status": bench.status}
    with pytest.raises(TidemillError, match="does not answer"):
        release(deleted, platform=PLATFORM, actuators=bench.world.actuators)
    bench.api.failure = None
    release(deleted, platform=PLATFORM, actuators=bench.world.actuators)
    assert set(bench.api.items) == {"shop.others.shop-db"}


@pytest.mark.parametrize("own", ["a", "a_b", "a__b", "a_", "a__", "a_1", "a_b_2_"])
def test_the_name_of_a_connector_can_be_read_from_its_resource(own: str) -> None:
    name = f"my-shop.my-orders.{own}"
    resource = strimzi.resource_name(name)
    assert "_" not in resource
    assert resource[-1].isalnum()
    assert strimzi.connector_name(resource) == name


def test_a_foreign_resource_has_the_name_of_no_pipeline() -> None:
    assert [strimzi.connector_name(name) for name in ("theirs", "a.b")] == ["theirs..", "a.b."]
