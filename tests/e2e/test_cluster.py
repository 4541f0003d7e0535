"""Tests of `hack/cluster` on this machine: pods, names, Services, network policies, logs, and complete removal."""

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
    """A cluster of `hack/cluster` in a separate folder."""

    folder: Path

    def run(self, action: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [str(ROOT / "hack" / "cluster"), action, "--provider=local", f"--dir={self.folder}", *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    def __call__(self, action: str, *arguments: str) -> str:
        done = self.run(action, *arguments)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def health(self) -> dict[str, str]:
        """Return the state of each component: `ok` or `BAD`."""
        lines = self.run("status").stdout.splitlines()
        return {name: state for state, name, *_ in map(str.split, lines)}

    def records(self) -> dict[str, dict[str, Any]]:
        """Return the record of each component's process."""
        return {path.stem: json.loads(path.read_text()) for path in (self.folder / "run").glob("*.pid")}


class Kubectl:
    """The program kubectl in the namespace of these tests."""

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
    """Return the spec of a pod that the policy `restricted` admits."""
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
    """Return the packet filter's rules without their counters."""
    if shutil.which("nft") is None:
        return ""
    rules = subprocess.run(["nft", "--stateless", "list", "ruleset"], capture_output=True, text=True, check=False)
    return rules.stdout


@pytest.fixture(scope="module")
def tables_before() -> str:
    """Return the packet filter's rules before the cluster's start."""
    return tables()


def traces() -> set[Path]:
    """Return the files in the fixed folders to which a node's programs write."""
    return {file for folder in _TRACES for file in folder.rglob("*")}


@pytest.fixture(scope="module")
def traces_before() -> set[Path]:
    """Return the files before the cluster's start. A killed cluster leaves files."""
    return traces()


@pytest.fixture(scope="module")
def cluster(
    tables_before: str, traces_before: set[Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Cluster]:
    """Start a cluster with the probe's image."""
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
    """Run two replicas of the probe behind a Service, and return kubectl."""
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


def test_the_status_names_each_component_and_the_node(cluster: Cluster) -> None:
    health = cluster.health()
    assert set(health.values()) == {"ok"}
    assert {"etcd", "kube-apiserver", "kubelet", "coredns", "node1"} <= health.keys()


def test_up_starts_only_the_component_that_has_ended(cluster: Cluster, kubectl: Kubectl) -> None:
    """The status names the component. All others, and the pods, keep running."""
    before = pods(kubectl)
    records = cluster.records()
    os.kill(records["kube-scheduler"]["pid"], signal.SIGKILL)
    eventually(
        lambda: cluster.health()["kube-scheduler"] != "ok",
        what="the status names the ended component",
        seconds=_DEADLINE_SECONDS,
    )
    cluster("up")
    after = cluster.records()
    assert {name for name in after if after[name] != records[name]} == {"kube-scheduler"}
    assert pods(kubectl) == before


def test_a_pod_reaches_all_replicas_of_a_service_by_name(kubectl: Kubectl) -> None:
    """The short and the full name lead to both replicas. One replica is the pod that sends the request."""
    for name in ("probe", f"probe.{NAMESPACE}.svc.cluster.local"):
        reached: set[str] = set()

        def both(url: str = f"http://{name}/", reached: set[str] = reached) -> bool:
            reached.add(kubectl("exec", "deployment/probe", "--", "/probe", "get", url).strip())
            return reached == pods(kubectl)

        eventually(both, what=f"{name} leads to both replicas", seconds=_DEADLINE_SECONDS)


def test_the_machine_reaches_a_service_by_its_cluster_ip(kubectl: Kubectl) -> None:
    address = kubectl("get", "service", "probe", "-o", "jsonpath={.spec.clusterIP}")
    assert httpx.get(f"http://{address}/", trust_env=False).text.strip() in pods(kubectl)


def test_network_policies_are_enforced(kubectl: Kubectl) -> None:
    """With a policy that allows only DNS, pods resolve a Service's name, but cannot reach the Service."""
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

    def request() -> subprocess.CompletedProcess[str]:
        return kubectl.run("exec", "deployment/probe", "--", "/probe", "get", "http://probe/")

    assert request().returncode == 0
    kubectl("apply", "-f", "-", stdin=json.dumps(policy))
    eventually(lambda: request().returncode != 0, what="the policy is enforced", seconds=_DEADLINE_SECONDS)
    assert "no such host" not in request().stderr
    kubectl("delete", "networkpolicy", "names-only")
    eventually(lambda: request().returncode == 0, what="requests succeed without the policy", seconds=_DEADLINE_SECONDS)


def test_kubectl_logs_shows_the_output_of_a_container(kubectl: Kubectl) -> None:
    assert kubectl("logs", "deployment/probe") == "serving\n"


def test_port_forward_leads_to_a_pod(kubectl: Kubectl) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    forward = subprocess.Popen(
        [*kubectl.command, "port-forward", "service/probe", f"{port}:80"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        eventually(lambda: not is_free(port), what="kubectl listens on the port", seconds=_DEADLINE_SECONDS)
        assert httpx.get(f"http://127.0.0.1:{port}/", trust_env=False).text.strip() in pods(kubectl)
    finally:
        forward.terminate()
        forward.wait(10.0)


def test_a_pod_that_is_not_restricted_is_refused(kubectl: Kubectl) -> None:
    done = kubectl.run("run", "loose", f"--image={IMAGE}")
    assert done.returncode != 0
    assert 'violates PodSecurity "restricted:latest"' in done.stderr
    assert "loose" not in pods(kubectl)


@pytest.mark.parametrize("url", ["http://192.0.2.1/", "http://198.51.100.7/"])
def test_requests_of_pods_do_not_leave_the_machine(kubectl: Kubectl, url: str) -> None:
    """This machine refuses a pod's request to an outside address at once."""
    done = kubectl.run("exec", "deployment/probe", "--", "/probe", "get", url)
    assert done.returncode != 0
    assert "no route to host" in done.stderr or "unreachable" in done.stderr


def test_names_outside_the_cluster_are_not_resolved(kubectl: Kubectl) -> None:
    done = kubectl.run("exec", "deployment/probe", "--", "/probe", "get", "http://example.org/")
    assert done.returncode != 0
    assert "no such host" in done.stderr


def test_down_removes_all_traces_of_the_cluster(
    tables_before: str, traces_before: set[Path], cluster: Cluster, kubectl: Kubectl
) -> None:
    """While pods run, down removes processes, mounts, network, cgroups and files. A second down succeeds too."""
    folder = cluster.folder
    assert pods(kubectl) != set()
    cluster("down")
    assert not folder.exists()
    assert network.owner() is None
    assert network.links_to_pods() == []
    assert str(folder) not in Path("/proc/self/mountinfo").read_text()
    assert tables() == tables_before
    assert list(Path("/sys/fs/cgroup").glob("**/tidemill")) == []
    assert [command for command in _commands() if str(folder) in command] == []
    assert traces() - traces_before == set()
    cluster("down")
    assert cluster.run("status").returncode == 1


def _commands() -> Iterator[str]:
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            yield path.read_text(errors="replace")
