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


class Stage:
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
            standing=lambda: None,
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
def stage(document: Document, world: MemoryWorld) -> Stage:
    return Stage(document, world)


def test_a_connector_is_created_after_its_topic_and_then_left_alone(stage: Stage) -> None:
    assert stage.step() == ("False", "Waiting", f"connector {NAME} starts")
    assert stage.connect.take_writes() == [f"create {NAME}"]
    assert stage.step() == ("True", "Applied", "")
    assert stage.condition("Ready")[0] == "True"
    assert stage.status["connectors"] == [
        {"name": "files", "state": "RUNNING", "tasks": [{"id": 0, "state": "RUNNING"}]}
    ]
    assert stage.step() == ("True", "Applied", "")
    assert stage.connect.take_writes() == []


def test_changes_by_others_are_reverted(stage: Stage) -> None:
    """A changed config, a pause and a deletion are reverted. Meanwhile the connector counts as working."""
    stage.step()
    stage.connect.put(NAME, {**stage.connect.connectors[NAME].config, "file": "/other"})
    assert stage.step()[:2] == ("True", "Waiting")
    stage.connect.pause(NAME)
    stage.step()
    del stage.connect.connectors[NAME]
    stage.step()
    writes = [f"configure {NAME}", f"pause {NAME}", f"resume {NAME}", f"create {NAME}"]
    assert stage.connect.take_writes()[1:] == writes
    assert stage.step() == ("True", "Applied", "")


def test_a_suspended_pipeline_pauses_its_connectors(stage: Stage) -> None:
    stage.step()
    stage.step(suspend=True)
    assert stage.step() == ("True", "Applied", "")
    assert stage.status["connectors"][0]["state"] == "PAUSED"
    stage.step(suspend=False)
    assert stage.step() == ("True", "Applied", "")
    assert stage.connect.take_writes() == [f"create {NAME}", f"pause {NAME}", f"resume {NAME}"]


def test_failed_tasks_are_restarted_with_growing_delays(stage: Stage) -> None:
    """The condition names connector, task and cause. After ten minutes without failures, delays are short again."""
    stage.step()
    stage.connect.fail(NAME, TRACE)
    state, reason, message = stage.step()
    assert (state, reason) == ("False", "ConnectorFailed")
    cause = f"task 0 of connector {NAME} failed: java.io.IOException: disk gone"
    assert message == f"{cause}; restarted once, again at 2026-03-01T12:00:10Z if it still fails"
    assert stage.condition("Ready")[:2] == ("False", "ConnectorFailed")
    for second in range(1, 400):
        stage.connect.fail(NAME, TRACE)
        stage.now = NOON.timestamp() + second
        stage.step()
    assert stage.status["connectors"][0]["message"] == cause
    restarts = stage.connect.take_writes().count(f"restart {NAME}")
    assert restarts == 6, "the restarts are after 0, 10, 30, 70, 150 and 310 seconds"
    stage.step()
    stage.now += 601
    stage.connect.restart(NAME)
    assert stage.step() == ("True", "Applied", "")
    stage.connect.fail(NAME, TRACE)
    assert "restarted once" in stage.step()[2]


def test_removed_connectors_are_deleted_when_connect_answers_again(stage: Stage) -> None:
    """The condition is kept until Connect has none of them."""
    stage.step()
    stage.connect.unreachable()
    assert stage.step(source=stage.source_without_connectors)[:2] == ("False", "Unreachable")
    stage.connect.failure = None
    assert stage.step()[0] == "True"
    assert stage.connect.connectors == {}
    assert stage.step() == ("", "", "")
    assert "connectors" not in stage.status
    stage.connect.unreachable()
    assert stage.step() == ("", "", "")


def test_an_unreachable_connect_is_reported_and_the_last_states_are_kept(stage: Stage) -> None:
    stage.step()
    stage.step()
    stage.connect.unreachable()
    state, reason, message = stage.step()
    assert (state, reason) == ("False", "Unreachable")
    assert "Kafka Connect at http://connect:8083 does not answer" in message
    assert stage.condition("ProcessorsReady")[0] == "True"
    assert stage.status["connectors"][0]["state"] == "RUNNING"


def test_a_platform_without_connect_reports_the_settings_to_set(stage: Stage) -> None:
    stage.world.connect = None
    assert stage.step() == (
        "False",
        "NotSupported",
        "spec.source.connectors: the platform has no Kafka Connect; set connect.image,"
        " connect.strimzi.cluster or connect.url in the chart",
    )
    assert stage.condition("Stalled")[0] == "True"


def test_a_refused_or_foreign_connector_stops_no_other(stage: Stage) -> None:
    """The names of others' connectors begin like the name of the pipeline."""
    stage.document["spec"]["source"]["connectors"] += [{"name": name, "class": "x.Source"} for name in ("bad", "mine")]
    stage.connect.refused["shop.orders.bad"] = TidemillError(Reason.REFUSED, "no such class")
    stage.connect.put(NAME, {"tidemill.owner": "local/shop/orders/another"})
    stage.connect.put("shop.orders.stray", {})
    state, reason, message = stage.step()
    assert (state, reason, message) == ("False", "Refused", "no such class")
    messages = {item["name"]: item.get("message", "") for item in stage.status["connectors"]}
    assert messages["bad"] == "no such class"
    assert "belongs to the pipeline local/shop/orders/another" in messages["files"]
    assert stage.connect.take_writes() == ["create shop.orders.mine"]
    stage.document["metadata"]["annotations"] = {"tidemill.dev/adopt": "true"}
    stage.step()
    assert stage.connect.take_writes() == [f"configure {NAME}"]
    assert "shop.orders.stray" in stage.connect.connectors


def test_a_paused_pipeline_only_observes_connectors(stage: Stage) -> None:
    stage.step()
    stage.connect.take_writes()
    stage.document["metadata"]["annotations"] = {PAUSE: "true"}
    stage.connect.fail(NAME, TRACE)
    assert stage.step()[:2] == ("False", "ConnectorFailed")
    assert stage.connect.take_writes() == []


@pytest.mark.parametrize("policy", ["Retain", "Delete"])
def test_connectors_are_deleted_with_the_pipeline(stage: Stage, policy: str) -> None:
    """The deletion fails until Connect answers."""
    stage.step(reclaimPolicy=policy)
    deleted = {**stage.document, "status": stage.status}
    stage.connect.unreachable()
    with pytest.raises(TidemillError, match="does not answer"):
        release(deleted, platform=Platform(), actuators=stage.world.actuators)
    stage.connect.failure = None
    release(deleted, platform=Platform(), actuators=stage.world.actuators)
    assert stage.connect.connectors == {}


def test_a_pipeline_without_connectors_never_asks_connect(stage: Stage) -> None:
    stage.connect.unreachable()
    assert stage.step(source=stage.source_without_connectors) == ("", "", "")
    release({**stage.document, "status": stage.status}, platform=Platform(), actuators=stage.world.actuators)


def test_connectors_of_deleted_pipelines_are_deleted(stage: Stage) -> None:
    """Connectors of other clusters, of other namespaces and without an owner are left alone."""
    stage.step()
    connect = KafkaConnect(stage.connect)
    for name, owner in (
        ("shop.gone.a", "local/shop/gone/u-0"),
        ("shop.gone.b", "other/shop/gone/u-0"),
        ("shops.gone.a", "local/shops/gone/u-0"),
        ("shop.gone.c", ""),
    ):
        stage.connect.put(name, {"tidemill.owner": owner})
    stage.connect.take_writes()
    connect.sweep(cluster="local", namespace="shop", alive={stage.document["metadata"]["uid"]})
    assert stage.connect.take_writes() == ["delete shop.gone.a"]
