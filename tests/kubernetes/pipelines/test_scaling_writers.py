"""Several that would set replicas at once: each number is written once, by the one whose business it is.

The operator runs as a process. A Deployment's generation grows with every write that changes its spec, so it counts
them all; the operator's decisions are counted by their Events.
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
    """A pipeline whose operator runs, and what others do to it."""

    cluster: Any
    key: Key
    eventually: Any
    applied: int = 0
    began: int = 0
    seen: list[int] = field(default_factory=list)

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
        """To the Deployment's spec, since the scene began."""
        return int(self.deployment["metadata"]["generation"]) - self.began

    @property
    def decisions(self) -> list[tuple[int, int]]:
        """Before and after, as Events tell them, the lowest first."""
        events = self.cluster.api.list(EVENT, self.key.namespace)
        told = [_CHANGE.match(event["message"]) for event in events]
        return sorted((int(found[1]), int(found[2])) for found in told if found)

    def kubectl(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [str(binaries.FOLDER / "kubectl"), "--kubeconfig", str(self.cluster.plane.kubeconfig)]
        return subprocess.run(
            [*command, "--namespace", self.key.namespace, *arguments], capture_output=True, text=True, check=False
        )

    def scale(self, what: str, replicas: int) -> subprocess.CompletedProcess[str]:
        """`kubectl scale`: a write to the scale subresource, as an HPA does it."""
        return self.kubectl("scale", what, f"--replicas={replicas}")

    def until(self, replicas: int, *, ready: bool = True) -> None:
        """Until so many are asked for, run and are told."""

        def there() -> bool:
            found = self.deployment
            asked, runs = found["spec"]["replicas"], found["status"].get("readyReplicas", 0)
            return asked == replicas and (not ready or (runs == replicas and self.status.get("replicas") == replicas))

        self.eventually(there, seconds=120.0, what=f"{replicas} replicas, {self.status.get('scaling')}")

    def goes_on(self) -> None:
        """Until the others have been at it for a while, longer than between two polls of the operator."""
        until = self.applied + 4
        self.eventually(lambda: self.applied >= until, seconds=60.0, what="the resource is applied again")

    @contextmanager
    def others(self) -> Iterator[None]:
        """Meanwhile a GitOps tool applies the resource again and again, and replicas are watched."""
        document = self.cluster.get(self.key)
        metadata = {name: document["metadata"][name] for name in ("name", "namespace")}
        again = {**{name: document[name] for name in ("apiVersion", "kind", "spec")}, "metadata": metadata}
        again["spec"] = {**again["spec"], "processor": dict(again["spec"]["processor"])}
        del again["spec"]["processor"]["replicas"]  # a default; the manifest does not name it
        stopping = threading.Event()

        def apply() -> None:
            while not stopping.wait(_RE_APPLY_SECONDS):
                self.cluster.api.apply(again, manager="gitops")
                self.applied += 1

        def watch() -> None:
            while not stopping.wait(0.05):
                try:
                    replicas = self.replicas
                except TidemillError:
                    continue
                if self.seen[-1:] != [replicas]:
                    self.seen.append(replicas)

        self.began = int(self.deployment["metadata"]["generation"])
        threads = [threading.Thread(target=one) for one in (apply, watch)]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            stopping.set()
            for thread in threads:
                thread.join()


@pytest.fixture
def scene(cluster: Any, start_operator: Any, namespace: str, make: Any, eventually: Any) -> Callable[..., Scene]:
    """A pipeline that is ready: `scene(scaling={…})`."""

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


def test_decisions_are_the_only_writes(scene: Any, loaded: Any) -> None:
    """Under a GitOps tool that applies twice a second, and `kubectl scale` on the resource, which is refused."""
    found = scene(scaling=SCALING)
    load = loaded(found.key)
    with found.others():
        refused = found.scale("analyticspipeline/orders", 2)
        assert refused.returncode == 1
        assert (
            "replicas cannot change while scaling is set; set replicas to 1 and change scaling, or remove scaling first"
            in refused.stderr
        )
        load.send(150)
        found.until(4)
        assert found.scale("analyticspipeline/orders", 2).returncode == 1
        found.goes_on()
        assert found.replicas == 4
        load.work_off()
        found.until(1)
        found.goes_on()
    assert found.applied >= 10
    assert found.seen[0] == found.seen[-1] == 1
    assert found.writes == len(found.decisions) == len(found.seen) - 1
    assert found.decisions == sorted(pairwise(found.seen))
    assert max(found.seen) == 4
    assert found.seen.index(4) == 2, "two steps of two and one"
    assert found.status["scaling"]["current"] == 1


@pytest.mark.matrix
def test_what_others_write_to_the_deployment_is_taken_back_once_each(scene: Any, loaded: Any) -> None:
    """By `kubectl scale`, or an HPA that was left on it: neither a decision, nor the begin of one."""
    found = scene(scaling={**SCALING, "minReplicas": 2})
    loaded(found.key)
    found.until(2)
    # Until something is decided, what runs counts.
    found.eventually(lambda: found.status.get("scaling", {}).get("desired") == 2, what="it is decided on")
    before = found.decisions
    with found.others():
        for replicas in (4, 1, 3):
            assert found.scale("deployment/orders-processor", replicas).returncode == 0
            found.until(2)
            found.goes_on()
    assert found.writes == 2 * 3, "theirs, and one for each of them"
    assert found.decisions == before
    assert found.status["scaling"]["current"] == found.status["scaling"]["desired"] == 2


def test_an_hpa_has_the_deployment_to_itself(scene: Any, loaded: Any) -> None:
    """With `mode: external` the operator writes no replicas, at a new spec either, and tells what runs."""
    found = scene(scaling={"mode": "external"})
    loaded(found.key)
    with found.others():
        for replicas in (3, 4, 2):
            assert found.scale("deployment/orders-processor", replicas).returncode == 0
            found.until(replicas)
        refused = found.scale("analyticspipeline/orders", 3)
        assert (refused.returncode, "while scaling is set" in refused.stderr) == (1, True)
        found.goes_on()
    assert found.seen == [1, 3, 4, 2]
    assert found.writes == 3, "the HPA's"
    assert found.decisions == []
    told = found.eventually(
        lambda: told if (told := found.status.get("scaling", {})).get("current") == 2 else None, what="it is told"
    )
    assert (told["mode"], told["reason"], told["desired"]) == ("external", "External", 2)
    found.cluster.patch(found.key, spec={"processor": {"flushInterval": "700ms"}})
    found.eventually(lambda: found.writes > 3, what="the new spec is rolled out")
    found.until(2)
    assert found.writes == 4
    assert found.seen[-1] == 2


@pytest.mark.matrix
def test_without_scaling_the_resources_own_number_counts(scene: Any, loaded: Any) -> None:
    """`kubectl scale` and an HPA set it; a manifest that does not name replicas leaves it alone."""
    found = scene()
    loaded(found.key)
    with found.others():
        for replicas in (3, 2):
            done = found.scale("analyticspipeline/orders", replicas)
            assert (done.returncode, done.stderr) == (0, "")
            found.until(replicas)
        asked = found.kubectl("get", "analyticspipeline", "orders", "--subresource=scale", "-o", "jsonpath={.status}")
        more = found.scale("analyticspipeline/orders", PARTITIONS + 1)
        assert (more.returncode, "more replicas than source.topic.partitions" in more.stderr) == (1, True)
        found.goes_on()
    assert '"replicas":2' in asked.stdout, asked
    assert "selector" in asked.stdout
    assert found.seen == [1, 3, 2]
    assert found.writes == 2
    assert found.cluster.get(found.key)["spec"]["processor"]["replicas"] == 2
    assert "scaling" not in found.status
