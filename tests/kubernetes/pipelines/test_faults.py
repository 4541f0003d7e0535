"""Tests that the operator reports faults of processors and servers, and their recovery, in time.

Processors do not run, or servers hang. The tests are rows of the fault matrix, on a real API server, Kafka and
Postgres. Events arrive during each fault. Positions move while the consumers that replace processors work.
"""

from __future__ import annotations

import contextlib
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import psycopg
import pytest

from kube import binaries
from running.hanging import frozen
from tidemill_contract.duration import parse_ms
from tidemill_operator.actuators.kubernetes.api import DEPLOYMENT, POD, Document
from tidemill_operator.errors import TidemillError
from tidemill_operator.keys import Key

pytestmark = [pytest.mark.kubernetes, pytest.mark.integration, pytest.mark.matrix]

REPORTED_SECONDS, RECOVERED_SECONDS = 30.0, 10.0
# On a busy machine, a report may be later than its limit. The recorded time shows the delay, and the test continues.
_PATIENCE = 3.0
_WHY = "CrashLoopBackOff"


@dataclass
class Work:
    """Sends events every half second, and moves positions while `working` is set."""

    processors: Any
    working: threading.Event = field(default_factory=threading.Event)
    stopping: threading.Event = field(default_factory=threading.Event)
    sent: int = 0

    def run(self) -> None:
        """Send and count until `stopping` is set. A server that hangs also blocks this thread."""
        while not self.stopping.wait(0.5):
            with contextlib.suppress(TidemillError, psycopg.Error, AssertionError):
                self.processors.send(1)
                self.sent += self.processors.partitions
                if self.working.is_set():
                    self.processors.work_off()


@pytest.fixture
def orders(
    cluster: Any, start_operator: Callable[..., Any], namespace: str, make: Callable[..., Key], eventually: Any
) -> Key:
    """Start an operator as a process, create a pipeline and wait until it is ready."""
    operator = start_operator()
    eventually(operator.leads, what="the operator leads")
    key = make("orders", namespace)
    cluster.await_ready(key)
    return key


@pytest.fixture
def work(orders: Key, loaded: Callable[..., Any]) -> Iterator[Work]:
    """Start the events of the pipeline, and the consumers that count them."""
    running = Work(loaded(orders, partitions=2))
    running.working.set()
    thread = threading.Thread(target=running.run, daemon=True)
    thread.start()
    yield running
    running.stopping.set()
    thread.join(60.0)


def pods(cluster: Any, key: Key) -> list[Document]:
    """Return the pods of the processors."""
    return list(cluster.api.list(POD, key.namespace, selector="app.kubernetes.io/component=processor"))


def columns(cluster: Any, key: Key) -> dict[str, str]:
    """Return the columns that `kubectl get` shows for a pipeline."""
    command = [str(binaries.FOLDER / "kubectl"), "--kubeconfig", str(cluster.plane.kubeconfig), "get", "apl", key.name]
    output = subprocess.run([*command, "-n", key.namespace], capture_output=True, text=True, check=True).stdout
    head, line = output.splitlines()
    starts = [head.index(name) for name in head.split()]
    ends = [*starts[1:], None]
    return {name: line[start:end].strip() for name, start, end in zip(head.split(), starts, ends, strict=True)}


def measured(eventually: Any, check: Callable[[], Any], *, most: float, what: str) -> float:
    """Wait until `check` is true, and return the seconds that passed."""
    begun = time.monotonic()
    eventually(check, seconds=most * _PATIENCE, what=what)
    return time.monotonic() - begun


def ready(cluster: Any, key: Key) -> str:
    return str(cluster.condition(key, "Ready")[0])


def put_status(cluster: Any, pod: Document, *, crashing: bool) -> None:
    """Write the status of a pod as a kubelet does: ready, or crashing again and again."""
    metadata = {key: pod["metadata"][key] for key in ("name", "namespace")}
    container = pod["spec"]["containers"][0]
    state = {"waiting": {"reason": _WHY, "message": "back-off"}} if crashing else {"running": {}}
    status = {
        "phase": "Running",
        "conditions": [{"type": "Ready", "status": "False" if crashing else "True"}],
        "containerStatuses": [
            {
                "name": container["name"],
                "image": container["image"],
                "imageID": "",
                "ready": not crashing,
                "restartCount": 5,
                "state": state,
            }
        ],
    }
    body = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "status": status}
    cluster.api.apply(body, subresource="status", manager="kubelet")


@contextlib.contextmanager
def pending(cluster: Any, key: Key) -> Iterator[None]:
    """Delete the pods of the processors, and leave their replacements without a node."""
    cluster.held.add(key.namespace)
    try:
        for pod in pods(cluster, key):
            cluster.api.delete(POD, key.namespace, pod["metadata"]["name"])
        yield
    finally:
        cluster.held.discard(key.namespace)


@contextlib.contextmanager
def crash_looping(cluster: Any, key: Key) -> Iterator[None]:
    """Let each pod of the processors crash whenever it starts."""
    for pod in pods(cluster, key):
        put_status(cluster, pod, crashing=True)
    try:
        yield
    finally:
        for pod in pods(cluster, key):
            put_status(cluster, pod, crashing=False)


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(pending, marks=pytest.mark.fault("pods-pending", "Ready is false, LAG and FRESHNESS grow")),
        pytest.param(
            crash_looping,
            marks=pytest.mark.fault("pods-crash-looping", "Ready is false, LAG and FRESHNESS grow"),
        ),
    ],
)
def test_processors_that_do_not_run_make_the_pipeline_unready_and_its_lag_grow(
    cluster: Any, orders: Key, work: Work, eventually: Any, record_property: Callable[[str, object], None], fault: Any
) -> None:
    """During the fault, `kubectl get` shows current figures of lag and freshness."""
    eventually(lambda: columns(cluster, orders)["LAG"] == "0", what="all events are counted")
    work.working.clear()
    counted = work.sent
    with fault(cluster, orders):
        reported_after = measured(
            eventually, lambda: ready(cluster, orders) == "False", most=REPORTED_SECONDS, what="Ready is false"
        )
        record_property("told", round(reported_after, 1))
        grown = measured(
            eventually,
            lambda: int(columns(cluster, orders)["LAG"] or 0) >= (work.sent - counted) / 2 > 0,
            most=REPORTED_SECONDS,
            what="LAG includes the uncounted events",
        )
        row = columns(cluster, orders)
        record_property("LAG after", f"{reported_after + grown:.0f} s")
        assert row["READY"] == "False"
        assert parse_ms(row["FRESHNESS"]) / 1000 >= (reported_after + grown) / 2, (
            "FRESHNESS is not the age of waiting events"
        )
    work.working.set()
    recovered_after = measured(
        eventually, lambda: ready(cluster, orders) == "True", most=RECOVERED_SECONDS, what="Ready is true again"
    )
    record_property("recovered", round(recovered_after, 1))
    eventually(lambda: columns(cluster, orders)["LAG"] == "0", what="all events are counted")


@pytest.mark.parametrize(
    ("server", "named"),
    [
        pytest.param(
            "postgres", "Postgres", marks=pytest.mark.fault("postgres-frozen", "Ready is false and names Postgres")
        ),
        pytest.param("kafka", "Kafka", marks=pytest.mark.fault("kafka-frozen", "Ready is false and names Kafka")),
    ],
)
def test_a_server_that_hangs_is_named_in_the_condition(
    cluster: Any,
    servers: Any,
    orders: Key,
    work: Work,
    eventually: Any,
    record_property: Callable[[str, object], None],
    server: str,
    named: str,
) -> None:
    """The condition names it within half a minute. No pod restarts, and the pipeline recovers soon."""
    if server not in servers.handles:
        pytest.skip(f"this session has not started {server}")
    eventually(lambda: columns(cluster, orders)["LAG"] == "0", what="all events are counted")
    before = [pod["metadata"]["uid"] for pod in pods(cluster, orders)]
    with frozen(servers.handles[server]):
        reported_after = measured(
            eventually, lambda: ready(cluster, orders) == "False", most=REPORTED_SECONDS, what="Ready is false"
        )
        record_property("told", round(reported_after, 1))
        conditions = cluster.get(orders)["status"]["conditions"]
        assert named in next(item["message"] for item in conditions if item["type"] == "Ready")
    recovered_after = measured(
        eventually, lambda: ready(cluster, orders) == "True", most=RECOVERED_SECONDS, what="Ready is true again"
    )
    record_property("recovered", round(recovered_after, 1))
    assert [pod["metadata"]["uid"] for pod in pods(cluster, orders)] == before
    eventually(lambda: columns(cluster, orders)["LAG"] == "0", what="all events are counted")


@pytest.mark.fault(
    "apiserver-frozen", "events are still counted; the next leader repairs within 2 min; no pod is restarted"
)
def test_an_api_server_that_hangs_restarts_no_pod_and_the_next_leader_repairs(
    cluster: Any,
    start_operator: Callable[..., Any],
    namespace: str,
    make: Callable[..., Key],
    eventually: Any,
    record_property: Callable[[str, object], None],
) -> None:
    """The leader may end because its Lease has expired. Then the test restarts it, as a pod would."""
    operator = start_operator()
    eventually(operator.leads, what="the operator leads")
    key = make("orders", namespace)
    cluster.await_ready(key)
    before = [pod["metadata"]["uid"] for pod in pods(cluster, key)]
    with frozen(cluster.plane._apiserver):
        reported_after = measured(
            eventually, lambda: not operator.leads(), most=REPORTED_SECONDS, what="the operator no longer leads"
        )
        record_property("told", round(reported_after, 1))

    def repaired() -> Any:
        nonlocal operator
        if operator.process.poll() is not None:
            operator = start_operator()
        return cluster.child(namespace, "Deployment", "orders-processor").get("metadata", {}).get("uid") not in (
            None,
            deleted,
        )

    eventually(lambda: cluster.get(key), what="the API server answers")
    assert [pod["metadata"]["uid"] for pod in pods(cluster, key)] == before
    deleted = cluster.child(namespace, "Deployment", "orders-processor")["metadata"]["uid"]
    cluster.api.delete(DEPLOYMENT, namespace, "orders-processor")
    recovered_after = measured(eventually, repaired, most=120.0, what="a deleted Deployment is recreated")
    record_property("recovered", round(recovered_after, 1))
    cluster.await_ready(key)
