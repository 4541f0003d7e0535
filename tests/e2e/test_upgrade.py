"""The platform changes, or loses its API server, while a pipeline runs: what it has counted stays exact."""

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
    """The chart as a release before this one would be: an older version, whose resource shows one column less."""
    folder = tmp_path / "tidemill"
    shutil.copytree(CHARTS / "tidemill", folder)
    chart = yaml.safe_load((folder / "Chart.yaml").read_text())
    (folder / "Chart.yaml").write_text(yaml.safe_dump(chart | {"version": _PREVIOUS}))
    definition = yaml.safe_load((folder / "files/crd.yaml").read_text())
    definition["spec"]["versions"][0]["additionalPrinterColumns"].pop()
    (folder / "files/crd.yaml").write_text(yaml.safe_dump(definition))
    return folder


def columns(world: Any) -> list[str]:
    """What kubectl shows of a pipeline."""
    version = world.json("get", "customresourcedefinition", "analyticspipelines.tidemill.dev")["spec"]["versions"][0]
    return [column["name"] for column in version["additionalPrinterColumns"]]


def settled(world: Any, shop: Any) -> bool:
    """Whether the pipeline is ready and all its Deployments are rolled out."""
    namespace = shop.platform.namespace
    for item in world.json("get", "deployments", "--namespace", namespace)["items"]:
        status, wanted = item["status"], item["spec"]["replicas"]
        counts = [status.get(name, 0) for name in ("replicas", "updatedReplicas", "readyReplicas")]
        if status.get("observedGeneration") != item["metadata"]["generation"] or counts != [wanted] * 3:
            return False
    conditions = world.get("analyticspipeline", "orders", namespace)["status"]["conditions"]
    return {c["type"]: c["status"] for c in conditions if c["status"] == "True"}.keys() >= {"Ready", "ProcessorsReady"}


def level(world: Any, shop: Any) -> set[str]:
    """The level of logs that the pods of a pipeline are told."""
    containers = [pod["spec"]["containers"][0] for pod in world.pods(shop.platform.namespace)]
    return {e["value"] for c in containers for e in c["env"] if e["name"] == "TIDEMILL_LOG_LEVEL"}


@pytest.mark.fault("operator-upgraded", "old resources go on; all events are counted once")
def test_from_the_previous_version_under_load(
    world: Any, shop: Any, previous_chart: Path, eventually: Callable[..., Any], some_orders: Callable[..., Any]
) -> None:
    """`helm upgrade` with changed values brings the CRD, the operator and then all pods up to date."""
    wanted = columns(world)
    world.helm.install_operator("operator.logLevel=DEBUG", chart=previous_chart)
    assert columns(world) == wanted[:-1]
    eventually(
        lambda: level(world, shop) == {"DEBUG"} and settled(world, shop),
        what="it runs with the previous version",
        seconds=300.0,
    )
    with shop.load(some_orders(_EVENTS, after=shop.number), seconds=20.0):
        begun = time.monotonic()
        world.helm.install_operator()
        eventually(lambda: level(world, shop) == {"INFO"}, what="the pods have the new values", seconds=300.0)
        eventually(lambda: settled(world, shop), what="all is rolled out", seconds=300.0)
        world.figures["helm upgrade until all pods are replaced"] = f"{time.monotonic() - begun:.0f} s"
    shop.check()
    assert columns(world) == wanted


@pytest.mark.fault("operator-killed", "the other leads; what was asked for is done")
def test_the_operator_is_killed_while_it_works(
    world: Any, shop: Any, eventually: Callable[..., Any], some_orders: Callable[..., Any]
) -> None:
    """One of two operators goes; what was asked for meanwhile is done."""
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
        eventually(lambda: _replicas(world, shop) == 3 and settled(world, shop), what="it is done", seconds=300.0)
        world.figures["a change is done though its leader is killed after"] = f"{time.monotonic() - begun:.0f} s"
    shop.check()
    world.kubectl("scale", "analyticspipeline/orders", "--replicas=2", "--namespace", namespace)
    eventually(lambda: _replicas(world, shop) == 2 and settled(world, shop), what="it is as before", seconds=300.0)


def _replicas(world: Any, shop: Any) -> int:
    return int(world.get("deployment", "orders-processor", shop.platform.namespace)["spec"]["replicas"])


@pytest.mark.fault("apiserver-killed", "events flow on; what is asked for is done within 2 min")
def test_the_api_server_is_killed_under_load(
    world: Any, shop: Any, eventually: Callable[..., Any], some_orders: Callable[..., Any]
) -> None:
    """Events flow on without it; once it is back, what is asked for is done within two minutes."""
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
            lambda: _replicas(world, shop) == 1 and settled(world, shop), what="it is done", seconds=_RECOVERY_SECONDS
        )
        world.figures["a change is done after the API server is back in"] = f"{time.monotonic() - begun:.1f} s"
    shop.check()
    world.kubectl("scale", "analyticspipeline/orders", "--replicas=2", "--namespace", namespace)
    eventually(lambda: _replicas(world, shop) == 2 and settled(world, shop), what="it is as before", seconds=300.0)
