"""Tests of a running pipeline whose Deployments are edited, scaled and restarted, and whose pods are killed."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable
from typing import Any

import pytest

from pod_processes import pids
from running.hanging import send_signal

pytestmark = [pytest.mark.e2e, pytest.mark.kubernetes, pytest.mark.slow]

PROCESSOR = "orders-processor"
# helm/ci sets 15 s between the passes of a settled pipeline. The limit is higher for busy machines.
_DRIFT_SECONDS = 90.0
_EVENTS = 15_000


def deployment(world: Any, shop: Any) -> dict[str, Any]:
    """Return the processors' Deployment; an empty dictionary if it does not exist."""
    return dict(world.get("deployment", PROCESSOR, shop.platform.namespace))


def rolled_out(world: Any, shop: Any, generation: int = 0) -> bool:
    """Return whether the Deployment is newer than `generation`, and all its processors are ready and updated."""
    current = deployment(world, shop)
    status, replicas = current.get("status", {}), current.get("spec", {}).get("replicas")
    return bool(
        current
        and current["metadata"]["generation"] > generation
        and status.get("observedGeneration") == current["metadata"]["generation"]
        and status.get("updatedReplicas") == status.get("readyReplicas") == status.get("replicas") == replicas
    )


@pytest.mark.fault("child-deleted-in-cluster", "back within the drift interval")
def test_the_operator_creates_a_deleted_deployment_again(world: Any, shop: Any, eventually: Callable[..., Any]) -> None:
    before = deployment(world, shop)["metadata"]["uid"]
    begun = time.monotonic()
    world.kubectl("delete", "deployment", PROCESSOR, "--namespace", shop.platform.namespace)

    def created_again() -> bool:
        return deployment(world, shop).get("metadata", {"uid": before})["uid"] != before

    eventually(created_again, what="there is a new Deployment", seconds=_DRIFT_SECONDS)
    world.figures["a deleted Deployment is back after"] = f"{time.monotonic() - begun:.1f} s"
    eventually(lambda: rolled_out(world, shop), what="the pods of the Deployment are ready", seconds=300.0)


@pytest.mark.parametrize("edit", ["replicas", "container", "env"])
@pytest.mark.fault("child-edited-in-cluster", "taken back within the drift interval")
def test_the_operator_reverts_an_edited_deployment(
    edit: str, world: Any, shop: Any, eventually: Callable[..., Any]
) -> None:
    """The operator restores changed members, and removes added members."""
    before = deployment(world, shop)["spec"]
    container = before["template"]["spec"]["containers"][0]
    sidecar = {**container, "name": "sidecar", "command": ["sleep", "1000"], "ports": []}
    for member in ("livenessProbe", "readinessProbe", "startupProbe"):
        sidecar.pop(member, None)
    added = {"name": container["name"], "env": [{"name": "SOMEBODY", "value": "else"}]}
    specs: dict[str, dict[str, Any]] = {
        "replicas": {"replicas": 3},
        "container": {"template": {"spec": {"containers": [sidecar]}}},
        "env": {"template": {"spec": {"containers": [added]}}},
    }
    begun = time.monotonic()
    patch = json.dumps({"spec": specs[edit]})
    world.kubectl("patch", "deployment", PROCESSOR, "--namespace", shop.platform.namespace, "--patch", patch)

    def as_before() -> bool:
        spec = deployment(world, shop).get("spec", {"template": {"spec": {}}})
        same = spec["template"]["spec"].get("containers") == before["template"]["spec"]["containers"]
        return bool(same and spec["replicas"] == before["replicas"])

    eventually(as_before, what="the Deployment is as before the edit", seconds=_DRIFT_SECONDS)
    world.figures[f"an edit ({edit}) is taken back after"] = f"{time.monotonic() - begun:.1f} s"
    eventually(lambda: rolled_out(world, shop), what="the pods of the Deployment are ready", seconds=300.0)


def test_kubectl_scale_changes_the_spec_and_the_processors_under_load(
    world: Any, shop: Any, eventually: Callable[..., Any], some_orders: Callable[..., Any]
) -> None:
    namespace = shop.platform.namespace

    def scale(replicas: int) -> None:
        world.kubectl("scale", "analyticspipeline/orders", f"--replicas={replicas}", "--namespace", namespace)
        eventually(
            lambda: rolled_out(world, shop) and deployment(world, shop)["spec"]["replicas"] == replicas,
            what=f"{replicas} processors run",
            seconds=300.0,
        )
        eventually(
            lambda: world.get("analyticspipeline", "orders", namespace)["status"]["replicas"] == replicas,
            what=f"the status has {replicas} replicas",
        )

    with shop.load(some_orders(_EVENTS, after=shop.number)):
        scale(3)
        scale(1)
        scale(2)
    shop.check()
    selector = world.get("analyticspipeline", "orders", namespace)["status"]["selector"]
    pods = world.json("get", "pods", "--namespace", namespace, "--selector", selector)["items"]
    assert {pod["metadata"]["labels"]["app.kubernetes.io/component"] for pod in pods} == {"processor"}


def test_a_changed_spec_is_rolled_out_under_load(
    world: Any, shop: Any, eventually: Callable[..., Any], some_orders: Callable[..., Any]
) -> None:
    generation = deployment(world, shop)["metadata"]["generation"]
    with shop.load(some_orders(_EVENTS, after=shop.number)):
        shop.platform.document["spec"]["processor"] = {
            "flushInterval": "100ms",
            "replicas": 2,
            "resources": {"requests": {"cpu": "20m"}},
        }
        shop.platform.apply()
        eventually(lambda: rolled_out(world, shop, generation), what="the new spec is rolled out", seconds=300.0)
    shop.check()


@pytest.mark.matrix
@pytest.mark.fault("rollout-restart", "all events are counted once")
def test_a_rollout_restart_under_load_loses_and_repeats_no_event(
    world: Any, shop: Any, eventually: Callable[..., Any], some_orders: Callable[..., Any]
) -> None:
    """`kubectl rollout restart` restarts processors, ingest and API. The operator does not revert the restart."""
    namespace = shop.platform.namespace
    with shop.load(some_orders(_EVENTS, after=shop.number)):
        for name in (PROCESSOR, "tidemill-ingest", "tidemill-api"):
            world.kubectl("rollout", "restart", f"deployment/{name}", "--namespace", namespace)
        for name in (PROCESSOR, "tidemill-ingest", "tidemill-api"):
            world.kubectl("rollout", "status", f"deployment/{name}", "--namespace", namespace, "--timeout=300s")
    shop.check()


@pytest.mark.fault("processor-killed", "all events are counted once")
def test_killed_processors_under_load_lose_and_repeat_no_event(
    world: Any, shop: Any, eventually: Callable[..., Any], some_orders: Callable[..., Any]
) -> None:
    """With the provider `local`, the test first kills the processors' processes. Then it deletes a pod by force."""
    namespace = shop.platform.namespace
    killed = 0
    with shop.load(some_orders(_EVENTS, after=shop.number)):
        for pod in world.pods(namespace, "processor") if world.local else ():
            processes = pids(pod)
            send_signal(processes, signal.SIGKILL)
            killed += len(processes)
            time.sleep(1.0)
        if world.local:
            assert killed >= 2
            eventually(
                lambda: _restarts(world, namespace) >= 2,
                what="the kubelet has restarted both containers",
                seconds=180.0,
            )
        victim = world.pods(namespace, "processor")[0]["metadata"]["name"]
        world.kubectl("delete", "pod", victim, "--namespace", namespace, "--force", "--grace-period=0")
        eventually(lambda: rolled_out(world, shop), what="all processors run again", seconds=300.0)
    shop.check()


def _restarts(world: Any, namespace: str) -> int:
    statuses = [s for pod in world.pods(namespace, "processor") for s in pod["status"]["containerStatuses"]]
    return sum(status["restartCount"] for status in statuses)
