"""Scaling in a cluster, on real figures: consumers stand for processors, and positions move when a test says so."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from tidemill_contract.resource.spec import ScaledComponent
from tidemill_operator.actuators.kubernetes.api import CONFIG_MAP, DEPLOYMENT, EVENT, Document
from tidemill_operator.addresses import PostgresAddress
from tidemill_operator.cluster.control import Controller
from tidemill_operator.cluster.events import Recorder
from tidemill_operator.cluster.queue import Result
from tidemill_operator.cluster.scaling import ClusterScaling
from tidemill_operator.cluster.telemetry import Measures
from tidemill_operator.keys import Key
from tidemill_operator.observer.scaling_figures import FiguresReader
from tidemill_operator.plan.render import marks
from tidemill_operator.scaler import STATUS_MEMBERS, Scalable

pytestmark = [pytest.mark.kubernetes, pytest.mark.integration, pytest.mark.slow]

PARTITIONS = 4
QUICK = {
    "maxReplicas": 4,
    "lagThreshold": 100,
    "pollInterval": "1s",
    "lookback": "2s",
    "catchUp": "10s",
    "scaleUpCooldown": "1s",
    "scaleDownStabilization": "3s",
    "maxStepUp": 2,
    "maxStepDown": 2,
}


@dataclass
class Bench:
    """An operator's passes and polls, one after another."""

    cluster: Any
    passes: Any
    key: Key
    load: Any
    component: ScaledComponent = "processor"
    woken: list[Key] = field(default_factory=list)
    seen: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.restart()

    def restart(self, scaling: ClusterScaling | None = None) -> None:
        """Another operator, which knows what is written down only."""
        self.scaling = scaling or self.passes.scaling(wake=self.woken.append)
        self.controller: Controller = self.passes.controller(scaling=self.scaling)

    def step(self) -> int:
        """A pass and a poll; replicas that are set."""
        self.controller.work(self.key)
        self.scaling.poll(self.key, self.component)
        replicas = int(self.deployment["spec"]["replicas"])
        if self.seen[-1:] != [replicas]:
            self.seen.append(replicas)
        return replicas

    def until(self, replicas: int, eventually: Any) -> None:
        eventually(lambda: self.step() == replicas, seconds=120.0, what=f"{replicas} replicas: {self.told}")

    def settle(self, eventually: Any) -> None:
        """Until all that was asked for runs."""
        eventually(lambda: self.controller.work(self.key) is Result.SETTLED, what="it settles")

    def polls(self, count: int) -> None:
        """So many decisions."""
        for _ in range(count):
            while (rest := self.scaling._scaler.rest(Scalable(self.key, self.component))) > 0:
                time.sleep(rest)
            self.step()

    @property
    def deployment(self) -> Document:
        return dict(self.cluster.child(self.key.namespace, "Deployment", f"{self.key.name}-{self.component}"))

    @property
    def told(self) -> Document:
        return dict(self.cluster.get(self.key).get("status", {}).get(STATUS_MEMBERS[self.component], {}))

    @property
    def memory(self) -> Document:
        return dict(self.cluster.child(self.key.namespace, "ConfigMap", marks.scaling(self.key.name, self.component)))


@pytest.fixture
def bench(cluster: Any, passes: Any, namespace: str, make: Any, loaded: Any, eventually: Any) -> Callable[..., Bench]:
    """A pipeline that scales and has settled: `bench(dryRun=True)`."""

    def build(**scaling: Any) -> Bench:
        key = make("orders", namespace, processor={"scaling": {**QUICK, **scaling}}, **source())
        found = Bench(cluster, passes, key, loaded(key))
        found.settle(eventually)
        return found

    return build


def source() -> Document:
    return {
        "source": {
            "topic": {"partitions": PARTITIONS, "replicationFactor": 1},
            "fields": [{"name": "country", "type": "string"}],
        }
    }


def test_lag_brings_processors_in_steps_and_they_go_with_it(bench: Any, eventually: Any, namespace: str) -> None:
    found = bench()
    found.load.send(150)
    found.until(4, eventually)
    found.settle(eventually)
    status = found.cluster.get(found.key)["status"]
    assert (status["scaling"]["desired"], status["replicas"]) == (4, 4)
    found.load.work_off()
    found.until(1, eventually)
    steps = [after - before for before, after in zip(found.seen, found.seen[1:], strict=False)]
    assert found.seen[0] == found.seen[-1] == 1
    assert max(steps) <= 2, "at most maxStepUp at once"
    assert min(steps) >= -2, "at most maxStepDown at once"
    reasons = {
        event["reason"] for event in found.cluster.api.list(EVENT, namespace) if "processors" in event["message"]
    }
    assert reasons & {"ScaledUp", "StepLimited"}
    assert "ScaledDown" in reasons
    assert found.woken, "what is decided is done by a pass"


def test_a_python_stage_is_scaled_by_its_own_lag(
    cluster: Any, passes: Any, namespace: str, make: Any, loaded: Any, eventually: Any
) -> None:
    """By the processors' settings. The status shows its number and lag, and another operator goes on from there."""
    python = {"configMap": "enrich", "file": "enrich.py", "function": "enrich"}
    key = make("orders", namespace, processor={"scaling": QUICK}, transform={"python": python}, **source())
    found = Bench(cluster, passes, key, loaded(key, component="stage"), "stage")
    found.settle(eventually)
    found.load.send(150)
    found.until(4, eventually)
    found.settle(eventually)
    status = cluster.get(key)["status"]
    assert (status["stageScaling"]["desired"], status["stageReplicas"], status["replicas"]) == (4, 4, 1)
    assert found.memory["metadata"]["ownerReferences"][0]["uid"] == key.uid
    observer = passes.observer()
    observer.watch(key, status)
    observer.look()
    status = cluster.get(key)["status"]
    assert (status["stageLag"], status["lag"]) == (600, 600)
    found.restart()
    found.controller.work(key)
    assert found.deployment["spec"]["replicas"] == 4, "nothing was decided since"
    found.load.work_off()
    found.until(1, eventually)
    told = {event["message"] for event in cluster.api.list(EVENT, namespace)}
    assert any("processes of the Python stage" in message for message in told)
    assert not any("processors" in message for message in told)


def test_another_operator_goes_on_and_nobody_else_scales(bench: Any, eventually: Any) -> None:
    """Neither a restart, nor a re-apply of the resource, nor `kubectl scale` takes processors away."""
    found = bench()
    found.load.send(150)
    found.until(4, eventually)
    assert found.memory["metadata"]["ownerReferences"][0]["uid"] == found.key.uid
    found.restart()
    found.controller.work(found.key)
    assert found.deployment["spec"]["replicas"] == 4, "nothing was decided since"
    found.settle(eventually)
    generation = found.deployment["metadata"]["generation"]
    document = found.cluster.get(found.key)
    metadata = {name: document["metadata"][name] for name in ("name", "namespace")}
    again = {**{name: document[name] for name in ("apiVersion", "kind", "spec")}, "metadata": metadata}
    for _ in range(3):
        found.cluster.api.apply(again, manager="gitops")
        found.polls(1)
    assert found.deployment["metadata"]["generation"] == generation, "the Deployment is not written"
    found.cluster.api.merge(DEPLOYMENT, found.key.namespace, "orders-processor", {"spec": {"replicas": 2}})
    assert found.step() == 4


def test_a_poll_that_changes_nothing_writes_nothing(bench: Any, eventually: Any) -> None:
    found = bench()
    eventually(lambda: found.step() and found.told.get("reason") == "WithinTarget", what="it is calm")
    found.settle(eventually)
    found.passes.api.written.clear()
    found.polls(3)
    assert found.passes.api.written == []


def test_a_dry_run_only_tells(bench: Any, eventually: Any) -> None:
    found = bench(dryRun=True)
    found.load.send(150)
    eventually(lambda: found.step() and found.told.get("reason") == "DryRun", what="it is told")
    assert found.told["desired"] > found.told["current"] == 1
    found.polls(2)
    assert found.seen == [1]


@pytest.mark.fault("figures-unreadable-while-scaling", "replicas stay as they are")
def test_missing_figures_change_nothing(bench: Any, eventually: Any) -> None:
    """Also if the minimum is lower, and nothing was decided yet."""
    found = bench()
    found.load.send(150)
    found.until(4, eventually)
    api, nowhere = found.passes.api, PostgresAddress("127.0.0.1", 1, "x", "x", "x")
    reader = FiguresReader(found.passes.servers.kafka, nowhere)
    recorder = Recorder(api, "test")
    found.restart(ClusterScaling(api, reader, recorder=recorder, measures=Measures(), wake=lambda _: None))
    found.polls(4)
    found.controller.work(found.key)
    assert found.told["reason"] == "FiguresMissing"
    assert found.deployment["spec"]["replicas"] == 4
    found.cluster.api.delete(CONFIG_MAP, found.key.namespace, "orders-scaling")
    found.restart(ClusterScaling(api, reader, recorder=recorder, measures=Measures(), wake=lambda _: None))
    found.polls(1)
    assert found.seen[-1] == 4, "without a memory, what runs counts"


def test_scaling_that_begins_begins_with_what_runs(
    cluster: Any, passes: Any, namespace: str, make: Any, loaded: Any, eventually: Any
) -> None:
    """From a fixed number, from others' scaling; and what was remembered goes when scaling goes."""
    key = make("orders", namespace, processor={"replicas": 3}, **source())
    found = Bench(cluster, passes, key, loaded(key))
    found.settle(eventually)
    cluster.patch(key, spec={"processor": {"scaling": {**QUICK, "scaleDownStabilization": "10m"}}})
    found.polls(2)
    assert found.seen == [3]
    assert found.memory
    cluster.patch(key, spec={"processor": {"scaling": {"mode": "external"}}})
    found.polls(1)
    cluster.api.merge(DEPLOYMENT, namespace, "orders-processor", {"spec": {"replicas": 2}})
    found.polls(1)
    found.controller.work(key)
    assert found.seen == [3, 2]
    assert (found.told["reason"], found.told["current"]) == ("External", 2)
    assert found.memory == {}
    cluster.patch(key, spec={"processor": {"scaling": {"mode": "lag"}}})
    found.polls(2)
    assert found.seen == [3, 2]
    cluster.patch(key, spec={"processor": {"scaling": None, "replicas": 1}})
    found.controller.work(key)
    assert (found.deployment["spec"]["replicas"], found.memory, found.told) == (1, {}, {})


def test_who_is_paused_is_not_decided_about(bench: Any, eventually: Any) -> None:
    found = bench()
    found.cluster.patch(found.key, metadata={"annotations": {"tidemill.dev/paused": "true"}})
    found.step()
    found.load.send(150)
    assert found.scaling.poll(found.key) is Result.GONE
    found.cluster.patch(found.key, metadata={"annotations": {"tidemill.dev/paused": None}})
    found.until(4, eventually)


def test_the_operator_scales_and_its_successor_goes_on(
    cluster: Any, start_operator: Any, namespace: str, make: Any, loaded: Any, eventually: Any
) -> None:
    """As processes, the first one killed."""
    first = start_operator()
    key = make("orders", namespace, processor={"scaling": QUICK}, **source())
    cluster.await_ready(key, seconds=180.0)
    load = loaded(key)
    load.send(150)

    def replicas() -> int:
        return int(cluster.child(namespace, "Deployment", "orders-processor")["spec"]["replicas"])

    eventually(lambda: replicas() == 4, seconds=120.0, what="four processors")
    metrics = first.ask("/metrics")[1]
    assert f'tidemill_operator_scaling_desired_replicas{{namespace="{namespace}",pipeline="orders"}} 4.0' in metrics
    assert "tidemill_operator_scaling_decisions_total{reason=" in metrics
    first.stop(signal.SIGKILL)
    second = start_operator()
    eventually(second.leads, seconds=90.0, what="the second one leads")
    decided = f'tidemill_operator_scaling_current_replicas{{namespace="{namespace}",pipeline="orders"}} 4.0'
    eventually(lambda: decided in second.ask("/metrics")[1], what="it has decided")
    assert replicas() == 4
    load.work_off()
    eventually(lambda: replicas() == 1, seconds=120.0, what="one processor")
    eventually(lambda: cluster.get(key)["status"]["replicas"] == 1, what="the status tells it")
