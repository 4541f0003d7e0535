"""The operator as a process: watches, leadership, the webhook, and what is left when things end."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from kube.controlplane import ControlPlane
from tidemill_contract.resource.validate import check
from tidemill_operator.actuators.kubernetes.api import (
    DEPLOYMENT,
    LEASE,
    PIPELINE,
    SERVICE,
    WEBHOOKS,
    Api,
    Document,
    Kind,
    load,
)
from tidemill_operator.errors import TidemillError
from tidemill_operator.keys import Key

pytestmark = [pytest.mark.kubernetes, pytest.mark.integration, pytest.mark.slow]

HOME = "tidemill-system"
NAMESPACE = Kind("v1", "Namespace", "namespaces", namespaced=False)


@pytest.fixture
def lead(start_operator: Callable[..., Any], eventually: Any) -> Callable[..., Any]:
    """Starts an operator and waits until it leads."""

    def start(**environment: str) -> Any:
        operator = start_operator(**environment)
        eventually(operator.leads, what=f"it leads: {operator.log.read_text()[-2000:]}")
        return operator

    return start


def test_from_apply_to_ready_to_gone(
    cluster: Any, lead: Callable[..., Any], namespace: str, make: Callable[..., Key], eventually: Any
) -> None:
    """All by watching: the drift interval is longer than the test."""
    operator = lead(TIDEMILL_DRIFT_SECONDS="3600")
    key = make("orders", namespace)
    cluster.await_ready(key)
    eventually(lambda: cluster.get(key)["status"].get("lag") == 0, seconds=30, what="how far it is behind is told")
    told = f'tidemill_pipeline_lag_events{{namespace="{namespace}",pipeline="orders"}} 0.0'
    assert told in operator.ask("/metrics")[1].splitlines()
    cluster.patch(key, spec={"processor": {"replicas": 2}})
    cluster.await_ready(key, generation=2)
    for name in ("orders-processor", "tidemill-api"):
        cluster.api.delete(DEPLOYMENT, namespace, name)
    eventually(
        lambda: all(cluster.child(namespace, "Deployment", n) for n in ("orders-processor", "tidemill-api")),
        what="the Deployments are back",
    )
    cluster.await_ready(key)
    cluster.api.delete(PIPELINE, namespace, "orders")
    eventually(lambda: cluster.children(namespace) == {}, what="nothing is left")
    metrics = operator.ask("/metrics")[1]
    assert 'tidemill_operator_reconciliations_total{result="settled"}' in metrics
    assert 'tidemill_operator_reconciliation_duration_seconds_count{phase="topics"}' in metrics
    assert [operator.ask(path)[0] for path in ("/livez", "/readyz", "/health")] == [200, 200, 200]
    assert operator.stop() == 0


def test_quiet_pipelines_are_not_written_to(
    cluster: Any, lead: Callable[..., Any], namespace: str, make: Callable[..., Key], eventually: Any
) -> None:
    """Drift passes of a settled pipeline come and go; nothing changes its version."""
    operator = lead(TIDEMILL_DRIFT_SECONDS="1")
    key = make("orders", namespace)
    cluster.await_ready(key)

    def passes() -> float:
        lines = operator.ask("/metrics")[1].splitlines()
        wanted = 'tidemill_operator_reconciliations_total{result="settled"} '
        return next((float(line.removeprefix(wanted)) for line in lines if line.startswith(wanted)), 0.0)

    eventually(lambda: cluster.get(key)["status"].get("lag") == 0, seconds=30, what="its lag is told")
    eventually(lambda: passes() >= 3, what="it has settled")
    before, count = cluster.versions(namespace), passes()
    eventually(lambda: passes() >= count + 5, what="five more passes")
    assert cluster.versions(namespace) == before


def test_many_pipelines_at_once_share_a_namespace(
    cluster: Any, lead: Callable[..., Any], namespace: str, make: Callable[..., Key]
) -> None:
    """Their passes overlap, and what they share loses none of them."""
    lead()
    keys = [make(f"orders-{number}", namespace) for number in range(5)]
    for key in keys:
        cluster.patch(key, metadata={"annotations": {"tidemill.dev/reconcile-at": "now"}})
    for key in keys:
        cluster.await_ready(key, seconds=180.0)
    owners = {
        ref["uid"] for ref in cluster.child(namespace, "Deployment", "tidemill-api")["metadata"]["ownerReferences"]
    }
    assert owners == {key.uid for key in keys}
    secret = cluster.child(namespace, "Secret", "tidemill-ingest-secrets")["data"]
    assert set(secret) == {f"{key.name}.api-keys.json" for key in keys}
    shards = [item for (_, name), item in cluster.children(namespace).items() if name.startswith("tidemill-pipelines")]
    assert {file for item in shards for file in item["data"]} == {f"{key.name}.json" for key in keys}


@pytest.mark.matrix
@pytest.mark.fault("leader-killed", "another replica leads and repairs")
def test_another_takes_over_from_a_leader_that_is_killed(
    cluster: Any,
    lead: Callable[..., Any],
    start_operator: Callable[..., Any],
    namespace: str,
    make: Callable[..., Key],
    eventually: Any,
) -> None:
    first = lead()
    second = start_operator()
    key = make("orders", namespace)
    cluster.await_ready(key)
    eventually(lambda: second.ask("/readyz")[0] == 200, what="the second is ready without leading")
    assert not second.leads()
    first.stop(signal.SIGKILL)
    cluster.api.delete(DEPLOYMENT, namespace, "orders-processor")
    eventually(second.leads, what="the second leads")
    eventually(lambda: cluster.child(namespace, "Deployment", "orders-processor"), what="it repairs")
    cluster.await_ready(key)


@pytest.mark.matrix
@pytest.mark.fault("leader-frozen", "another replica leads; the frozen one ends when it wakes, and has changed nothing")
def test_a_leader_that_was_frozen_ends_when_it_wakes(
    cluster: Any,
    lead: Callable[..., Any],
    start_operator: Callable[..., Any],
    namespace: str,
    make: Callable[..., Key],
    eventually: Any,
) -> None:
    """Another leads by then; what both may do at that moment changes nothing."""
    first = lead()
    key = make("orders", namespace)
    cluster.await_ready(key)
    second = start_operator()
    first.process.send_signal(signal.SIGSTOP)
    eventually(second.leads, what="the second leads")
    clicks = make("clicks", namespace)
    first.process.send_signal(signal.SIGCONT)
    eventually(lambda: first.process.poll() is not None, seconds=30.0, what="the first ends")
    assert first.process.returncode == 1
    cluster.await_ready(clicks)
    cluster.await_ready(key)


def test_a_leader_that_ends_gives_the_lease_back(cluster: Any, lead: Callable[..., Any]) -> None:
    operator = lead()
    assert operator.stop() == 0
    assert cluster.api.get(LEASE, HOME, "tidemill-operator")["spec"]["holderIdentity"] == ""


@pytest.mark.fault("apiserver-restarted", "what was deleted during the restart is repaired within 2 min")
def test_it_recovers_when_the_api_server_was_away(
    cluster: Any,
    lead: Callable[..., Any],
    start_operator: Callable[..., Any],
    namespace: str,
    make: Callable[..., Key],
    eventually: Any,
) -> None:
    """It goes on, or ends because its Lease may have been taken, and is started again, as in a pod."""
    operator = lead()
    key = make("orders", namespace)
    cluster.await_ready(key)
    cluster.plane.restart_apiserver()
    if operator.process.poll() is not None or not operator.leads():
        operator = start_operator()
    eventually(lambda: cluster.get(key), what="the API server is back")
    cluster.api.delete(DEPLOYMENT, namespace, "orders-processor")

    def repaired() -> Any:
        nonlocal operator
        if operator.process.poll() is not None:
            operator = start_operator()
        return cluster.child(namespace, "Deployment", "orders-processor")

    eventually(repaired, seconds=120.0, what="a deleted Deployment comes back")
    cluster.await_ready(key)


@pytest.mark.fault("namespace-deleted", "nothing is stuck; nothing is created in it again")
def test_a_deleted_namespace_ends(
    cluster: Any, lead: Callable[..., Any], namespace: str, make: Callable[..., Key], eventually: Any
) -> None:
    """With a pipeline that keeps its data and one that does not; nothing is stuck, nothing is made in it again."""
    operator = lead()
    keys = [make("orders", namespace), make("clicks", namespace, reclaimPolicy="Delete")]
    for key in keys:
        cluster.await_ready(key)
    cluster.api.delete(NAMESPACE, None, namespace)
    eventually(lambda: cluster.api.get(NAMESPACE, None, namespace) is None, seconds=120.0, what="the namespace is gone")
    assert "Traceback" not in operator.log.read_text()


def test_only_the_named_namespaces_are_served(
    cluster: Any, lead: Callable[..., Any], namespace: str, make: Callable[..., Key]
) -> None:
    other = f"{namespace}-other"
    cluster.api.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": other}})
    try:
        operator = lead(TIDEMILL_WATCH_NAMESPACES=namespace, TIDEMILL_WEBHOOK_PORT="0")
        ignored, served = make("orders", other), make("orders", namespace)
        cluster.await_ready(served)
        assert "status" not in cluster.get(ignored)
        assert operator.ask("/livez")[0] == 200
    finally:
        cluster.api.delete(NAMESPACE, None, other)


@pytest.fixture
def admission(cluster: Any) -> Iterator[Callable[[int], None]]:
    """Has the API server ask the webhook at a port of this machine, under its Service's name."""

    def register(port: int) -> None:
        metadata = {"name": "tidemill-webhook", "namespace": HOME}
        service = {"type": "ExternalName", "externalName": "localhost"}
        cluster.api.apply({"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": service})
        hook: Document = {
            "name": "analyticspipelines.tidemill.dev",
            "clientConfig": {
                "service": {"name": "tidemill-webhook", "namespace": HOME, "path": "/validate", "port": port}
            },
            "rules": [
                {
                    "apiGroups": ["tidemill.dev"],
                    "apiVersions": ["v1alpha1"],
                    "operations": ["CREATE", "UPDATE"],
                    "resources": ["analyticspipelines"],
                }
            ],
            "failurePolicy": "Ignore",
            "sideEffects": "None",
            "admissionReviewVersions": ["v1"],
        }
        for kind in WEBHOOKS:
            named = {"apiVersion": kind.api_version, "kind": kind.kind, "metadata": {"name": "tidemill"}}
            cluster.api.create({**named, "webhooks": [hook]})

    yield register
    for kind in WEBHOOKS:
        cluster.api.delete(kind, None, "tidemill")
    cluster.api.delete(SERVICE, HOME, "tidemill-webhook")


def test_the_api_server_refuses_with_the_words_of_validate(
    cluster: Any,
    lead: Callable[..., Any],
    admission: Callable[[int], None],
    namespace: str,
    make: Callable[..., Key],
    eventually: Any,
) -> None:
    """Of faults that the CRD's own rules cannot see, and of those that the API server tells in words of its own."""
    operator = lead()
    admission(operator.webhook_port)
    spec = {"transform": {"filter": "amount + 1"}}

    def refused() -> str:
        """The API server asks nobody until the leader has told it whom to trust."""
        try:
            key = make("orders", namespace, **spec)
        except TidemillError as error:
            return str(error)
        cluster.api.delete(PIPELINE, namespace, key.name)
        return ""

    text = eventually(refused, what="the pipeline is refused")
    whole = yaml.safe_load((Path(__file__).parents[3] / "crds" / "examples" / "flights.yaml").read_text())
    whole["spec"]["transform"] = {"filter": "dep_delay + 1"}
    _, faults = check(whole)
    assert 'admission webhook "analyticspipelines.tidemill.dev" denied the request' in text
    assert "spec.transform.filter" in text
    assert faults[0].message in text
    fields = [{"name": True, "type": "string"}, {"name": "amount", "type": "number"}]
    source = {"topic": {"partitions": 2, "replicationFactor": 1}, "fields": fields}
    with pytest.raises(TidemillError) as error:
        make("orders", namespace, source=source)
    refusal = "spec.source.fields[0].name: is a boolean, not a text (got true); put the value in quotes"
    assert refusal in str(error.value)
    key = make("orders", namespace)
    cluster.await_ready(key)


@pytest.mark.fault("new-operator-without-its-crd", "it ends and says what to do")
def test_a_cluster_without_the_resource_is_told(start_operator: Callable[..., Any], tmp_path: Path) -> None:
    """A missing CRD ends the process with what to do, instead of an operator that does nothing."""
    with ControlPlane(tmp_path / "plane") as plane:
        api = Api(load({"KUBECONFIG": str(plane.kubeconfig)}))
        api.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": HOME}})
        operator = start_operator(KUBECONFIG=str(plane.kubeconfig), TIDEMILL_WEBHOOK_PORT="0")
        assert operator.process.wait(60.0) == 1
    assert "apply the chart's CRD first" in operator.log.read_text()
