"""Whether an object is as it was applied, and whether somebody else has put something into it."""

from __future__ import annotations

from typing import Any

import pytest

from tidemill_operator.actuators.kubernetes.api import MANAGER
from tidemill_operator.actuators.kubernetes.drift import difference, holds, repair, strangers

CONTAINER = {"name": "processor", "image": "p:1", "env": [{"name": "A", "value": "1"}]}


@pytest.mark.parametrize(
    ("reason", "wanted", "live", "expected"),
    [
        ("equal", {"spec": {"replicas": 1}}, {"spec": {"replicas": 1}}, None),
        ("the server fills in defaults", {"a": {"b": 1}}, {"a": {"b": 1, "c": 2}}, None),
        ("another value", {"a": {"b": 1}}, {"a": {"b": 2}}, ".a.b"),
        ("a member is gone", {"a": {"b": 1}}, {"a": {}}, ".a.b"),
        ("empty members are left out by the server", {"a": {}, "b": []}, {}, None),
        ("a keyed list is in another order", {"env": [{"name": "A"}]}, {"env": [{"name": "B"}, {"name": "A"}]}, None),
        ("an item of a keyed list is gone", {"env": [{"name": "A"}]}, {"env": [{"name": "B"}]}, ".env[A]"),
        (
            "deep in a keyed list",
            {"containers": [CONTAINER]},
            {"containers": [{**CONTAINER, "env": [{"name": "A", "value": "2"}]}]},
            ".containers[processor].env[A].value",
        ),
        ("a plain list counts its items", {"args": ["a"]}, {"args": ["a", "b"]}, ".args"),
        ("a plain list counts its order", {"args": ["a", "b"]}, {"args": ["b", "a"]}, ".args[0]"),
        ("an amount in other words", {"requests": {"cpu": "0.5"}}, {"requests": {"cpu": "500m"}}, None),
        ("another amount", {"requests": {"memory": "1Gi"}}, {"requests": {"memory": "1G"}}, ".requests.memory"),
        ("amounts are so only where amounts stand", {"env": "1000m"}, {"env": "1"}, ".env"),
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
        ("ours", managed("tidemill", {"f:spec": {"f:replicas": {}}}, operation="Apply"), []),
        ("a sidecar", managed("kubectl-edit", {"f:spec": SIDECAR}), ["kubectl-edit"]),
        ("an applied sidecar", managed("argocd", {"f:spec": SIDECAR}, operation="Apply"), ["argocd"]),
        ("an autoscaler", managed("hpa", {"f:spec": {"f:replicas": {}}}, subresource="scale"), []),
        ("kubectl scale of old", managed("kubectl", {"f:spec": {"f:replicas": {}}}), []),
        ("a rollout restart", managed("kubectl-rollout", {"f:spec": RESTART}), []),
        ("a controller's status", managed("kcm", {"f:status": {"f:replicas": {}}}, subresource="status"), []),
        ("a controller's annotation", managed("kcm", {"f:metadata": {"f:annotations": {"f:x": {}}}}), []),
        ("a file of a ConfigMap", managed("kubectl", {"f:data": {"f:evil.json": {}}}), ["kubectl"]),
        ("a binary file", managed("kubectl", {"f:binaryData": {"f:x": {}}}), ["kubectl"]),
        ("a restart and a sidecar", managed("both", {"f:spec": {**RESTART, **SIDECAR}}), ["both"]),
    ],
)
def test_managers_that_own_fields_of_ours_are_named(reason: str, entry: dict[str, Any], expected: list[str]) -> None:
    assert strangers({"metadata": {"managedFields": [entry]}}) == expected, reason


def test_who_says_how_many_replicas_there_are() -> None:
    live = {
        "metadata": {"managedFields": [managed("tidemill", {"f:spec": {"f:replicas": {}}}, operation="Apply")]},
    }
    assert holds(live, "tidemill", "f:spec", "f:replicas")
    assert not holds(live, "tidemill", "f:spec", "f:paused")
    assert not holds(live, "other", "f:spec", "f:replicas")


MARK = "tidemill.dev/applied"


def deployed(mark: str = "m1", *containers: str, replicas: int = 1, fields: dict[str, Any] | None = None) -> Any:
    """A Deployment as it is, or is wanted."""
    pod = {"spec": {"containers": [{"name": name} for name in ("processor", *containers)]}}
    entries = [managed(MANAGER, {"f:spec": {}}), *([managed("kubectl-edit", fields)] if fields else [])]
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
    (deployed("m0", replicas=5), ""),  # we said another number before
]


@pytest.mark.parametrize(("live", "told"), REPAIRS, ids=[told[:40] or "ours" for _, told in REPAIRS])
def test_what_is_put_back_is_told(live: Any, told: str) -> None:
    wanted = deployed()
    del wanted["metadata"]["managedFields"]
    assert repair(wanted, live) == told
