"""The operator against a real API server, Kafka and Postgres: single passes in this process, or the process itself.

No node runs pods: a thread says that each pod is ready, so that Deployments roll out.
"""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from in_cluster.cluster import Cluster, eventually, pipeline
from in_cluster.consumers import Consumers
from in_cluster.data import Data
from in_cluster.passes import Passes, RecordingApi
from in_cluster.process import Process, free_port
from kube import standin
from kube.controlplane import ControlPlane
from kube.standin import NAMESPACE
from tidemill_operator.actuators.kubernetes.api import PIPELINE
from tidemill_operator.keys import Key


@pytest.fixture(scope="session")
def cluster(control_plane: ControlPlane) -> Iterator[Cluster]:
    """The control plane with the CRD, the operator's namespace, account and rights; pods become ready."""
    api = standin.install(control_plane)
    stopping = threading.Event()
    found = Cluster(control_plane, api)
    kubelet = threading.Thread(target=standin.run_pods, args=(api, stopping), kwargs={"held": found.held}, daemon=True)
    kubelet.start()
    yield found
    stopping.set()
    kubelet.join(10.0)


@pytest.fixture
def namespace(cluster: Cluster) -> Iterator[str]:
    """A namespace of this test that takes restricted pods only; deleted after it."""
    name = f"test-{secrets.token_hex(4)}"
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    cluster.api.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}})
    yield name
    for item in cluster.api.list(PIPELINE, name):
        cluster.api.merge(PIPELINE, name, item["metadata"]["name"], {"metadata": {"finalizers": []}})
    cluster.api.delete(NAMESPACE, None, name)


@pytest.fixture
def make(cluster: Cluster) -> Callable[..., Key]:
    """Makes a small pipeline: `make("orders", namespace, suspend=True)`."""
    return lambda name, namespace, **spec: cluster.create(pipeline(name, namespace, **spec))


@pytest.fixture(name="eventually")
def _eventually() -> Callable[..., Any]:
    """Waits for a condition with a deadline."""
    return eventually


@pytest.fixture(scope="session")
def account(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A kubeconfig of the operator's account, which has the operator's rights and no others."""
    return standin.account(cluster.plane, cluster.api, tmp_path_factory.mktemp("account"))


@pytest.fixture
def data(servers: Any) -> Data:
    """Topics and schemas of the test's servers."""
    return Data(servers)


@pytest.fixture
def passes(servers: Any, account: Path) -> Passes:
    """Passes with the operator's own rights."""
    return Passes(servers, RecordingApi(account))


@pytest.fixture
def start_operator(servers: Any, account: Path, tmp_path: Path) -> Iterator[Callable[..., Process]]:
    """Starts operators with the operator's own rights; they are ended after the test."""
    started: list[Process] = []

    def start(*program: str, **further: str) -> Process:
        number, ports = len(started), (free_port(), free_port())
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("TIDEMILL_")}
        addresses = {
            "TIDEMILL_KAFKA_BROKERS": servers.kafka,
            "TIDEMILL_POSTGRES_URL": servers.postgres.url,
            "TIDEMILL_REDIS_URL": servers.redis,
        }
        told = standin.environment(account, addresses, pod=f"operator-{number}", ports=ports)
        environment = {**inherited, **told, **further}
        log = tmp_path / f"operator-{number}.log"
        with log.open("wb") as out:
            process = subprocess.Popen(
                [sys.executable, *(program or ("-m", "tidemill_operator"))], env=environment, stdout=out, stderr=out
            )
        started.append(Process(process, log, *ports))
        return started[-1]

    yield start
    for one in started:
        one.stop(signal.SIGKILL if one.process.poll() is None else signal.SIGTERM)
        text = one.log.read_text()
        print(f"--- {one.log.name}\n{text[-6000:]}", file=sys.stderr)
        # The rights that `rbac` names are all that it needs.
        assert "is forbidden: User" not in text


@pytest.fixture
def loaded(cluster: Cluster, servers: Any) -> Iterator[Callable[..., Consumers]]:
    """Gives a pipeline processors, or processes of a Python stage."""
    stopping, threads = threading.Event(), []

    def load(key: Key, partitions: int = 4, component: str = "processor") -> Consumers:
        found = Consumers(cluster, servers, key, partitions, component)
        threads.append(threading.Thread(target=found.run, args=(stopping,), daemon=True))
        threads[-1].start()
        return found

    yield load
    stopping.set()
    for thread in threads:
        thread.join(30.0)
