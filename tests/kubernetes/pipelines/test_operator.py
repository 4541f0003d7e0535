"""Tests of the operator as a process on a real API server, Kafka and Postgres.

They cover watches, leadership, the webhook, restarts of the API server and deleted namespaces.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from kube.controlplane import ControlPlane
from tidemill_contract.resource.validate import check_document
from tidemill_operator.actuators.kubernetes.api import (
    DEPLOYMENT,
    LEASE,
    PIPELINE,
    SERVICE,
    WEBHOOKS,
    Api,
    Document,
    Kind,
    load_configuration,
)
from tidemill_operator.errors import TidemillError
from tidemill_operator.keys import Key

pytestmark = [pytest.mark.kubernetes, pytest.mark.integration, pytest.mark.slow]

HOME = "tidemill-system"
NAMESPACE = Kind("v1", "Namespace", "namespaces", namespaced=False)


@pytest.fixture
def lead(start_operator: Callable[..., Any], eventually: Any) -> Callable[..., Any]:
    """Return a function that starts an operator and waits until it leads."""

    def start(**environment: str) -> Any:
        operator = start_operator(**environment)
        eventually(operator.leads, what=f"the operator leads: {operator.log.read_text()[-2000:]}")
        return operator

    return start


def test_a_pipeline_is_created_edited_repaired_and_deleted_by_watching(
    cluster: Any, lead: Callable[..., Any], namespace: str, make: Callable[..., Key], eventually: Any
) -> None:
    """The drift interval is longer than the test, and each pass follows an event of a watch."""
    operator = lead(TIDEMILL_DRIFT_SECONDS="3600")
    key = make("orders", namespace)
    cluster.await_ready(key)
    eventually(lambda: cluster.get(key)["status"].get("lag") == 0, seconds=30, what="the lag is in the status")
    lag = f'tidemill_pipeline_lag_events{{namespace="{namespace}",pipeline="orders"}} 0.0'
    assert lag in operator.ask("/metrics")[1].splitlines()
    cluster.patch(key, spec={"processor": {"replicas": 2}})
    cluster.await_ready(key, generation=2)
    for name in ("orders-processor", "tidemill-api"):
        cluster.api.delete(DEPLOYMENT, namespace, name)
    eventually(
        lambda: all(cluster.child(namespace, "Deployment", n) for n in ("orders-processor", "tidemill-api")),
        what="the Deployments are recreated",
    )
    cluster.await_ready(key)
    cluster.api.delete(PIPELINE, namespace, "orders")
    eventually(lambda: cluster.children(namespace) == {}, what="all objects are deleted")
    metrics = operator.ask("/metrics")[1]
    assert 'tidemill_operator_reconciliations_total{result="settled"}' in metrics
    assert 'tidemill_operator_reconciliation_duration_seconds_count{phase="topics"}' in metrics
    assert [operator.ask(path)[0] for path in ("/livez", "/readyz", "/health")] == [200, 200, 200]
    assert operator.stop() == 0


def test_drift_passes_over_a_settled_pipeline_write_nothing(
    cluster: Any, lead: Callable[..., Any], namespace: str, make: Callable[..., Key], eventually: Any
) -> None:
    operator = lead(TIDEMILL_DRIFT_SECONDS="1")
    key = make("orders", namespace)
    cluster.await_ready(key)

    def passes() -> float:
        lines = operator.ask("/metrics")[1].splitlines()
        prefix = 'tidemill_operator_reconciliations_total{result="settled"} '
        return next((float(line.removeprefix(prefix)) for line in lines if line.startswith(prefix)), 0.0)

    eventually(lambda: cluster.get(key)["status"].get("lag") == 0, seconds=30, what="the lag is in the status")
    eventually(lambda: passes() >= 3, what="the pipeline has settled")
    before, count = cluster.versions(namespace), passes()
    eventually(lambda: passes() >= count + 5, what="five more passes")
    assert cluster.versions(namespace) == before


def test_concurrent_passes_keep_every_pipeline_in_the_shared_objects(
    cluster: Any, lead: Callable[..., Any], namespace: str, make: Callable[..., Key]
) -> None:
    """Passes over five new pipelines of one namespace overlap."""
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
def test_another_replica_takes_over_from_a_killed_leader(
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
    eventually(lambda: second.ask("/readyz")[0] == 200, what="the second operator is ready without leading")
    assert not second.leads()
    first.stop(signal.SIGKILL)
    cluster.api.delete(DEPLOYMENT, namespace, "orders-processor")
    eventually(second.leads, what="the second operator leads")
    eventually(
        lambda: cluster.child(namespace, "Deployment", "orders-processor"),
        what="the second operator repairs the Deployment",
    )
    cluster.await_ready(key)


@pytest.mark.matrix
@pytest.mark.fault("leader-frozen", "another replica leads; the frozen leader ends when it wakes, and changes nothing")
def test_a_frozen_leader_ends_when_it_wakes_and_its_successor_leads(
    cluster: Any,
    lead: Callable[..., Any],
    start_operator: Callable[..., Any],
    namespace: str,
    make: Callable[..., Key],
    eventually: Any,
) -> None:
    """Both pipelines are ready afterwards, although both operators ran at the same time."""
    first = lead()
    key = make("orders", namespace)
    cluster.await_ready(key)
    second = start_operator()
    first.process.send_signal(signal.SIGSTOP)
    eventually(second.leads, what="the second operator leads")
    clicks = make("clicks", namespace)
    first.process.send_signal(signal.SIGCONT)
    eventually(lambda: first.process.poll() is not None, seconds=30.0, what="the first operator ends")
    assert first.process.returncode == 1
    cluster.await_ready(clicks)
    cluster.await_ready(key)


def test_a_leader_that_stops_releases_the_lease(cluster: Any, lead: Callable[..., Any]) -> None:
    operator = lead()
    assert operator.stop() == 0
    assert cluster.api.get(LEASE, HOME, "tidemill-operator")["spec"]["holderIdentity"] == ""


@pytest.mark.fault("apiserver-restarted", "a Deployment deleted after the restart is recreated within 2 min")
def test_the_operator_repairs_after_a_restart_of_the_api_server(
    cluster: Any,
    lead: Callable[..., Any],
    start_operator: Callable[..., Any],
    namespace: str,
    make: Callable[..., Key],
    eventually: Any,
) -> None:
    """The operator continues, or it ends because its Lease has expired. Then the test restarts it, as a pod would."""
    operator = lead()
    key = make("orders", namespace)
    cluster.await_ready(key)
    cluster.plane.restart_apiserver()
    if operator.process.poll() is not None or not operator.leads():
        operator = start_operator()
    eventually(lambda: cluster.get(key), what="the API server answers")
    cluster.api.delete(DEPLOYMENT, namespace, "orders-processor")

    def repaired() -> Any:
        nonlocal operator
        if operator.process.poll() is not None:
            operator = start_operator()
        return cluster.child(namespace, "Deployment", "orders-processor")

    eventually(repaired, seconds=120.0, what="a deleted Deployment is recreated")
    cluster.await_ready(key)


@pytest.mark.fault("namespace-deleted", "the namespace disappears; nothing is created in it again")
def test_a_deleted_namespace_disappears_with_its_pipelines(
    cluster: Any, lead: Callable[..., Any], namespace: str, make: Callable[..., Key], eventually: Any
) -> None:
    """One pipeline keeps its data, and one deletes them. Neither blocks the namespace."""
    operator = lead()
    keys = [make("orders", namespace), make("clicks", namespace, reclaimPolicy="Delete")]
    for key in keys:
        cluster.await_ready(key)
    cluster.api.delete(NAMESPACE, None, namespace)
    eventually(
        lambda: cluster.api.get(NAMESPACE, None, namespace) is None, seconds=120.0, what="the namespace is deleted"
    )
    assert "Traceback" not in operator.log.read_text()


def test_an_operator_with_watched_namespaces_ignores_the_others(
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
    """Return a function that registers the webhook of an operator on this machine, by its port.

    The API server reaches the webhook under the name of the Service.
    """

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


def test_the_webhook_refuses_with_the_message_of_validate(
    cluster: Any,
    lead: Callable[..., Any],
    admission: Callable[[int], None],
    namespace: str,
    make: Callable[..., Key],
    eventually: Any,
) -> None:
    """No rule of the CRD finds the first fault. The API server's own message for the second fault is unclear."""
    operator = lead()
    admission(operator.webhook_port)
    spec = {"transform": {"filter": "amount + 1"}}

    def refusal_of(spec: Mapping[str, Any], text: str) -> str:
        """Return the refusal if it contains `text`, else an empty string.

        The API server ignores the webhook while the webhook has no CA bundle, or does not answer in time.
        """
        try:
            key = make("orders", namespace, **spec)
        except TidemillError as error:
            return str(error) if text in str(error) else ""
        cluster.api.delete(PIPELINE, namespace, key.name)
        return ""

    whole = yaml.safe_load((Path(__file__).parents[3] / "crds" / "examples" / "flights.yaml").read_text())
    whole["spec"]["transform"] = {"filter": "dep_delay + 1"}
    _, faults = check_document(whole)
    webhook = 'admission webhook "analyticspipelines.tidemill.dev" denied the request'
    text = eventually(lambda: refusal_of(spec, webhook), what="the webhook refuses the pipeline")
    assert "spec.transform.filter" in text
    assert faults[0].message in text
    fields = [{"name": True, "type": "string"}, {"name": "amount", "type": "number"}]
    source = {"topic": {"partitions": 2, "replicationFactor": 1}, "fields": fields}
    refusal = "spec.source.fields[0].name: is a boolean, not a text (got true); put the value in quotes"
    eventually(lambda: refusal_of({"source": source}, refusal), what="the refusal has the webhook's own message")
    key = make("orders", namespace)
    cluster.await_ready(key)


@pytest.mark.fault("new-operator-without-its-crd", "the operator ends and names the remedy")
def test_an_operator_without_its_crd_ends_with_a_remedy(start_operator: Callable[..., Any], tmp_path: Path) -> None:
    with ControlPlane(tmp_path / "plane") as plane:
        api = Api(load_configuration({"KUBECONFIG": str(plane.kubeconfig)}))
        api.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": HOME}})
        operator = start_operator(KUBECONFIG=str(plane.kubeconfig), TIDEMILL_WEBHOOK_PORT="0")
        assert operator.process.wait(60.0) == 1
    assert "apply the chart's CRD first" in operator.log.read_text()
