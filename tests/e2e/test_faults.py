"""Faults of a cluster with real pods: servers that hang, a node that is drained, no operator."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest

from demo.cluster import OPERATOR_NAMESPACE
from demo.runtime import DemoError
from pod_processes import frozen

pytestmark = [pytest.mark.e2e, pytest.mark.kubernetes, pytest.mark.slow, pytest.mark.matrix]

_EVENTS = 20_000
_FROZEN_SECONDS = 40.0
_TOLD_SECONDS, _WELL_SECONDS = 30.0, 10.0
# A machine that is busy with other things answers late; then the figure tells, and the test goes on.
_PATIENCE = 4.0


def pipeline(world: Any, shop: Any) -> dict[str, Any]:
    """The resource as it is now."""
    return dict(world.get("analyticspipeline", "orders", shop.platform.namespace))


def ready(world: Any, shop: Any) -> tuple[str, str]:
    """Status and message of the condition Ready."""
    conditions = pipeline(world, shop)["status"]["conditions"]
    found = next(condition for condition in conditions if condition["type"] == "Ready")
    return str(found["status"]), str(found["message"])


def restarts(world: Any, shop: Any) -> dict[str, int]:
    """Restarts of each of its pods, by name."""
    return {
        pod["metadata"]["name"]: sum(container["restartCount"] for container in pod["status"]["containerStatuses"])
        for pod in world.pods(shop.platform.namespace)
    }


def server_pods(world: Any, server: str) -> list[dict[str, Any]]:
    """Pods of Kafka, Postgres or Redis."""
    pods = world.json("get", "pods", "--namespace", OPERATOR_NAMESPACE)["items"]
    return [pod for pod in pods if pod["metadata"]["name"].startswith(f"dev-stack-{server}-")]


def seconds_until(eventually: Callable[..., Any], check: Callable[[], Any], *, most: float, what: str) -> float:
    """Seconds until it is so."""
    begun = time.monotonic()
    eventually(check, seconds=most * _PATIENCE, what=what)
    return time.monotonic() - begun


@pytest.mark.parametrize(
    ("server", "named"),
    [
        pytest.param(
            "postgres",
            "Postgres",
            marks=pytest.mark.fault("postgres-frozen-in-cluster", "Ready is false and names it; no pod is restarted"),
        ),
        pytest.param(
            "kafka",
            "Kafka",
            marks=pytest.mark.fault("kafka-frozen-in-cluster", "Ready is false and names it; no pod is restarted"),
        ),
        pytest.param(
            "redis",
            "",
            marks=pytest.mark.fault("redis-frozen-in-cluster", "degraded; all is counted; no pod is restarted"),
        ),
    ],
)
def test_a_server_hangs_under_load(
    server: str,
    named: str,
    world: Any,
    shop: Any,
    eventually: Callable[..., Any],
    some_orders: Callable[..., Any],
    record_property: Callable[[str, object], None],
) -> None:
    """Ready names the server that hangs, unless it can be done without; pods are not restarted for it."""
    if not world.local:
        pytest.skip("the servers' processes are this machine's with the provider `local` alone")
    eventually(lambda: ready(world, shop)[0] == "True", what="it is ready", seconds=300.0)
    before = restarts(world, shop)
    with shop.load(some_orders(_EVENTS, after=shop.number), seconds=_FROZEN_SECONDS):
        with frozen(server_pods(world, server)):
            began = time.monotonic()
            if named:
                told = seconds_until(
                    eventually, lambda: _names(ready(world, shop), named), most=_TOLD_SECONDS, what=f"{named} is named"
                )
                record_property("told", f"{told:.0f}")
            time.sleep(max(0.0, _FROZEN_SECONDS - (time.monotonic() - began)))
            if not named:
                assert ready(world, shop)[0] == "True"
        well = seconds_until(
            eventually, lambda: ready(world, shop)[0] == "True", most=_WELL_SECONDS * 2, what="it is ready again"
        )
        record_property("recovered", f"{well:.0f}")
    shop.check()
    assert restarts(world, shop) == before


def _names(condition: tuple[str, str], server: str) -> bool:
    status, message = condition
    return status == "False" and server in message


@pytest.mark.fault("node-drained", "one pod at a time is evicted; the other processor counts on; Ready stays true")
def test_the_node_is_drained_under_load(
    world: Any,
    shop: Any,
    eventually: Callable[..., Any],
    some_orders: Callable[..., Any],
    record_property: Callable[[str, object], None],
) -> None:
    """A drain of the only node evicts one of two processors; the budget keeps the other until that one is back."""
    namespace = shop.platform.namespace
    before = {pod["metadata"]["name"] for pod in world.pods(namespace, "processor")}
    nodes = world.kubectl("get", "nodes", "--output", "jsonpath={.items[*].metadata.name}").split()
    if len(nodes) != 1:
        pytest.skip("several nodes: what is evicted starts on another one")
    selector = "tidemill.dev/pipeline=orders,app.kubernetes.io/component=processor"
    with shop.load(some_orders(_EVENTS, after=shop.number)):
        try:
            with pytest.raises(DemoError, match=r"disruption budget|timeout|timed out"):
                world.kubectl(
                    "drain",
                    nodes[0],
                    f"--pod-selector={selector}",
                    "--ignore-daemonsets",
                    "--delete-emptydir-data",
                    "--timeout=40s",
                )
            left = {
                pod["metadata"]["name"]
                for pod in world.pods(namespace, "processor")
                if pod["status"]["phase"] == "Running"
            }
            record_property("evicted", len(before - left))
            assert len(before & left) == 1
            assert ready(world, shop)[0] == "True"
        finally:
            world.kubectl("uncordon", nodes[0])
        eventually(lambda: _running(world, namespace) == 2, what="both processors run again", seconds=300.0)
    shop.check()


def _running(world: Any, namespace: str) -> int:
    deployment = world.get("deployment", "orders-processor", namespace)
    return int(deployment["status"].get("readyReplicas", 0))


@pytest.mark.fault("operator-at-zero", "events are counted; no old figures; it repairs once it is back")
def test_there_is_no_operator_under_load(
    world: Any,
    shop: Any,
    eventually: Callable[..., Any],
    some_orders: Callable[..., Any],
    record_property: Callable[[str, object], None],
) -> None:
    """Figures disappear with the operator; pipelines run on; what was deleted meanwhile is repaired."""
    namespace = shop.platform.namespace
    deployment = world.get("deployment", "tidemill", OPERATOR_NAMESPACE)
    replicas = deployment["spec"]["replicas"]
    eventually(lambda: "lag" in pipeline(world, shop)["status"], what="there are figures")
    with shop.load(some_orders(_EVENTS, after=shop.number)):
        world.scale_operator(0)
        eventually(lambda: not _operators(world), what="no operator runs", seconds=120.0)
        shown = pipeline(world, shop)["status"]
        assert not {"lag", "freshness", "figuresAt"} & shown.keys()
        world.kubectl("delete", "service", "orders-api", "--namespace", namespace)
        begun = time.monotonic()
        world.scale_operator(replicas)
        eventually(lambda: world.get("service", "orders-api", namespace), what="it is repaired", seconds=240.0)
        record_property("repaired", f"{time.monotonic() - begun:.0f} s after the operator was asked for")
        eventually(lambda: "lag" in pipeline(world, shop)["status"], what="there are figures again")
    shop.platform.leave()
    shop.platform.reach()
    shop.check()


def _operators(world: Any) -> list[Any]:
    selector = "app.kubernetes.io/name=tidemill-operator"
    return list(world.json("get", "pods", "--namespace", OPERATOR_NAMESPACE, "--selector", selector)["items"])
