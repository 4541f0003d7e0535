"""Fixtures for tests of the operator with a real API server, Kafka and Postgres.

The operator runs as single passes in the test's process, or as a separate process. No node runs pods: a thread marks
each pod as ready, and Deployments roll out.
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

from bench import free_ports
from in_cluster.cluster import Cluster, eventually, pipeline
from in_cluster.consumers import Consumers
from in_cluster.data import Data
from in_cluster.passes import Passes, RecordingApi
from in_cluster.process import Process
from kube import standin
from kube.controlplane import ControlPlane
from kube.standin import NAMESPACE
from tidemill_operator.actuators.kubernetes.api import PIPELINE
from tidemill_operator.keys import Key


@pytest.fixture(scope="session")
def cluster(control_plane: ControlPlane) -> Iterator[Cluster]:
    """Install the CRD and the operator's namespace, account and rights. A thread marks each pod as ready."""
    api = standin.install(control_plane)
    stopping = threading.Event()
    access = Cluster(control_plane, api)
    kubelet = threading.Thread(
        target=standin.run_pods, args=(api, stopping), kwargs={"pending_namespaces": access.held}, daemon=True
    )
    kubelet.start()
    yield access
    stopping.set()
    kubelet.join(10.0)


@pytest.fixture
def namespace(cluster: Cluster) -> Iterator[str]:
    """Create a namespace that admits only restricted pods, and delete it after the test."""
    name = f"test-{secrets.token_hex(4)}"
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    cluster.api.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}})
    yield name
    for item in cluster.api.list(PIPELINE, name):
        cluster.api.merge(PIPELINE, name, item["metadata"]["name"], {"metadata": {"finalizers": []}})
    cluster.api.delete(NAMESPACE, None, name)


@pytest.fixture
def make(cluster: Cluster) -> Callable[..., Key]:
    """Return a function that creates a small pipeline: `make("orders", namespace, suspend=True)`."""
    return lambda name, namespace, **spec: cluster.create(pipeline(name, namespace, **spec))


@pytest.fixture(name="eventually")
def _eventually() -> Callable[..., Any]:
    """Return the function that waits for a condition with a deadline."""
    return eventually


@pytest.fixture(scope="session")
def account(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a kubeconfig of an account that has only the operator's rights."""
    return standin.account(cluster.plane, cluster.api, tmp_path_factory.mktemp("account"))


@pytest.fixture
def data(servers: Any) -> Data:
    """Return the queries for topics and schemas of pipelines."""
    return Data(servers)


@pytest.fixture
def passes(servers: Any, account: Path) -> Passes:
    """Return passes that have only the operator's rights."""
    return Passes(servers, RecordingApi(account))


@pytest.fixture
def start_operator(servers: Any, account: Path, tmp_path: Path) -> Iterator[Callable[..., Process]]:
    """Return a function that starts an operator with only its own rights. The fixture stops it after the test."""
    started: list[Process] = []

    def start(*program: str, **further: str) -> Process:
        number, ports = len(started), tuple(free_ports(2))
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("TIDEMILL_")}
        addresses = {
            "TIDEMILL_KAFKA_BROKERS": servers.kafka,
            "TIDEMILL_POSTGRES_URL": servers.postgres.url,
            "TIDEMILL_REDIS_URL": servers.redis,
        }
        variables = standin.environment(account, addresses, pod=f"operator-{number}", ports=ports)
        environment = {**inherited, **variables, **further}
        log = tmp_path / f"operator-{number}.log"
        with log.open("wb") as out:
            process = subprocess.Popen(
                [sys.executable, *(program or ("-m", "tidemill_operator"))], env=environment, stdout=out, stderr=out
            )
        started.append(Process(process, log, *ports))
        return started[-1]

    yield start
    for operator in started:
        operator.stop(signal.SIGKILL if operator.process.poll() is None else signal.SIGTERM)
        text = operator.log.read_text()
        print(f"--- {operator.log.name}\n{text[-6000:]}", file=sys.stderr)
        # The operator needs no right that `rbac` does not grant.
        assert "is forbidden: User" not in text, "the operator lacks a right"


@pytest.fixture
def loaded(cluster: Cluster, servers: Any) -> Iterator[Callable[..., Consumers]]:
    """Return a function that starts consumers in place of the processors or stages of a pipeline."""
    stopping, threads = threading.Event(), []

    def load(key: Key, partitions: int = 4, component: str = "processor") -> Consumers:
        consumers = Consumers(cluster, servers, key, partitions, component)
        threads.append(threading.Thread(target=consumers.run, args=(stopping,), daemon=True))
        threads[-1].start()
        return consumers

    yield load
    stopping.set()
    for thread in threads:
        thread.join(30.0)
