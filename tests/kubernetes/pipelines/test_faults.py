"""Faults that only the operator can tell: processors that do not run, servers that hang. Told in time, and not after.

Rows of the fault matrix; events flow all the while, and positions move as long as processors work.
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

TOLD_SECONDS, WELL_SECONDS = 30.0, 10.0
# A machine that is busy with other things answers late; then the figure tells, and the test goes on.
_PATIENCE = 3.0
_WHY = "CrashLoopBackOff"


@dataclass
class Work:
    """Events that come every half a second, and processors that count them while they may."""

    processors: Any
    working: threading.Event = field(default_factory=threading.Event)
    stopping: threading.Event = field(default_factory=threading.Event)
    sent: int = 0

    def run(self) -> None:
        """Until a test ends; a server that hangs holds it up, as it does others."""
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
    """A pipeline that is ready, with an operator as a process."""
    operator = start_operator()
    eventually(operator.leads, what="it leads")
    key = make("orders", namespace)
    cluster.await_ready(key)
    return key


@pytest.fixture
def work(orders: Key, loaded: Callable[..., Any]) -> Iterator[Work]:
    """Its events, and processors that count them."""
    found = Work(loaded(orders, partitions=2))
    found.working.set()
    thread = threading.Thread(target=found.run, daemon=True)
    thread.start()
    yield found
    found.stopping.set()
    thread.join(60.0)


def pods(cluster: Any, key: Key) -> list[Document]:
    """Of its processors."""
    return list(cluster.api.list(POD, key.namespace, selector="app.kubernetes.io/component=processor"))


def columns(cluster: Any, key: Key) -> dict[str, str]:
    """What `kubectl get` shows of a pipeline, by column."""
    command = [str(binaries.FOLDER / "kubectl"), "--kubeconfig", str(cluster.plane.kubeconfig), "get", "apl", key.name]
    shown = subprocess.run([*command, "-n", key.namespace], capture_output=True, text=True, check=True).stdout
    head, line = shown.splitlines()
    starts = [head.index(name) for name in head.split()]
    ends = [*starts[1:], None]
    return {name: line[start:end].strip() for name, start, end in zip(head.split(), starts, ends, strict=True)}


def measured(eventually: Any, check: Callable[[], Any], *, most: float, what: str) -> float:
    """Seconds until it is so."""
    begun = time.monotonic()
    eventually(check, seconds=most * _PATIENCE, what=what)
    return time.monotonic() - begun


def ready(cluster: Any, key: Key) -> str:
    return str(cluster.condition(key, "Ready")[0])


def put_status(cluster: Any, pod: Document, *, crashing: bool) -> None:
    """Say of a pod, as a kubelet would, that it is ready or crashes again and again."""
    named = {key: pod["metadata"][key] for key in ("name", "namespace")}
    container = pod["spec"]["containers"][0]
    state = {"waiting": {"reason": _WHY, "message": "back-off"}} if crashing else {"running": {}}
    told = {
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
    body = {"apiVersion": "v1", "kind": "Pod", "metadata": named, "status": told}
    cluster.api.apply(body, subresource="status", manager="kubelet")


@contextlib.contextmanager
def pending(cluster: Any, key: Key) -> Iterator[None]:
    """Its pods are deleted, and those that come in their place find no node."""
    cluster.held.add(key.namespace)
    try:
        for pod in pods(cluster, key):
            cluster.api.delete(POD, key.namespace, pod["metadata"]["name"])
        yield
    finally:
        cluster.held.discard(key.namespace)


@contextlib.contextmanager
def crash_looping(cluster: Any, key: Key) -> Iterator[None]:
    """Its pods crash, each time they are started."""
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
def test_processors_that_do_not_run_are_told(
    cluster: Any, orders: Key, work: Work, eventually: Any, record_property: Callable[[str, object], None], fault: Any
) -> None:
    """By the condition and by what `kubectl get` shows, which are figures of now."""
    eventually(lambda: columns(cluster, orders)["LAG"] == "0", what="what came is counted")
    work.working.clear()
    counted = work.sent
    with fault(cluster, orders):
        told = measured(eventually, lambda: ready(cluster, orders) == "False", most=TOLD_SECONDS, what="it is told")
        record_property("told", round(told, 1))
        grown = measured(
            eventually,
            lambda: int(columns(cluster, orders)["LAG"] or 0) >= (work.sent - counted) / 2 > 0,
            most=TOLD_SECONDS,
            what="LAG is that of now",
        )
        shown = columns(cluster, orders)
        record_property("LAG after", f"{told + grown:.0f} s")
        assert shown["READY"] == "False"
        assert parse_ms(shown["FRESHNESS"]) / 1000 >= (told + grown) / 2, (
            "the age of what waits, and not of what was counted"
        )
    work.working.set()
    well = measured(eventually, lambda: ready(cluster, orders) == "True", most=WELL_SECONDS, what="it is ready again")
    record_property("recovered", round(well, 1))
    eventually(lambda: columns(cluster, orders)["LAG"] == "0", what="all is counted")


@pytest.mark.parametrize(
    ("server", "named"),
    [
        pytest.param("postgres", "Postgres", marks=pytest.mark.fault("postgres-frozen", "Ready is false and names it")),
        pytest.param("kafka", "Kafka", marks=pytest.mark.fault("kafka-frozen", "Ready is false and names it")),
    ],
)
def test_a_server_that_hangs_is_told(
    cluster: Any,
    servers: Any,
    orders: Key,
    work: Work,
    eventually: Any,
    record_property: Callable[[str, object], None],
    server: str,
    named: str,
) -> None:
    """Within half a minute, by name; no pod is restarted for it; and all is well soon after."""
    if server not in servers.handles:
        pytest.skip(f"{server} is not this session's")
    eventually(lambda: columns(cluster, orders)["LAG"] == "0", what="what came is counted")
    before = [pod["metadata"]["uid"] for pod in pods(cluster, orders)]
    with frozen(servers.handles[server]):
        told = measured(eventually, lambda: ready(cluster, orders) == "False", most=TOLD_SECONDS, what="it is told")
        record_property("told", round(told, 1))
        conditions = cluster.get(orders)["status"]["conditions"]
        assert named in next(item["message"] for item in conditions if item["type"] == "Ready")
    well = measured(eventually, lambda: ready(cluster, orders) == "True", most=WELL_SECONDS, what="it is ready again")
    record_property("recovered", round(well, 1))
    assert [pod["metadata"]["uid"] for pod in pods(cluster, orders)] == before
    eventually(lambda: columns(cluster, orders)["LAG"] == "0", what="all is counted")


@pytest.mark.fault(
    "apiserver-frozen", "events are still counted; the next leader repairs within 2 min; no pod is restarted"
)
def test_an_api_server_that_hangs_does_no_harm(
    cluster: Any,
    start_operator: Callable[..., Any],
    namespace: str,
    make: Callable[..., Key],
    eventually: Any,
    record_property: Callable[[str, object], None],
) -> None:
    """Whoever leads may end, for another could lead by then; it is started again, as in a pod."""
    operator = start_operator()
    eventually(operator.leads, what="it leads")
    key = make("orders", namespace)
    cluster.await_ready(key)
    before = [pod["metadata"]["uid"] for pod in pods(cluster, key)]
    with frozen(cluster.plane._apiserver):
        told = measured(eventually, lambda: not operator.leads(), most=TOLD_SECONDS, what="it leads no more")
        record_property("told", round(told, 1))

    def repaired() -> Any:
        nonlocal operator
        if operator.process.poll() is not None:
            operator = start_operator()
        return cluster.child(namespace, "Deployment", "orders-processor").get("metadata", {}).get("uid") not in (
            None,
            old,
        )

    eventually(lambda: cluster.get(key), what="the API server answers")
    assert [pod["metadata"]["uid"] for pod in pods(cluster, key)] == before
    old = cluster.child(namespace, "Deployment", "orders-processor")["metadata"]["uid"]
    cluster.api.delete(DEPLOYMENT, namespace, "orders-processor")
    well = measured(eventually, repaired, most=120.0, what="a deleted Deployment comes back")
    record_property("recovered", round(well, 1))
    cluster.await_ready(key)
