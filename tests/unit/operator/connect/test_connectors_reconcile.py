"""Tests of passes over a pipeline with connectors, against a Kafka Connect in memory."""

from __future__ import annotations

import copy
import datetime as dt
from typing import Any

import pytest

from tidemill_operator.actuators.connect.connectors import KafkaConnect
from tidemill_operator.actuators.connect.memory import MemoryConnect
from tidemill_operator.actuators.connect.restarts import Restarts
from tidemill_operator.errors import Reason, TidemillError
from tidemill_operator.reconcile import PAUSE, reconcile, release
from tidemill_operator.settings import Platform
from tidemill_operator.testing import MemoryWorld

Document = dict[str, Any]
Status = dict[str, Any]
NOON = dt.datetime(2026, 3, 1, 12, tzinfo=dt.UTC)
NAME = "shop.orders.files"
TRACE = "org.x.ConnectException: failed\n\tat x\nCaused by: java.io.IOException: disk gone\n\tat y"


class Bench:
    """A pipeline with one connector on a platform in memory. `now` is the clock of the restarts."""

    def __init__(self, document: Document, world: MemoryWorld) -> None:
        self.document = copy.deepcopy(document)
        self.document["spec"]["source"]["connectors"] = [{"name": "files", "class": "x.Source"}]
        self.now = NOON.timestamp()
        self.connect = MemoryConnect()
        self.world = world
        self.world.connect = KafkaConnect(self.connect, Restarts(lambda: self.now))
        self.status: Status = {}

    def step(self, **spec: Any) -> tuple[str, str, str]:
        """Edit the spec if members are given, and run a pass. Return status, reason and message of ConnectorsReady."""
        if spec:
            self.document["spec"] |= spec
            self.document["metadata"]["generation"] += 1
        self.status = reconcile(
            self.document,
            platform=Platform(),
            actuators=self.world.actuators,
            previous=self.status or None,
            now=NOON,
            progress_error=lambda: None,
        )
        return self.condition("ConnectorsReady")

    def condition(self, kind: str) -> tuple[str, str, str]:
        for condition in self.status["conditions"]:
            if condition["type"] == kind:
                return condition["status"], condition["reason"], condition["message"]
        return "", "", ""

    @property
    def source_without_connectors(self) -> Document:
        """Return the source without connectors."""
        return {key: member for key, member in self.document["spec"]["source"].items() if key != "connectors"}


@pytest.fixture
def bench(document: Document, world: MemoryWorld) -> Bench:
    return Bench(document, world)


def test_a_connector_is_created_after_its_topic_and_then_left_alone(bench: Bench) -> None:
    assert bench.step() == ("False", "Waiting", f"connector {NAME} starts")
    assert bench.connect.take_writes() == [f"create {NAME}"]
    assert bench.step() == ("True", "Applied", "")
    assert bench.condition("Ready")[0] == "True"
    assert bench.status["connectors"] == [
        {"name": "files", "state": "RUNNING", "tasks": [{"id": 0, "state": "RUNNING"}]}
    ]
    assert bench.step() == ("True", "Applied", "")
    assert bench.connect.take_writes() == []


def test_changes_by_others_are_reverted(bench: Bench) -> None:
    """A changed config, a pause and a deletion are reverted. Meanwhile the connector counts as working."""
    bench.step()
    bench.connect.put(NAME, {**bench.connect.connectors[NAME].config, "file": "/other"})
    assert bench.step()[:2] == ("True", "Waiting")
    bench.connect.pause(NAME)
    bench.step()
    del bench.connect.connectors[NAME]
    bench.step()
    writes = [f"configure {NAME}", f"pause {NAME}", f"resume {NAME}", f"create {NAME}"]
    assert bench.connect.take_writes()[1:] == writes
    assert bench.step() == ("True", "Applied", "")


def test_a_suspended_pipeline_pauses_its_connectors(bench: Bench) -> None:
    bench.step()
    bench.step(suspend=True)
    assert bench.step() == ("True", "Applied", "")
    assert bench.status["connectors"][0]["state"] == "PAUSED"
    bench.step(suspend=False)
    assert bench.step() == ("True", "Applied", "")
    assert bench.connect.take_writes() == [f"create {NAME}", f"pause {NAME}", f"resume {NAME}"]


def test_failed_tasks_are_restarted_with_growing_delays(bench: Bench) -> None:
    """The condition names connector, task and cause. After ten minutes without failures, delays are short again."""
    bench.step()
    bench.connect.fail(NAME, TRACE)
    state, reason, message = bench.step()
    assert (state, reason) == ("False", "ConnectorFailed")
    cause = f"task 0 of connector {NAME} failed: java.io.IOException: disk gone"
    assert message == f"{cause}; restarted once, again at 2026-03-01T12:00:10Z if it still fails"
    assert bench.condition("Ready")[:2] == ("False", "ConnectorFailed")
    for second in range(1, 400):
        bench.connect.fail(NAME, TRACE)
        bench.now = NOON.timestamp() + second
        bench.step()
    assert bench.status["connectors"][0]["message"] == cause
    restarts = bench.connect.take_writes().count(f"restart {NAME}")
    assert restarts == 6, "the restarts are after 0, 10, 30, 70, 150 and 310 seconds"
    bench.step()
    bench.now += 601
    bench.connect.restart(NAME)
    assert bench.step() == ("True", "Applied", "")
    bench.connect.fail(NAME, TRACE)
    assert "restarted once" in bench.step()[2]


def test_removed_connectors_are_deleted_when_connect_answers_again(bench: Bench) -> None:
    """The condition is kept until Connect has none of them."""
    bench.step()
    bench.connect.make_unreachable()
    assert bench.step(source=bench.source_without_connectors)[:2] == ("False", "Unreachable")
    bench.connect.failure = None
    assert bench.step()[0] == "True"
    assert bench.connect.connectors == {}
    assert bench.step() == ("", "", "")
    assert "connectors" not in bench.status
    bench.connect.make_unreachable()
    assert bench.step() == ("", "", "")


def test_an_unreachable_connect_is_reported_and_the_last_states_are_kept(bench: Bench) -> None:
    bench.step()
    bench.step()
    bench.connect.make_unreachable()
    state, reason, message = bench.step()
    assert (state, reason) == ("False", "Unreachable")
    assert "Kafka Connect at http://connect:8083 does not answer" in message
    assert bench.condition("ProcessorsReady")[0] == "True"
    assert bench.status["connectors"][0]["state"] == "RUNNING"


def test_a_platform_without_connect_reports_the_settings_to_set(bench: Bench) -> None:
    bench.world.connect = None
    assert bench.step() == (
        "False",
        "NotSupported",
        "spec.source.connectors: the platform has no Kafka Connect; set connect.image,"
        " connect.strimzi.cluster or connect.url in the chart",
    )
    assert bench.condition("Stalled")[0] == "True"


def test_a_refused_or_foreign_connector_stops_no_other(bench: Bench) -> None:
    """The names of others' connectors begin like the name of the pipeline."""
    bench.document["spec"]["source"]["connectors"] += [{"name": name, "class": "x.Source"} for name in ("bad", "mine")]
    bench.connect.refused["shop.orders.bad"] = TidemillError(Reason.REFUSED, "no such class")
    bench.connect.put(NAME, {"tidemill.owner": "local/shop/orders/another"})
    bench.connect.put("shop.orders.stray", {})
    state, reason, message = bench.step()
    assert (state, reason, message) == ("False", "Refused", "no such class")
    messages = {item["name"]: item.get("message", "") for item in bench.status["connectors"]}
    assert messages["bad"] == "no such class"
    assert "belongs to the pipeline local/shop/orders/another" in messages["files"]
    assert bench.connect.take_writes() == ["create shop.orders.mine"]
    bench.document["metadata"]["annotations"] = {"tidemill.dev/adopt": "true"}
    bench.step()
    assert bench.connect.take_writes() == [f"configure {NAME}"]
    assert "shop.orders.stray" in bench.connect.connectors


def test_a_paused_pipeline_only_observes_connectors(bench: Bench) -> None:
    bench.step()
    bench.connect.take_writes()
    bench.document["metadata"]["annotations"] = {PAUSE: "true"}
    bench.connect.fail(NAME, TRACE)
    assert bench.step()[:2] == ("False", "ConnectorFailed")
    assert bench.connect.take_writes() == []


@pytest.mark.parametrize("policy", ["Retain", "Delete"])
def test_connectors_are_deleted_with_the_pipeline(bench: Bench, policy: str) -> None:
    """The deletion fails until Connect answers."""
    bench.step(reclaimPolicy=policy)
    deleted = {**bench.document, "status": bench.status}
    bench.connect.make_unreachable()
    with pytest.raises(TidemillError, match="does not answer"):
        release(deleted, platform=Platform(), actuators=bench.world.actuators)
    bench.connect.failure = None
    release(deleted, platform=Platform(), actuators=bench.world.actuators)
    assert bench.connect.connectors == {}


def test_a_pipeline_without_connectors_never_asks_connect(bench: Bench) -> None:
    bench.connect.make_unreachable()
    assert bench.step(source=bench.source_without_connectors) == ("", "", "")
    release({**bench.document, "status": bench.status}, platform=Platform(), actuators=bench.world.actuators)


def test_connectors_of_deleted_pipelines_are_deleted(bench: Bench) -> None:
    """Connectors of other clusters, of other namespaces and without an owner are left alone."""
    bench.step()
    connect = KafkaConnect(bench.connect)
    for name, owner in (
        ("shop.gone.a", "local/shop/gone/u-0"),
        ("shop.gone.b", "other/shop/gone/u-0"),
        ("shops.gone.a", "local/shops/gone/u-0"),
        ("shop.gone.c", ""),
    ):
        bench.connect.put(name, {"tidemill.owner": owner})
    bench.connect.take_writes()
    connect.sweep(cluster="local", namespace="shop", pipeline_uids={bench.document["metadata"]["uid"]})
    assert bench.connect.take_writes() == ["delete shop.gone.a"]
