"""Passes over a pipeline with connectors, against a Kafka Connect in memory: conditions, status, owners, outages."""

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
    """A pipeline with one connector on a platform in memory; `now` is the clock of the restarts."""

    def __init__(self, document: Document, world: MemoryWorld) -> None:
        self.document = copy.deepcopy(document)
        self.document["spec"]["source"]["connectors"] = [{"name": "files", "class": "x.Source"}]
        self.now = NOON.timestamp()
        self.connect = MemoryConnect()
        self.world = world
        self.world.connect = KafkaConnect(self.connect, Restarts(lambda: self.now))
        self.status: Status = {}

    def step(self, **spec: Any) -> tuple[str, str, str]:
        """A pass, after an edit of the spec if there is one. Returns ConnectorsReady: status, reason, message."""
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
    def without(self) -> Document:
        """The source without connectors."""
        return {key: member for key, member in self.document["spec"]["source"].items() if key != "connectors"}


@pytest.fixture
def stage(document: Document, world: MemoryWorld) -> Stage:
    return Stage(document, world)


def test_a_connector_is_created_after_its_topic_and_then_left_alone(stage: Stage) -> None:
    """The pipeline is ready when the connector runs, and the status has the states of its tasks."""
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
    """A changed config, a pause, a deletion. The connector still works meanwhile."""
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
    assert restarts == 6, "after 0, 10, 30, 70, 150 and 310 seconds"
    stage.step()
    stage.now += 601
    stage.connect.restart(NAME)
    assert stage.step() == ("True", "Applied", "")
    stage.connect.fail(NAME, TRACE)
    assert "restarted once" in stage.step()[2]


def test_connectors_that_left_the_spec_are_deleted_even_if_connect_was_away(stage: Stage) -> None:
    """The condition stays until Connect has none of them any more."""
    stage.step()
    stage.connect.unreachable()
    assert stage.step(source=stage.without)[:2] == ("False", "Unreachable")
    stage.connect.failure = None
    assert stage.step()[0] == "True"
    assert stage.connect.connectors == {}
    assert stage.step() == ("", "", "")
    assert "connectors" not in stage.status
    stage.connect.unreachable()
    assert stage.step() == ("", "", "")


def test_connect_away_is_said_and_the_last_states_are_kept(stage: Stage) -> None:
    """Other components stay ready."""
    stage.step()
    stage.step()
    stage.connect.unreachable()
    state, reason, message = stage.step()
    assert (state, reason) == ("False", "Unreachable")
    assert "Kafka Connect at http://connect:8083 does not answer" in message
    assert stage.condition("ProcessorsReady")[0] == "True"
    assert stage.status["connectors"][0]["state"] == "RUNNING"


def test_a_platform_without_connect_says_what_to_set(stage: Stage) -> None:
    stage.world.connect = None
    assert stage.step() == (
        "False",
        "NotSupported",
        "spec.source.connectors: the platform has no Kafka Connect; set connect.image,"
        " connect.strimzi.cluster or connect.url in the chart",
    )
    assert stage.condition("Stalled")[0] == "True"


def test_other_connectors_go_on_if_one_is_refused_or_foreign(stage: Stage) -> None:
    """Names of others' connectors begin like the pipeline's own."""
    stage.document["spec"]["source"]["connectors"] += [{"name": name, "class": "x.Source"} for name in ("bad", "mine")]
    stage.connect.refused["shop.orders.bad"] = TidemillError(Reason.REFUSED, "no such class")
    stage.connect.put(NAME, {"tidemill.owner": "local/shop/orders/another"})
    stage.connect.put("shop.orders.stray", {})
    state, reason, message = stage.step()
    assert (state, reason, message) == ("False", "Refused", "no such class")
    told = {item["name"]: item.get("message", "") for item in stage.status["connectors"]}
    assert told["bad"] == "no such class"
    assert "belongs to the pipeline local/shop/orders/another" in told["files"]
    assert stage.connect.take_writes() == ["create shop.orders.mine"]
    stage.document["metadata"]["annotations"] = {"tidemill.dev/adopt": "true"}
    stage.step()
    assert stage.connect.take_writes() == [f"configure {NAME}"]
    assert "shop.orders.stray" in stage.connect.connectors


def test_a_paused_reconciliation_only_looks(stage: Stage) -> None:
    stage.step()
    stage.connect.take_writes()
    stage.document["metadata"]["annotations"] = {PAUSE: "true"}
    stage.connect.fail(NAME, TRACE)
    assert stage.step()[:2] == ("False", "ConnectorFailed")
    assert stage.connect.take_writes() == []


@pytest.mark.parametrize("policy", ["Retain", "Delete"])
def test_connectors_are_deleted_with_the_pipeline(stage: Stage, policy: str) -> None:
    """Connect has to answer for this."""
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
    assert stage.step(source=stage.without) == ("", "", "")
    release({**stage.document, "status": stage.status}, platform=Platform(), actuators=stage.world.actuators)


def test_connectors_of_pipelines_that_are_gone_are_swept(stage: Stage) -> None:
    """Those of other clusters, of other namespaces and of nobody are left alone."""
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
