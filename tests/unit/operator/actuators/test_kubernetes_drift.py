"""Tests of drift: whether a live object equals the applied one, and whether others have changed fields of it."""

from __future__ import annotations

from typing import Any

import pytest

from tidemill_operator.actuators.kubernetes.api import FIELD_MANAGER
from tidemill_operator.actuators.kubernetes.drift import describe_repair, difference, foreign_managers, has_applied

CONTAINER = {"name": "processor", "image": "p:1", "env": [{"name": "A", "value": "1"}]}


@pytest.mark.parametrize(
    ("reason", "wanted", "live", "expected"),
    [
        ("both are equal", {"spec": {"replicas": 1}}, {"spec": {"replicas": 1}}, None),
        ("the server fills in defaults", {"a": {"b": 1}}, {"a": {"b": 1, "c": 2}}, None),
        ("another value", {"a": {"b": 1}}, {"a": {"b": 2}}, ".a.b"),
        ("a member is missing", {"a": {"b": 1}}, {"a": {}}, ".a.b"),
        ("the server omits empty members", {"a": {}, "b": []}, {}, None),
        ("a keyed list is in another order", {"env": [{"name": "A"}]}, {"env": [{"name": "B"}, {"name": "A"}]}, None),
        ("an item of a keyed list is missing", {"env": [{"name": "A"}]}, {"env": [{"name": "B"}]}, ".env[A]"),
        (
            "deep in a keyed list",
            {"containers": [CONTAINER]},
            {"containers": [{**CONTAINER, "env": [{"name": "A", "value": "2"}]}]},
            ".containers[processor].env[A].value",
        ),
        ("a plain list counts its items", {"args": ["a"]}, {"args": ["a", "b"]}, ".args"),
        ("a plain list counts its order", {"args": ["a", "b"]}, {"args": ["b", "a"]}, ".args[0]"),
        ("the same amount in another notation", {"requests": {"cpu": "0.5"}}, {"requests": {"cpu": "500m"}}, None),
        ("another amount", {"requests": {"memory": "1Gi"}}, {"requests": {"memory": "1G"}}, ".requests.memory"),
        ("only resources are compared as amounts", {"env": "1000m"}, {"env": "1"}, ".env"),
        (
            "a port of a Service",
            {"ports": [{"port": 80, "protocol": "TCP", "targetPort": "x"}]},
            {"ports": [{"port": 80, "protocol": "TCP"}]},
            ".ports[80].targetPort",
        ),
        (
            "two protocols at one port",
            {"ports": [{"port": 53, "protocol": "UDP"}, {"port": 53, "protocol": "TCP"}]},
            {"ports": [{"port": 53, "protocol": "UDP"}, {"port": 53, "protocol": "TCP"}]},
            None,
        ),
    ],
)
def test_the_first_member_that_differs_is_named(reason: str, wanted: Any, live: Any, expected: str | None) -> None:
    assert difference(wanted, live) == expected, reason


def managed(
    manager: str, fields: dict[str, Any], *, operation: str = "Update", subresource: str = ""
) -> dict[str, Any]:
    return {"manager": manager, "operation": operation, "subresource": subresource, "fieldsV1": fields}


SIDECAR = {"f:template": {"f:spec": {"f:containers": {'k:{"name":"spy"}': {".": {}, "f:name": {}, "f:image": {}}}}}}
RESTART = {"f:template": {"f:metadata": {"f:annotations": {".": {}, "f:kubectl.kubernetes.io/restartedAt": {}}}}}


@pytest.mark.parametrize(
    ("reason", "entry", "expected"),
    [
        ("our own fields", managed("tidemill", {"f:spec": {"f:replicas": {}}}, operation="Apply"), []),
        ("a sidecar", managed("kubectl-edit", {"f:spec": SIDECAR}), ["kubectl-edit"]),
        ("an applied sidecar", managed("argocd", {"f:spec": SIDECAR}, operation="Apply"), ["argocd"]),
        ("an autoscaler", managed("hpa", {"f:spec": {"f:replicas": {}}}, subresource="scale"), []),
        ("kubectl scale of an old version", managed("kubectl", {"f:spec": {"f:replicas": {}}}), []),
        ("a rollout restart", managed("kubectl-rollout", {"f:spec": RESTART}), []),
        ("a controller's status", managed("kcm", {"f:status": {"f:replicas": {}}}, subresource="status"), []),
        ("a controller's annotation", managed("kcm", {"f:metadata": {"f:annotations": {"f:x": {}}}}), []),
        ("a file of a ConfigMap", managed("kubectl", {"f:data": {"f:evil.json": {}}}), ["kubectl"]),
        ("a binary file", managed("kubectl", {"f:binaryData": {"f:x": {}}}), ["kubectl"]),
        ("a restart and a sidecar", managed("both", {"f:spec": {**RESTART, **SIDECAR}}), ["both"]),
    ],
)
def test_managers_that_own_fields_of_ours_are_named(reason: str, entry: dict[str, Any], expected: list[str]) -> None:
    assert foreign_managers({"metadata": {"managedFields": [entry]}}) == expected, reason


def test_the_manager_of_a_field_is_known() -> None:
    live = {
        "metadata": {"managedFields": [managed("tidemill", {"f:spec": {"f:replicas": {}}}, operation="Apply")]},
    }
    assert has_applied(live, "tidemill", "f:spec", "f:replicas")
    assert not has_applied(live, "tidemill", "f:spec", "f:paused")
    assert not has_applied(live, "other", "f:spec", "f:replicas")


MARK = "tidemill.dev/applied"


def deployed(mark: str = "m1", *containers: str, replicas: int = 1, fields: dict[str, Any] | None = None) -> Any:
    """Return a Deployment, as a live or a wanted object."""
    pod = {"spec": {"containers": [{"name": name} for name in ("processor", *containers)]}}
    entries = [managed(FIELD_MANAGER, {"f:spec": {}}), *([managed("kubectl-edit", fields)] if fields else [])]
    metadata = {"name": "orders-processor", "annotations": {MARK: mark}, "managedFields": entries}
    return {"kind": "Deployment", "metadata": metadata, "spec": {"replicas": replicas, "template": pod}}


SELECTOR = {"f:spec": {"f:template": {"f:spec": {"f:nodeSelector": {"f:disk": {}}}}}}
REPAIRS = [
    (
        deployed("m1", "spy", fields={"f:spec": SIDECAR}),
        "removed container spy from Deployment orders-processor, which kubectl-edit had added",
    ),
    (
        deployed(fields=SELECTOR),
        "removed spec.template.spec.nodeSelector.disk from Deployment orders-processor, which kubectl-edit had added",
    ),
    (deployed(replicas=5), "restored spec.replicas of Deployment orders-processor"),
    (deployed("m0", replicas=5), ""),  # the formerly applied object had another number
]


@pytest.mark.parametrize(("live", "message"), REPAIRS, ids=[message[:40] or "ours" for _, message in REPAIRS])
def test_a_repair_is_described(live: Any, message: str) -> None:
    wanted = deployed()
    del wanted["metadata"]["managedFields"]
    assert describe_repair(wanted, live) == message
