"""Tests of the control plane that `hack/kube` starts: a real API server with the CRD, without nodes."""

from __future__ import annotations

import json
import secrets
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from kube import binaries
from kube.controlplane import ControlPlane
from tidemill_operator.processes.child import start_time
from waiting import eventually

ROOT = Path(__file__).resolve().parents[2]
CRD = ROOT / "crds" / "analyticspipelines.yaml"
EXAMPLES = sorted((ROOT / "crds" / "examples").rglob("*.yaml"))
_DEADLINE_SECONDS = 60.0

pytestmark = pytest.mark.kubernetes


def kubectl(plane: ControlPlane, *arguments: str, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
    command = [str(binaries.FOLDER / "kubectl"), "--kubeconfig", str(plane.kubeconfig), *arguments]
    return subprocess.run(command, input=stdin, capture_output=True, text=True, check=False)


def succeed(plane: ControlPlane, *arguments: str, stdin: str | None = None) -> str:
    done = kubectl(plane, *arguments, stdin=stdin)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def plane(control_plane: ControlPlane) -> ControlPlane:
    """Return the control plane with the CRD installed."""
    succeed(control_plane, "apply", "--server-side", "--force-conflicts", "-f", str(CRD))
    succeed(control_plane, "wait", "--for=condition=Established", "--timeout=60s", f"-f={CRD}")
    return control_plane


@pytest.fixture
def namespace(plane: ControlPlane) -> str:
    """Create a namespace for the test and return its name."""
    name = f"test-{secrets.token_hex(4)}"
    succeed(plane, "create", "namespace", name)
    return name


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_examples_are_stored_with_every_field(plane: ControlPlane, namespace: str, example: Path) -> None:
    """The API server accepts each example with strict validation and prunes no field."""
    document = yaml.safe_load(example.read_text())
    document["metadata"]["namespace"] = namespace
    succeed(plane, "create", "--validate=strict", "-f", "-", stdin=json.dumps(document))
    got = json.loads(
        succeed(plane, "get", "-n", namespace, "analyticspipelines", document["metadata"]["name"], "-o", "json")
    )
    assert _missing(document["spec"], got["spec"]) == []


def _missing(sent: object, got: object, path: str = "spec") -> list[str]:
    if isinstance(sent, dict) and isinstance(got, dict):
        return [fault for name, value in sent.items() for fault in _missing(value, got.get(name), f"{path}.{name}")]
    if isinstance(sent, list) and isinstance(got, list) and len(sent) == len(got):
        pairs = enumerate(zip(sent, got, strict=True))
        return [fault for n, (left, right) in pairs for fault in _missing(left, right, f"{path}[{n}]")]
    return [] if sent == got else [f"{path}: sent {sent!r}, got {got!r}"]


def test_a_window_without_a_size_is_refused(plane: ControlPlane, namespace: str) -> None:
    document = yaml.safe_load(EXAMPLES[0].read_text())
    document["metadata"]["namespace"] = namespace
    del document["spec"]["aggregations"][0]["window"]["size"]
    done = kubectl(plane, "create", "-f", "-", stdin=json.dumps(document))
    assert done.returncode != 0
    assert "spec.aggregations[0].window" in done.stderr


def test_controllers_manage_accounts_pods_and_namespaces(plane: ControlPlane, namespace: str) -> None:
    """A namespace gets its service account, a Deployment gets its pods, and a deleted namespace disappears."""
    succeed(plane, "wait", "-n", namespace, "--for=create", "--timeout=60s", "serviceaccount/default")
    succeed(plane, "create", "-n", namespace, "deployment", "web", "--image=none")
    succeed(plane, "wait", "-n", namespace, "--for=create", "--timeout=60s", "pod", "-l", "app=web")
    succeed(plane, "delete", "namespace", namespace, "--timeout=60s")
    assert kubectl(plane, "get", "namespace", namespace).returncode != 0


def test_data_survives_a_restart_of_the_api_server(plane: ControlPlane, namespace: str) -> None:
    """A stopped API server does not answer. A restarted one has the same address and the same data."""
    succeed(plane, "create", "-n", namespace, "configmap", "kept", "--from-literal=a=1")
    plane.stop_apiserver()
    assert kubectl(plane, "get", "namespaces", "--request-timeout=5s").returncode != 0
    plane.start_apiserver()
    assert succeed(plane, "get", "-n", namespace, "configmap", "kept", "-o", "jsonpath={.data.a}") == "1"


_PARENT = """
import os, pathlib, signal, sys
from kube.controlplane import ControlPlane
folder = pathlib.Path(sys.argv[1])
plane = ControlPlane(folder)
plane.start()
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_control_plane_ends_when_its_parent_is_killed(tmp_path: Path) -> None:
    """A killed test session leaves no process behind."""
    if binaries.find() is None:
        pytest.skip(binaries.NOT_BUILT)
    parent = subprocess.run(
        [sys.executable, "-c", _PARENT, str(tmp_path)], env={"PYTHONPATH": str(ROOT / "hack")}, check=False
    )
    assert parent.returncode == -9
    records = [json.loads(path.read_text()) for path in (tmp_path / "run").glob("*.pid")]
    assert len(records) == 2
    eventually(
        lambda: not any(start_time(record["pid"]) == record["started"] for record in records),
        what="both processes have ended",
        seconds=_DEADLINE_SECONDS,
    )
