"""Tests of faults in a cluster with real pods: servers that hang, a drained node, and a missing operator."""

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
_NAMED_SECONDS, _READY_SECONDS = 30.0, 10.0
# A busy machine answers late. The test waits longer by this factor, and records the time.
_PATIENCE = 4.0


def pipeline(world: Any, shop: Any) -> dict[str, Any]:
    """Return the current resource."""
    return dict(world.get("analyticspipeline", "orders", shop.platform.namespace))


def ready(world: Any, shop: Any) -> tuple[str, str]:
    """Return the status and the message of the condition Ready."""
    conditions = pipeline(world, shop)["status"]["conditions"]
    condition = next(condition for condition in conditions if condition["type"] == "Ready")
    return str(condition["status"]), str(condition["message"])


def restarts(world: Any, shop: Any) -> dict[str, int]:
    """Return the number of restarts of each pod of the pipeline, by name."""
    return {
        pod["metadata"]["name"]: sum(container["restartCount"] for container in pod["status"]["containerStatuses"])
        for pod in world.pods(shop.platform.namespace)
    }


def server_pods(world: Any, server: str) -> list[dict[str, Any]]:
    """Return the pods of Kafka, Postgres or Redis."""
    pods = world.json("get", "pods", "--namespace", OPERATOR_NAMESPACE)["items"]
    return [pod for pod in pods if pod["metadata"]["name"].startswith(f"dev-stack-{server}-")]


def seconds_until(eventually: Callable[..., Any], check: Callable[[], Any], *, limit: float, what: str) -> float:
    """Return the seconds until `check` is true."""
    begun = time.monotonic()
    eventually(check, seconds=limit * _PATIENCE, what=what)
    return time.monotonic() - begun


@pytest.mark.parametrize(
    ("server", "expected_name"),
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
def test_a_server_that_hangs_under_load_loses_no_event_and_restarts_no_pod(
    server: str,
    expected_name: str,
    world: Any,
    shop: Any,
    eventually: Callable[..., Any],
    some_orders: Callable[..., Any],
    record_property: Callable[[str, object], None],
) -> None:
    """Ready is false, and names the server. It stays true without Redis, which pipelines do not need."""
    if not world.local:
        pytest.skip("the servers' processes are this machine's with the provider `local` alone")
    eventually(lambda: ready(world, shop)[0] == "True", what="the pipeline is ready", seconds=300.0)
    before = restarts(world, shop)
    with shop.load(some_orders(_EVENTS, after=shop.number), seconds=_FROZEN_SECONDS):
        with frozen(server_pods(world, server)):
            began = time.monotonic()
            if expected_name:
                seconds = seconds_until(
                    eventually,
                    lambda: _names(ready(world, shop), expected_name),
                    limit=_NAMED_SECONDS,
                    what=f"{expected_name} is named",
                )
                record_property("told", f"{seconds:.0f}")
            time.sleep(max(0.0, _FROZEN_SECONDS - (time.monotonic() - began)))
            if not expected_name:
                assert ready(world, shop)[0] == "True"
        seconds = seconds_until(
            eventually, lambda: ready(world, shop)[0] == "True", limit=_READY_SECONDS * 2, what="Ready is true again"
        )
        record_property("recovered", f"{seconds:.0f}")
    shop.check()
    assert restarts(world, shop) == before


def _names(condition: tuple[str, str], server: str) -> bool:
    status, message = condition
    return status == "False" and server in message


@pytest.mark.fault("node-drained", "one pod at a time is evicted; the other processor counts on; Ready stays true")
def test_a_drain_under_load_evicts_only_one_of_two_processors(
    world: Any,
    shop: Any,
    eventually: Callable[..., Any],
    some_orders: Callable[..., Any],
    record_property: Callable[[str, object], None],
) -> None:
    """The PodDisruptionBudget keeps the other processor until the first is ready again. Ready stays true."""
    namespace = shop.platform.namespace
    before = {pod["metadata"]["name"] for pod in world.pods(namespace, "processor")}
    nodes = world.kubectl("get", "nodes", "--output", "jsonpath={.items[*].metadata.name}").split()
    if len(nodes) != 1:
        pytest.skip("several nodes: an evicted pod starts on another node")
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
            running = {
                pod["metadata"]["name"]
                for pod in world.pods(namespace, "processor")
                if pod["status"]["phase"] == "Running"
            }
            record_property("evicted", len(before - running))
            assert len(before & running) == 1
            assert ready(world, shop)[0] == "True"
        finally:
            world.kubectl("uncordon", nodes[0])
        eventually(lambda: _running(world, namespace) == 2, what="both processors run again", seconds=300.0)
    shop.check()


def _running(world: Any, namespace: str) -> int:
    deployment = world.get("deployment", "orders-processor", namespace)
    return int(deployment["status"].get("readyReplicas", 0))


@pytest.mark.fault("operator-at-zero", "events are counted; no old figures; it repairs once it is back")
def test_pipelines_without_an_operator_count_all_events(
    world: Any,
    shop: Any,
    eventually: Callable[..., Any],
    some_orders: Callable[..., Any],
    record_property: Callable[[str, object], None],
) -> None:
    """The status has no figures without an operator. A new operator creates a Service again that was deleted."""
    namespace = shop.platform.namespace
    deployment = world.get("deployment", "tidemill", OPERATOR_NAMESPACE)
    replicas = deployment["spec"]["replicas"]
    eventually(lambda: "lag" in pipeline(world, shop)["status"], what="the status has figures")
    with shop.load(some_orders(_EVENTS, after=shop.number)):
        world.scale_operator(0)
        eventually(lambda: not _operators(world), what="no operator runs", seconds=120.0)
        shown = pipeline(world, shop)["status"]
        assert not {"lag", "freshness", "figuresAt"} & shown.keys()
        world.kubectl("delete", "service", "orders-api", "--namespace", namespace)
        begun = time.monotonic()
        world.scale_operator(replicas)
        eventually(
            lambda: world.get("service", "orders-api", namespace), what="the Service exists again", seconds=240.0
        )
        record_property("repaired", f"{time.monotonic() - begun:.0f} s after the operator was asked for")
        eventually(lambda: "lag" in pipeline(world, shop)["status"], what="the status has figures again")
    shop.platform.leave()
    shop.platform.reach()
    shop.check()


def _operators(world: Any) -> list[Any]:
    selector = "app.kubernetes.io/name=tidemill-operator"
    return list(world.json("get", "pods", "--namespace", OPERATOR_NAMESPACE, "--selector", selector)["items"])
