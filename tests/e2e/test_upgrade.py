"""Tests of a running pipeline while Tidemill is upgraded, or the operator or the API server is killed."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from demo.cluster import OPERATOR_NAMESPACE
from demo.installation import CHARTS, CLUSTER
from kube.local.layout import DEFAULT_FOLDER

pytestmark = [pytest.mark.e2e, pytest.mark.kubernetes, pytest.mark.slow]

_EVENTS = 20_000
_RECOVERY_SECONDS = 120.0
_PREVIOUS = "0.0.9"


@pytest.fixture
def previous_chart(tmp_path: Path) -> Path:
    """Return a copy of the chart with an older version, whose CRD has one printer column less."""
    folder = tmp_path / "tidemill"
    shutil.copytree(CHARTS / "tidemill", folder)
    chart = yaml.safe_load((folder / "Chart.yaml").read_text())
    (folder / "Chart.yaml").write_text(yaml.safe_dump(chart | {"version": _PREVIOUS}))
    definition = yaml.safe_load((folder / "files/crd.yaml").read_text())
    definition["spec"]["versions"][0]["additionalPrinterColumns"].pop()
    (folder / "files/crd.yaml").write_text(yaml.safe_dump(definition))
    return folder


def columns(world: Any) -> list[str]:
    """Return the printer columns of a pipeline."""
    version = world.json("get", "customresourcedefinition", "analyticspipelines.tidemill.dev")["spec"]["versions"][0]
    return [column["name"] for column in version["additionalPrinterColumns"]]


def settled(world: Any, shop: Any) -> bool:
    """Return whether the pipeline is ready and all its Deployments are rolled out."""
    namespace = shop.platform.namespace
    for item in world.json("get", "deployments", "--namespace", namespace)["items"]:
        status, replicas = item["status"], item["spec"]["replicas"]
        counts = [status.get(name, 0) for name in ("replicas", "updatedReplicas", "readyReplicas")]
        if status.get("observedGeneration") != item["metadata"]["generation"] or counts != [replicas] * 3:
            return False
    conditions = world.get("analyticspipeline", "orders", namespace)["status"]["conditions"]
    return {c["type"]: c["status"] for c in conditions if c["status"] == "True"}.keys() >= {"Ready", "ProcessorsReady"}


def log_levels(world: Any, shop: Any) -> set[str]:
    """Return the log levels in the environment of a pipeline's pods."""
    containers = [pod["spec"]["containers"][0] for pod in world.pods(shop.platform.namespace)]
    return {e["value"] for c in containers for e in c["env"] if e["name"] == "TIDEMILL_LOG_LEVEL"}


@pytest.mark.fault("operator-upgraded", "old resources go on; all events are counted once")
def test_an_upgrade_under_load_loses_and_repeats_no_event(
    world: Any, shop: Any, previous_chart: Path, eventually: Callable[..., Any], some_orders: Callable[..., Any]
) -> None:
    """`helm upgrade` with changed values updates the CRD, the operator and then all pods."""
    expected = columns(world)
    world.helm.install_operator("operator.logLevel=DEBUG", chart=previous_chart)
    assert columns(world) == expected[:-1]
    eventually(
        lambda: log_levels(world, shop) == {"DEBUG"} and settled(world, shop),
        what="the pipeline runs with the previous version",
        seconds=300.0,
    )
    with shop.load(some_orders(_EVENTS, after=shop.number), seconds=20.0):
        begun = time.monotonic()
        world.helm.install_operator()
        eventually(lambda: log_levels(world, shop) == {"INFO"}, what="the pods have the new values", seconds=300.0)
        eventually(lambda: settled(world, shop), what="all Deployments are rolled out", seconds=300.0)
        world.figures["helm upgrade until all pods are replaced"] = f"{time.monotonic() - begun:.0f} s"
    shop.check()
    assert columns(world) == expected


@pytest.mark.fault("operator-killed", "the other leads; what was asked for is done")
def test_a_requested_change_is_made_after_the_leading_operator_is_killed(
    world: Any, shop: Any, eventually: Callable[..., Any], some_orders: Callable[..., Any]
) -> None:
    """The other operator makes the change under load. All events count once."""
    namespace = shop.platform.namespace
    holder = world.get("lease", "tidemill", OPERATOR_NAMESPACE)["spec"]["holderIdentity"]
    with shop.load(some_orders(_EVENTS, after=shop.number)):
        begun = time.monotonic()
        world.kubectl("scale", "analyticspipeline/orders", "--replicas=3", "--namespace", namespace)
        pod = next(
            name
            for name in world.kubectl("get", "pods", "--namespace", OPERATOR_NAMESPACE, "--output", "name").split()
            if name.removeprefix("pod/") in holder
        )
        world.kubectl("delete", pod, "--namespace", OPERATOR_NAMESPACE, "--force", "--grace-period=0")
        eventually(
            lambda: _replicas(world, shop) == 3 and settled(world, shop),
            what="there are three processors",
            seconds=300.0,
        )
        world.figures["a change is done though its leader is killed after"] = f"{time.monotonic() - begun:.0f} s"
    shop.check()
    world.kubectl("scale", "analyticspipeline/orders", "--replicas=2", "--namespace", namespace)
    eventually(
        lambda: _replicas(world, shop) == 2 and settled(world, shop),
        what="there are two processors again",
        seconds=300.0,
    )


def _replicas(world: Any, shop: Any) -> int:
    return int(world.get("deployment", "orders-processor", shop.platform.namespace)["spec"]["replicas"])


@pytest.mark.fault("apiserver-killed", "events flow on; what is asked for is done within 2 min")
def test_events_count_while_the_api_server_is_killed(
    world: Any, shop: Any, eventually: Callable[..., Any], some_orders: Callable[..., Any]
) -> None:
    """After the API server's restart, a requested change is made within two minutes."""
    if not world.local:
        pytest.skip("the API server is a process of this machine with the provider `local` alone")
    record = json.loads((DEFAULT_FOLDER / "run" / "kube-apiserver.pid").read_text())
    namespace = shop.platform.namespace
    with shop.load(some_orders(_EVENTS, after=shop.number)):
        os.kill(record["pid"], signal.SIGKILL)
        time.sleep(5.0)
        done = subprocess.run([CLUSTER, "up", "--provider=local"], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        begun = time.monotonic()
        world.kubectl("scale", "analyticspipeline/orders", "--replicas=1", "--namespace", namespace)
        eventually(
            lambda: _replicas(world, shop) == 1 and settled(world, shop),
            what="there is one processor",
            seconds=_RECOVERY_SECONDS,
        )
        world.figures["a change is done after the API server is back in"] = f"{time.monotonic() - begun:.1f} s"
    shop.check()
    world.kubectl("scale", "analyticspipeline/orders", "--replicas=2", "--namespace", namespace)
    eventually(
        lambda: _replicas(world, shop) == 2 and settled(world, shop),
        what="there are two processors again",
        seconds=300.0,
    )
