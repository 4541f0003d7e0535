"""Tests of several writers of replicas: the operator, an HPA, `kubectl scale` and a GitOps tool.

The operator runs as a process on a real API server, Kafka and Postgres. The generation of a Deployment counts all
writes that change its spec. Events count the operator's decisions.
"""

from __future__ import annotations

import re
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import pytest

from kube import binaries
from tidemill_operator.actuators.kubernetes.api import EVENT, Document
from tidemill_operator.errors import TidemillError
from tidemill_operator.keys import Key

pytestmark = [pytest.mark.kubernetes, pytest.mark.integration, pytest.mark.slow]

PARTITIONS = 4
SCALING = {
    "maxReplicas": 4,
    "lagThreshold": 100,
    "pollInterval": "1s",
    "lookback": "2s",
    "catchUp": "10s",
    "scaleUpCooldown": "1s",
    "scaleDownStabilization": "5s",
    "maxStepUp": 2,
}
_CHANGE = re.compile(r"(\d+) → (\d+) processors")
_RE_APPLY_SECONDS = 0.5


@dataclass
class Scene:
    """A pipeline with a running operator, and other writers of its replicas.

    Attributes:
        applied: how often the GitOps tool has applied the resource.
        first_generation: the Deployment's generation when the other writers started.
        replica_counts: each different number of replicas, in order.
    """

    cluster: Any
    key: Key
    eventually: Any
    applied: int = 0
    first_generation: int = 0
    replica_counts: list[int] = field(default_factory=list)

    @property
    def deployment(self) -> Document:
        return dict(self.cluster.child(self.key.namespace, "Deployment", f"{self.key.name}-processor"))

    @property
    def replicas(self) -> int:
        return int(self.deployment["spec"]["replicas"])

    @property
    def status(self) -> Document:
        return dict(self.cluster.get(self.key).get("status", {}))

    @property
    def writes(self) -> int:
        """Return the number of writes to the Deployment's spec since the other writers started."""
        return int(self.deployment["metadata"]["generation"]) - self.first_generation

    @property
    def decisions(self) -> list[tuple[int, int]]:
        """Return the replicas before and after each decision, from Events, sorted."""
        events = self.cluster.api.list(EVENT, self.key.namespace)
        matches = [_CHANGE.match(event["message"]) for event in events]
        return sorted((int(match[1]), int(match[2])) for match in matches if match)

    def kubectl(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [str(binaries.FOLDER / "kubectl"), "--kubeconfig", str(self.cluster.plane.kubeconfig)]
        return subprocess.run(
            [*command, "--namespace", self.key.namespace, *arguments], capture_output=True, text=True, check=False
        )

    def scale(self, what: str, replicas: int) -> subprocess.CompletedProcess[str]:
        """Run `kubectl scale`, which writes to the scale subresource as an HPA does."""
        return self.kubectl("scale", what, f"--replicas={replicas}")

    def until(self, replicas: int, *, ready: bool = True) -> None:
        """Wait until spec, ready pods and status all have this number of replicas."""

        def reached() -> bool:
            live = self.deployment
            wanted, ready_replicas = live["spec"]["replicas"], live["status"].get("readyReplicas", 0)
            return wanted == replicas and (
                not ready or (ready_replicas == replicas and self.status.get("replicas") == replicas)
            )

        self.eventually(reached, seconds=120.0, what=f"{replicas} replicas, {self.status.get('scaling')}")

    def wait_for_applies(self) -> None:
        """Wait for four more applies of the GitOps tool, which take longer than a poll of the operator."""
        until = self.applied + 4
        self.eventually(lambda: self.applied >= until, seconds=60.0, what="the resource is applied four more times")

    @contextmanager
    def run_other_writers(self) -> Iterator[None]:
        """Apply the resource again and again as a GitOps tool, and record the replicas, in this context."""
        document = self.cluster.get(self.key)
        metadata = {name: document["metadata"][name] for name in ("name", "namespace")}
        manifest = {**{name: document[name] for name in ("apiVersion", "kind", "spec")}, "metadata": metadata}
        manifest["spec"] = {**manifest["spec"], "processor": dict(manifest["spec"]["processor"])}
        del manifest["spec"]["processor"]["replicas"]  # the API server's default, which the manifest does not have
        stopping = threading.Event()

        def apply() -> None:
            while not stopping.wait(_RE_APPLY_SECONDS):
                self.cluster.api.apply(manifest, manager="gitops")
                self.applied += 1

        def watch() -> None:
            while not stopping.wait(0.05):
                try:
                    replicas = self.replicas
                except TidemillError:
                    continue
                if self.replica_counts[-1:] != [replicas]:
                    self.replica_counts.append(replicas)

        self.first_generation = int(self.deployment["metadata"]["generation"])
        threads = [threading.Thread(target=target) for target in (apply, watch)]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            stopping.set()
            for thread in threads:
                thread.join()


@pytest.fixture
def make_scene(cluster: Any, start_operator: Any, namespace: str, make: Any, eventually: Any) -> Callable[..., Scene]:
    """Return a function that creates a ready pipeline: `make_scene(scaling={…})`."""

    def build(**processor: Any) -> Scene:
        source = {
            "topic": {"partitions": PARTITIONS, "replicationFactor": 1},
            "fields": [{"name": "country", "type": "string"}],
        }
        start_operator()
        key = make("orders", namespace, source=source, processor=processor)
        cluster.await_ready(key, seconds=180.0)
        return Scene(cluster, key, eventually)

    return build


def test_only_decisions_of_the_operator_change_the_replicas(make_scene: Any, loaded: Any) -> None:
    """A GitOps tool applies twice a second, and `kubectl scale` on the resource is refused."""
    scene = make_scene(scaling=SCALING)
    load = loaded(scene.key)
    with scene.run_other_writers():
        refused = scene.scale("analyticspipeline/orders", 2)
        assert refused.returncode == 1
        assert (
            "replicas cannot change while scaling is set; set replicas to 1 and change scaling, or remove scaling first"
            in refused.stderr
        )
        load.send(150)
        scene.until(4)
        assert scene.scale("analyticspipeline/orders", 2).returncode == 1
        scene.wait_for_applies()
        assert scene.replicas == 4
        load.work_off()
        scene.until(1)
        scene.wait_for_applies()
    assert scene.applied >= 10
    assert scene.replica_counts[0] == scene.replica_counts[-1] == 1
    assert scene.writes == len(scene.decisions) == len(scene.replica_counts) - 1
    assert scene.decisions == sorted(pairwise(scene.replica_counts))
    assert max(scene.replica_counts) == 4
    assert scene.replica_counts.index(4) == 2, "there are not two steps up, of two and one"
    assert scene.status["scaling"]["current"] == 1


@pytest.mark.matrix
def test_the_operator_reverts_each_foreign_write_of_replicas_once(make_scene: Any, loaded: Any) -> None:
    """`kubectl scale` on the Deployment, or a forgotten HPA, does not count as a decision."""
    scene = make_scene(scaling={**SCALING, "minReplicas": 2})
    loaded(scene.key)
    scene.until(2)
    # Before its first decision, the operator would start from the running replicas.
    scene.eventually(
        lambda: scene.status.get("scaling", {}).get("desired") == 2, what="the operator has decided on 2 replicas"
    )
    before = scene.decisions
    with scene.run_other_writers():
        for replicas in (4, 1, 3):
            assert scene.scale("deployment/orders-processor", replicas).returncode == 0
            scene.until(2)
            scene.wait_for_applies()
    assert scene.writes == 2 * 3, "there is not one revert for each foreign write"
    assert scene.decisions == before
    assert scene.status["scaling"]["current"] == scene.status["scaling"]["desired"] == 2


def test_an_hpa_alone_writes_replicas_with_external_scaling(make_scene: Any, loaded: Any) -> None:
    """With `mode: external`, the operator writes no replicas, even for a new spec, and reports the running ones."""
    scene = make_scene(scaling={"mode": "external"})
    loaded(scene.key)
    with scene.run_other_writers():
        for replicas in (3, 4, 2):
            assert scene.scale("deployment/orders-processor", replicas).returncode == 0
            scene.until(replicas)
        refused = scene.scale("analyticspipeline/orders", 3)
        assert (refused.returncode, "while scaling is set" in refused.stderr) == (1, True)
        scene.wait_for_applies()
    assert scene.replica_counts == [1, 3, 4, 2]
    assert scene.writes == 3, "the operator has written as well"
    assert scene.decisions == []
    scaling = scene.eventually(
        lambda: live if (live := scene.status.get("scaling", {})).get("current") == 2 else None,
        what="2 replicas are in the status",
    )
    assert (scaling["mode"], scaling["reason"], scaling["desired"]) == ("external", "External", 2)
    scene.cluster.patch(scene.key, spec={"processor": {"flushInterval": "700ms"}})
    scene.eventually(lambda: scene.writes > 3, what="the new spec is rolled out")
    scene.until(2)
    assert scene.writes == 4
    assert scene.replica_counts[-1] == 2


@pytest.mark.matrix
def test_without_scaling_the_resource_sets_the_replicas(make_scene: Any, loaded: Any) -> None:
    """`kubectl scale` and an HPA change the resource. A manifest without replicas keeps their number."""
    scene = make_scene()
    loaded(scene.key)
    with scene.run_other_writers():
        for replicas in (3, 2):
            done = scene.scale("analyticspipeline/orders", replicas)
            assert (done.returncode, done.stderr) == (0, "")
            scene.until(replicas)
        output = scene.kubectl("get", "analyticspipeline", "orders", "--subresource=scale", "-o", "jsonpath={.status}")
        refused = scene.scale("analyticspipeline/orders", PARTITIONS + 1)
        assert (refused.returncode, "more replicas than source.topic.partitions" in refused.stderr) == (1, True)
        scene.wait_for_applies()
    assert '"replicas":2' in output.stdout, output
    assert "selector" in output.stdout
    assert scene.replica_counts == [1, 3, 2]
    assert scene.writes == 2
    assert scene.cluster.get(scene.key)["spec"]["processor"]["replicas"] == 2
    assert "scaling" not in scene.status
