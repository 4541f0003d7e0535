"""Tests of scaling on a real API server, Kafka and Postgres.

The tests start each pass and each poll of the operator, except for one test with processes. Consumers replace
processors, and positions move when a test says so.
"""

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
from tidemill_operator.cluster.event_recorder import EventRecorder
from tidemill_operator.cluster.queue import Result
from tidemill_operator.cluster.scaling import ClusterScaling
from tidemill_operator.cluster.telemetry import OperatorMetrics
from tidemill_operator.keys import Key
from tidemill_operator.observer.scaling_figures import FiguresReader
from tidemill_operator.plan.render import object_metadata
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
    """Runs passes and polls of one operator in turn.

    Attributes:
        load: the consumers of the pipeline, which also send its events.
        component: what is scaled.
        woken: pipelines that the scaler has asked a pass for.
        replica_counts: each different number of replicas, in order.
    """

    cluster: Any
    passes: Any
    key: Key
    load: Any
    component: ScaledComponent = "processor"
    woken: list[Key] = field(default_factory=list)
    replica_counts: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.restart()

    def restart(self, scaling: ClusterScaling | None = None) -> None:
        """Continue with a new operator, which knows only the state in the cluster."""
        self.scaling = scaling or self.passes.scaling(wake=self.woken.append)
        self.controller: Controller = self.passes.controller(scaling=self.scaling)

    def step(self) -> int:
        """Run a pass and a poll, and return the replicas of the Deployment's spec."""
        self.controller.run_pass(self.key)
        self.scaling.poll(self.key, self.component)
        replicas = int(self.deployment["spec"]["replicas"])
        if self.replica_counts[-1:] != [replicas]:
            self.replica_counts.append(replicas)
        return replicas

    def until(self, replicas: int, eventually: Any) -> None:
        eventually(lambda: self.step() == replicas, seconds=120.0, what=f"{replicas} replicas: {self.scaling_status}")

    def settle(self, eventually: Any) -> None:
        """Run passes until one settles: all replicas are ready."""
        eventually(lambda: self.controller.run_pass(self.key) is Result.SETTLED, what="the pipeline settles")

    def polls(self, count: int) -> None:
        """Run passes and polls for `count` decisions, and wait out the poll interval before each."""
        for _ in range(count):
            while (rest := self.scaling._scaler.seconds_to_poll(Scalable(self.key, self.component))) > 0:
                time.sleep(rest)
            self.step()

    @property
    def deployment(self) -> Document:
        return dict(self.cluster.child(self.key.namespace, "Deployment", f"{self.key.name}-{self.component}"))

    @property
    def scaling_status(self) -> Document:
        return dict(self.cluster.get(self.key).get("status", {}).get(STATUS_MEMBERS[self.component], {}))

    @property
    def memory(self) -> Document:
        return dict(
            self.cluster.child(
                self.key.namespace, "ConfigMap", object_metadata.scaling_config_map(self.key.name, self.component)
            )
        )


@pytest.fixture
def make_bench(
    cluster: Any, passes: Any, namespace: str, make: Any, loaded: Any, eventually: Any
) -> Callable[..., Bench]:
    """Return a function that creates a settled pipeline with scaling: `make_bench(dryRun=True)`."""

    def build(**scaling: Any) -> Bench:
        key = make("orders", namespace, processor={"scaling": {**QUICK, **scaling}}, **source())
        bench = Bench(cluster, passes, key, loaded(key))
        bench.settle(eventually)
        return bench

    return build


def source() -> Document:
    return {
        "source": {
            "topic": {"partitions": PARTITIONS, "replicationFactor": 1},
            "fields": [{"name": "country", "type": "string"}],
        }
    }


def test_processors_are_added_in_steps_with_lag_and_removed_without_it(
    make_bench: Any, eventually: Any, namespace: str
) -> None:
    bench = make_bench()
    bench.load.send(150)
    bench.until(4, eventually)
    bench.settle(eventually)
    status = bench.cluster.get(bench.key)["status"]
    assert (status["scaling"]["desired"], status["replicas"]) == (4, 4)
    bench.load.work_off()
    bench.until(1, eventually)
    steps = [after - before for before, after in zip(bench.replica_counts, bench.replica_counts[1:], strict=False)]
    assert bench.replica_counts[0] == bench.replica_counts[-1] == 1
    assert max(steps) <= 2, "a step up is larger than maxStepUp"
    assert min(steps) >= -2, "a step down is larger than maxStepDown"
    reasons = {
        event["reason"] for event in bench.cluster.api.list(EVENT, namespace) if "processors" in event["message"]
    }
    assert reasons & {"ScaledUp", "StepLimited"}
    assert "ScaledDown" in reasons
    assert bench.woken, "a decision has woken no pass"


def test_a_python_stage_scales_with_the_lag_of_the_stage(
    cluster: Any, passes: Any, namespace: str, make: Any, loaded: Any, eventually: Any
) -> None:
    """The settings are those of the processors. The status shows replicas and lag. A new operator keeps the number."""
    python = {"configMap": "enrich", "file": "enrich.py", "function": "enrich"}
    key = make("orders", namespace, processor={"scaling": QUICK}, transform={"python": python}, **source())
    bench = Bench(cluster, passes, key, loaded(key, component="stage"), "stage")
    bench.settle(eventually)
    bench.load.send(150)
    bench.until(4, eventually)
    bench.settle(eventually)
    status = cluster.get(key)["status"]
    assert (status["stageScaling"]["desired"], status["stageReplicas"], status["replicas"]) == (4, 4, 1)
    assert bench.memory["metadata"]["ownerReferences"][0]["uid"] == key.uid
    observer = passes.observer()
    observer.watch(key, status)
    observer.measure()
    status = cluster.get(key)["status"]
    assert (status["stageLag"], status["lag"]) == (600, 600)
    bench.restart()
    bench.controller.run_pass(key)
    assert bench.deployment["spec"]["replicas"] == 4, "a new operator has changed the replicas without a decision"
    bench.load.work_off()
    bench.until(1, eventually)
    messages = {event["message"] for event in cluster.api.list(EVENT, namespace)}
    assert any("processes of the Python stage" in message for message in messages)
    assert not any("processors" in message for message in messages)


def test_replicas_survive_a_restart_a_reapplied_resource_and_kubectl_scale(make_bench: Any, eventually: Any) -> None:
    bench = make_bench()
    bench.load.send(150)
    bench.until(4, eventually)
    assert bench.memory["metadata"]["ownerReferences"][0]["uid"] == bench.key.uid
    bench.restart()
    bench.controller.run_pass(bench.key)
    assert bench.deployment["spec"]["replicas"] == 4, "a new operator has changed the replicas without a decision"
    bench.settle(eventually)
    generation = bench.deployment["metadata"]["generation"]
    document = bench.cluster.get(bench.key)
    metadata = {name: document["metadata"][name] for name in ("name", "namespace")}
    manifest = {**{name: document[name] for name in ("apiVersion", "kind", "spec")}, "metadata": metadata}
    for _ in range(3):
        bench.cluster.api.apply(manifest, manager="gitops")
        bench.polls(1)
    assert bench.deployment["metadata"]["generation"] == generation, "the Deployment was written"
    bench.cluster.api.merge(DEPLOYMENT, bench.key.namespace, "orders-processor", {"spec": {"replicas": 2}})
    assert bench.step() == 4


def test_a_poll_that_changes_nothing_writes_nothing(make_bench: Any, eventually: Any) -> None:
    bench = make_bench()
    eventually(
        lambda: bench.step() and bench.scaling_status.get("reason") == "WithinTarget",
        what="the lag is within its target",
    )
    bench.settle(eventually)
    bench.passes.api.written.clear()
    bench.polls(3)
    assert bench.passes.api.written == []


def test_a_dry_run_reports_a_decision_and_keeps_the_replicas(make_bench: Any, eventually: Any) -> None:
    bench = make_bench(dryRun=True)
    bench.load.send(150)
    eventually(lambda: bench.step() and bench.scaling_status.get("reason") == "DryRun", what="the dry run is reported")
    assert bench.scaling_status["desired"] > bench.scaling_status["current"] == 1
    bench.polls(2)
    assert bench.replica_counts == [1]


@pytest.mark.fault("figures-unreadable-while-scaling", "replicas do not change")
def test_missing_figures_keep_the_replicas(make_bench: Any, eventually: Any) -> None:
    """An operator without memory of decisions keeps them too, although the minimum is lower."""
    bench = make_bench()
    bench.load.send(150)
    bench.until(4, eventually)
    api, nowhere = bench.passes.api, PostgresAddress("127.0.0.1", 1, "x", "x", "x")
    reader = FiguresReader(bench.passes.servers.kafka, nowhere)
    recorder = EventRecorder(api, "test")
    bench.restart(
        ClusterScaling(api, reader, recorder=recorder, metrics=OperatorMetrics(), request_pass=lambda _: None)
    )
    bench.polls(4)
    bench.controller.run_pass(bench.key)
    assert bench.scaling_status["reason"] == "FiguresMissing"
    assert bench.deployment["spec"]["replicas"] == 4
    bench.cluster.api.delete(CONFIG_MAP, bench.key.namespace, "orders-scaling")
    bench.restart(
        ClusterScaling(api, reader, recorder=recorder, metrics=OperatorMetrics(), request_pass=lambda _: None)
    )
    bench.polls(1)
    assert bench.replica_counts[-1] == 4, "an operator without memory does not start from the running replicas"


def test_scaling_starts_from_the_running_replicas(
    cluster: Any, passes: Any, namespace: str, make: Any, loaded: Any, eventually: Any
) -> None:
    """The number before may be fixed or set by another autoscaler. Without scaling, the memory is deleted."""
    key = make("orders", namespace, processor={"replicas": 3}, **source())
    bench = Bench(cluster, passes, key, loaded(key))
    bench.settle(eventually)
    cluster.patch(key, spec={"processor": {"scaling": {**QUICK, "scaleDownStabilization": "10m"}}})
    bench.polls(2)
    assert bench.replica_counts == [3]
    assert bench.memory
    cluster.patch(key, spec={"processor": {"scaling": {"mode": "external"}}})
    bench.polls(1)
    cluster.api.merge(DEPLOYMENT, namespace, "orders-processor", {"spec": {"replicas": 2}})
    bench.polls(1)
    bench.controller.run_pass(key)
    assert bench.replica_counts == [3, 2]
    assert (bench.scaling_status["reason"], bench.scaling_status["current"]) == ("External", 2)
    assert bench.memory == {}
    cluster.patch(key, spec={"processor": {"scaling": {"mode": "lag"}}})
    bench.polls(2)
    assert bench.replica_counts == [3, 2]
    cluster.patch(key, spec={"processor": {"scaling": None, "replicas": 1}})
    bench.controller.run_pass(key)
    assert (bench.deployment["spec"]["replicas"], bench.memory, bench.scaling_status) == (1, {}, {})


def test_a_paused_pipeline_is_not_scaled(make_bench: Any, eventually: Any) -> None:
    bench = make_bench()
    bench.cluster.patch(bench.key, metadata={"annotations": {"tidemill.dev/paused": "true"}})
    bench.step()
    bench.load.send(150)
    assert bench.scaling.poll(bench.key) is Result.GONE
    bench.cluster.patch(bench.key, metadata={"annotations": {"tidemill.dev/paused": None}})
    bench.until(4, eventually)


def test_the_successor_of_a_killed_operator_keeps_scaling(
    cluster: Any, start_operator: Any, namespace: str, make: Any, loaded: Any, eventually: Any
) -> None:
    """Both operators are processes."""
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
    eventually(second.leads, seconds=90.0, what="the second operator leads")
    metric = f'tidemill_operator_scaling_current_replicas{{namespace="{namespace}",pipeline="orders"}} 4.0'
    eventually(lambda: metric in second.ask("/metrics")[1], what="the second operator has decided")
    assert replicas() == 4
    load.work_off()
    eventually(lambda: replicas() == 1, seconds=120.0, what="one processor")
    eventually(lambda: cluster.get(key)["status"]["replicas"] == 1, what="the status has one replica")
