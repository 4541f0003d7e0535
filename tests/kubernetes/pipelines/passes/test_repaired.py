"""Tests that a pass repairs objects which others have edited or deleted."""

from __future__ import annotations

import base64
import json
from typing import Any

import psycopg
import pytest

from tidemill_operator.actuators.kubernetes.api import DEPLOYMENT, KINDS, SECRET, SERVICE, Document
from tidemill_operator.cluster.queue import Result
from tidemill_operator.keys import Key

pytestmark = [pytest.mark.kubernetes, pytest.mark.integration]


def strategic(cluster: Any, kind: Any, namespace: str, name: str, patch: Document) -> None:
    """Patch an object as `kubectl edit` does: as another field manager, without apply."""
    root = "/apis/" if "/" in kind.api_version else "/api/"
    path = f"{root}{kind.api_version}/namespaces/{namespace}/{kind.plural}/{name}"
    content = "application/strategic-merge-patch+json"
    cluster.api._call("PATCH", path, body=patch, query={"fieldManager": "somebody"}, content=content)


def in_container(name: str, **members: Any) -> Document:
    return {"spec": {"template": {"spec": {"containers": [{"name": name, **members}]}}}}


EDITS: dict[str, tuple[Any, str, Document]] = {
    "a container is added": (
        DEPLOYMENT,
        "orders-processor",
        {"spec": {"template": {"spec": {"containers": [{"name": "spy", "image": "spy:1"}]}}}},
    ),
    "an environment variable is added": (
        DEPLOYMENT,
        "orders-processor",
        in_container("processor", env=[{"name": "EVIL", "value": "1"}]),
    ),
    "a port is added": (
        DEPLOYMENT,
        "tidemill-ingest",
        in_container("ingest", ports=[{"name": "more", "containerPort": 9999}]),
    ),
    "the image is changed": (DEPLOYMENT, "tidemill-api", in_container("api", image="other:1")),
    "replicas are changed": (DEPLOYMENT, "orders-processor", {"spec": {"replicas": 5}}),
    "a node selector is added": (
        DEPLOYMENT,
        "orders-processor",
        {"spec": {"template": {"spec": {"nodeSelector": {"disk": "ssd"}}}}},
    ),
    "a Service gets a port": (
        SERVICE,
        "orders-api",
        {"spec": {"ports": [{"name": "x", "port": 9, "protocol": "TCP"}]}},
    ),
    "a Service selects other pods": (SERVICE, "orders-api", {"spec": {"selector": {"more": "x"}}}),
    "a label is removed": (
        DEPLOYMENT,
        "orders-processor",
        {"metadata": {"labels": {"tidemill.dev/owner-uid": None}}},
    ),
    "owners are removed": (DEPLOYMENT, "orders-processor", {"metadata": {"ownerReferences": None}}),
    "a file is added to the shared configs": (KINDS["ConfigMap"], "tidemill-pipelines", {"data": {"evil.json": "{}"}}),
    "a config is changed": (KINDS["ConfigMap"], "orders-config", {"data": {"orders.json": "{}"}}),
    "a budget is loosened": (KINDS["PodDisruptionBudget"], "tidemill-api", {"spec": {"maxUnavailable": 9}}),
    "a policy is opened": (
        KINDS["NetworkPolicy"],
        "orders-processor",
        {"spec": {"egress": [{}]}},
    ),
}


def content(child: Document) -> Document:
    """Return the parts of an object that the operator sets."""
    metadata = child["metadata"]
    kept = {name: metadata.get(name) for name in ("labels", "ownerReferences")}
    return {"metadata": kept, "spec": child.get("spec"), "data": child.get("data")}


@pytest.mark.parametrize("edit", EDITS)
@pytest.mark.fault("child-edited", "the next pass reverts the edit")
def test_a_pass_reverts_edits_of_others_in_place(
    cluster: Any, passes: Any, orders: Key, namespace: str, edit: str
) -> None:
    kind, name, patch = EDITS[edit]
    if name == "tidemill-pipelines":
        name = next(child for _, child in cluster.children(namespace) if child.startswith(name))
    before = cluster.child(namespace, kind.kind, name)
    strategic(cluster, kind, namespace, name, patch)
    assert content(cluster.child(namespace, kind.kind, name)) != content(before), "the edit has changed nothing"
    passes.until(orders, Result.SETTLED)
    after = cluster.child(namespace, kind.kind, name)
    assert content(after) == content(before)
    assert after["metadata"]["uid"] == before["metadata"]["uid"], "the object was recreated, not changed"
    managers = {entry["manager"] for entry in after["metadata"]["managedFields"] if "f:spec" in entry["fieldsV1"]}
    assert "somebody" not in managers
    passes.until(orders, Result.SETTLED)
    passes.api.written.clear()
    passes.until(orders, Result.SETTLED)
    assert passes.api.written == [], "another pass has written again"


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("Deployment", "orders-processor"),
        ("Deployment", "tidemill-api"),
        ("Service", "orders-ingest"),
        ("ServiceAccount", "orders-processor"),
        ("ConfigMap", "orders-config"),
        ("PodDisruptionBudget", "orders-processor"),
        ("NetworkPolicy", "orders-processor"),
        ("Secret", "tidemill-api-secrets"),
        ("Secret", "orders-credentials"),
    ],
)
@pytest.mark.fault("child-deleted", "the next pass recreates the object")
def test_a_pass_recreates_a_deleted_object(
    cluster: Any, passes: Any, orders: Key, namespace: str, kind: str, name: str
) -> None:
    cluster.api.delete(KINDS[kind], namespace, name)
    passes.until(orders, Result.SETTLED)
    assert cluster.child(namespace, kind, name)


def test_a_deleted_login_is_replaced_in_postgres_and_in_the_processors(
    cluster: Any, passes: Any, servers: Any, orders: Key
) -> None:
    """The new logins work in Postgres, and the processors restart with them."""
    namespace = orders.namespace
    before = cluster.child(namespace, "Deployment", "orders-processor")
    cluster.api.delete(SECRET, namespace, "orders-credentials")
    passes.until(orders, Result.SETTLED)
    data = cluster.child(namespace, "Secret", "orders-credentials")["data"]
    address = servers.postgres
    for file in ("writer.json", "reader.json"):
        login = json.loads(base64.b64decode(data[file]))
        psycopg.connect(
            host=address.host,
            port=address.port,
            dbname=address.database,
            user=login["user"],
            password=login["password"],
        ).close()
    after = cluster.child(namespace, "Deployment", "orders-processor")
    assert after["spec"]["template"]["metadata"]["annotations"] != before["spec"]["template"]["metadata"]["annotations"]
