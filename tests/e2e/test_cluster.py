"""The cluster of this machine: pods under the strictest policy, names, services, logs, removal without a trace."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from kube import binaries
from kube.build import find_go
from kube.local import archive, network
from tidemill_operator.processes.ports import is_free
from waiting import eventually

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
IMAGE = "tidemill.local/probe:1"
NAMESPACE = "probe"
_DEADLINE_SECONDS = 60.0
_TRACES = (Path("/var/lib/kubelet"), Path("/var/lib/cni"), Path("/var/log/containers"), Path("/run/containerd/s"))

pytestmark = [pytest.mark.kubernetes, pytest.mark.slow]


@dataclass(frozen=True)
class Cluster:
    """`hack/cluster` with a folder of its own: what it starts is to outlive it."""

    folder: Path

    def run(self, action: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [str(ROOT / "hack" / "cluster"), action, "--provider=local", f"--dir={self.folder}", *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    def __call__(self, action: str, *arguments: str) -> str:
        done = self.run(action, *arguments)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def health(self) -> dict[str, str]:
        """Component → ok or BAD."""
        lines = self.run("status").stdout.splitlines()
        return {name: state for state, name, *_ in map(str.split, lines)}

    def records(self) -> dict[str, dict[str, Any]]:
        """Component → its process' record."""
        return {path.stem: json.loads(path.read_text()) for path in (self.folder / "run").glob("*.pid")}


class Kubectl:
    """kubectl in the namespace of these tests."""

    def __init__(self, cluster: Cluster) -> None:
        config = ["--kubeconfig", cluster("kubeconfig").strip(), "--namespace", NAMESPACE]
        self.command = [str(binaries.FOLDER / "kubectl"), *config]

    def run(self, *arguments: str, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
        return subprocess.run([*self.command, *arguments], input=stdin, capture_output=True, text=True, check=False)

    def __call__(self, *arguments: str, stdin: str | None = None) -> str:
        done = self.run(*arguments, stdin=stdin)
        assert done.returncode == 0, done.stderr
        return done.stdout


def pod_spec() -> dict[str, Any]:
    """A pod that the policy `restricted` takes."""
    container = {
        "name": "probe",
        "image": IMAGE,
        "imagePullPolicy": "Never",
        "args": ["serve"],
        "ports": [{"containerPort": 8080}],
        "readinessProbe": {"httpGet": {"path": "/", "port": 8080}, "periodSeconds": 1},
        "resources": {"requests": {"cpu": "10m", "memory": "16Mi"}, "limits": {"cpu": "200m", "memory": "64Mi"}},
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
    }
    return {
        "securityContext": {"runAsNonRoot": True, "runAsUser": 10001, "seccompProfile": {"type": "RuntimeDefault"}},
        "terminationGracePeriodSeconds": 1,
        "containers": [container],
    }


def manifests() -> list[dict[str, Any]]:
    labels = {"app": "probe"}
    deployment = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "probe"},
        "spec": {
            "replicas": 2,
            "selector": {"matchLabels": labels},
            "template": {"metadata": {"labels": labels}, "spec": pod_spec()},
        },
    }
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "probe"},
        "spec": {"selector": labels, "ports": [{"port": 80, "targetPort": 8080}]},
    }
    return [deployment, service]


def tables() -> str:
    """The packet filter's rules, without their counters."""
    if shutil.which("nft") is None:
        return ""
    shown = subprocess.run(["nft", "--stateless", "list", "ruleset"], capture_output=True, text=True, check=False)
    return shown.stdout


@pytest.fixture(scope="module")
def tables_before() -> str:
    """The packet filter's rules before there was a cluster."""
    return tables()


def traces() -> set[Path]:
    """What there is at the fixed places where a node's programs write."""
    return {found for path in _TRACES for found in path.rglob("*")}


@pytest.fixture(scope="module")
def traces_before() -> set[Path]:
    """What was there before there was a cluster: a killed one leaves such files."""
    return traces()


@pytest.fixture(scope="module")
def cluster(
    tables_before: str, traces_before: set[Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Cluster]:
    """A cluster of this module, with the probe's image."""
    if os.geteuid() != 0:
        pytest.skip("a cluster on this machine needs root")
    if binaries.find() is None:
        pytest.skip(binaries.NOT_BUILT)
    if network.owner() is not None:
        pytest.skip(f"the cluster in {network.owner()} runs on this machine: `hack/cluster down` first")
    work = tmp_path_factory.mktemp("probe")
    program = work / "probe"
    build = [find_go(), "build", "-trimpath", "-o", str(program), str(HERE / "probe" / "main.go")]
    subprocess.run(build, env={**os.environ, "CGO_ENABLED": "0"}, check=True)
    archive.write_image(work / "probe.tar", IMAGE, files={"/probe": program}, entrypoint=["/probe"])
    cluster = Cluster(Path("/tmp") / f"tidemill-cluster-{os.getpid()}")  # noqa: S108  (sockets need short paths)
    try:
        cluster("up")
        cluster("load-images", str(work / "probe.tar"))
        yield cluster
    finally:
        cluster("down")


@pytest.fixture(scope="module")
def kubectl(cluster: Cluster) -> Kubectl:
    """kubectl, with two replicas of the probe behind a service."""
    kubectl = Kubectl(cluster)
    namespace = {
        "apiVersion": "v1",
        "kind": "Namespace",
        "metadata": {"name": NAMESPACE, "labels": {"pod-security.kubernetes.io/enforce": "restricted"}},
    }
    kubectl("apply", "-f", "-", stdin=json.dumps(namespace))
    kubectl("apply", "-f", "-", stdin=json.dumps({"apiVersion": "v1", "kind": "List", "items": manifests()}))
    kubectl("rollout", "status", "deployment/probe", "--timeout=90s")
    return kubectl


def pods(kubectl: Kubectl) -> set[str]:
    return set(kubectl("get", "pods", "-o", "jsonpath={.items[*].metadata.name}").split())


def test_every_component_is_well(cluster: Cluster) -> None:
    """Status names each component and the node."""
    health = cluster.health()
    assert set(health.values()) == {"ok"}
    assert {"etcd", "kube-apiserver", "kubelet", "coredns", "node1"} <= health.keys()


def test_a_component_that_ended_is_started_again(cluster: Cluster, kubectl: Kubectl) -> None:
    """Status tells which one is gone; a second up starts that one and leaves the rest alone."""
    before = pods(kubectl)
    records = cluster.records()
    os.kill(records["kube-scheduler"]["pid"], signal.SIGKILL)
    eventually(lambda: cluster.health()["kube-scheduler"] != "ok", what="status tells it", seconds=_DEADLINE_SECONDS)
    cluster("up")
    after = cluster.records()
    assert {name for name in after if after[name] != records[name]} == {"kube-scheduler"}
    assert pods(kubectl) == before


def test_pods_reach_services_by_name(kubectl: Kubectl) -> None:
    """Short and full names lead to both replicas, a replica's own service back to itself included."""
    for name in ("probe", f"probe.{NAMESPACE}.svc.cluster.local"):
        seen: set[str] = set()

        def both(url: str = f"http://{name}/", seen: set[str] = seen) -> bool:
            seen.add(kubectl("exec", "deployment/probe", "--", "/probe", "get", url).strip())
            return seen == pods(kubectl)

        eventually(both, what=f"{name} leads to both", seconds=_DEADLINE_SECONDS)


def test_the_host_reaches_services_by_address(kubectl: Kubectl) -> None:
    """A service's cluster IP works on the machine itself."""
    address = kubectl("get", "service", "probe", "-o", "jsonpath={.spec.clusterIP}")
    assert httpx.get(f"http://{address}/", trust_env=False).text.strip() in pods(kubectl)


def test_network_policies_are_enforced(kubectl: Kubectl) -> None:
    """Pods that may only ask for names resolve a service and cannot reach it; without the policy they can again."""
    policy = {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": "names-only"},
        "spec": {
            "podSelector": {"matchLabels": {"app": "probe"}},
            "policyTypes": ["Egress"],
            "egress": [{"ports": [{"port": 53, "protocol": "UDP"}, {"port": 53, "protocol": "TCP"}]}],
        },
    }

    def asks() -> subprocess.CompletedProcess[str]:
        return kubectl.run("exec", "deployment/probe", "--", "/probe", "get", "http://probe/")

    assert asks().returncode == 0
    kubectl("apply", "-f", "-", stdin=json.dumps(policy))
    eventually(lambda: asks().returncode != 0, what="the policy keeps it away", seconds=_DEADLINE_SECONDS)
    assert "no such host" not in asks().stderr
    kubectl("delete", "networkpolicy", "names-only")
    eventually(lambda: asks().returncode == 0, what="without the policy it comes through", seconds=_DEADLINE_SECONDS)


def test_kubectl_logs_shows_what_a_container_printed(kubectl: Kubectl) -> None:
    """What a container printed is shown."""
    assert kubectl("logs", "deployment/probe") == "serving\n"


def test_port_forward_leads_to_a_pod(kubectl: Kubectl) -> None:
    """A port of the machine leads to a pod."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    forward = subprocess.Popen(
        [*kubectl.command, "port-forward", "service/probe", f"{port}:80"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        eventually(lambda: not is_free(port), what="something listens", seconds=_DEADLINE_SECONDS)
        assert httpx.get(f"http://127.0.0.1:{port}/", trust_env=False).text.strip() in pods(kubectl)
    finally:
        forward.terminate()
        forward.wait(10.0)


def test_the_policy_restricted_is_enforced(kubectl: Kubectl) -> None:
    """A pod that could gain rights is refused."""
    done = kubectl.run("run", "loose", f"--image={IMAGE}")
    assert done.returncode != 0
    assert 'violates PodSecurity "restricted:latest"' in done.stderr
    assert "loose" not in pods(kubectl)


@pytest.mark.parametrize("url", ["http://192.0.2.1/", "http://198.51.100.7/"])
def test_nothing_leaves_the_machine(kubectl: Kubectl, url: str) -> None:
    """A pod's call to an outside address is refused on this machine at once."""
    done = kubectl.run("exec", "deployment/probe", "--", "/probe", "get", url)
    assert done.returncode != 0
    assert "no route to host" in done.stderr or "unreachable" in done.stderr


def test_names_outside_the_cluster_do_not_exist(kubectl: Kubectl) -> None:
    """They are answered on this machine, at once."""
    done = kubectl.run("exec", "deployment/probe", "--", "/probe", "get", "http://example.org/")
    assert done.returncode != 0
    assert "no such host" in done.stderr


def test_down_leaves_no_trace(tables_before: str, traces_before: set[Path], cluster: Cluster, kubectl: Kubectl) -> None:
    """Processes, mounts, network, cgroups and files are gone though pods were running; a second down is content."""
    there = cluster.folder
    assert pods(kubectl) != set()
    cluster("down")
    assert not there.exists()
    assert network.owner() is None
    assert network.links_to_pods() == []
    assert str(there) not in Path("/proc/self/mountinfo").read_text()
    assert tables() == tables_before
    assert list(Path("/sys/fs/cgroup").glob("**/tidemill")) == []
    assert [command for command in _commands() if str(there) in command] == []
    assert traces() - traces_before == set()
    cluster("down")
    assert cluster.run("status").returncode == 1


def _commands() -> Iterator[str]:
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            yield path.read_text(errors="replace")
