"""Tests of passes over pipelines that share workloads, and over deleted pipelines."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tidemill_operator.actuators.kubernetes.api import KINDS, PIPELINE
from tidemill_operator.cluster.queue import Result
from tidemill_operator.cluster.removal.finalizer import FINALIZER
from tidemill_operator.keys import Key

pytestmark = [pytest.mark.kubernetes, pytest.mark.integration]


def test_a_second_pipeline_does_not_restart_the_shared_workloads(
    cluster: Any, passes: Any, orders: Key, namespace: str, make: Callable[..., Key]
) -> None:
    before = {name: cluster.child(namespace, "Deployment", name) for name in ("tidemill-ingest", "tidemill-api")}
    passes.once(orders)
    (pod,) = cluster.api.list(KINDS["Pod"], namespace, selector="tidemill.dev/workload=tidemill-api")
    old_hash = pod["metadata"]["annotations"]["tidemill.dev/files"]
    clicks = make("clicks", namespace)
    passes.until(clicks, Result.SETTLED)
    for name, old in before.items():
        new = cluster.child(namespace, "Deployment", name)
        assert new["spec"] == old["spec"]
        assert {owner["uid"] for owner in new["metadata"]["ownerReferences"]} == {orders.uid, clicks.uid}
    assert set(cluster.child(namespace, "Secret", "tidemill-ingest-secrets")["data"]) == {
        "orders.api-keys.json",
        "clicks.api-keys.json",
    }
    selector = "tidemill.dev/workload=tidemill-api"
    (pod,) = cluster.api.list(KINDS["Pod"], namespace, selector=selector)
    assert pod["metadata"]["annotations"]["tidemill.dev/files"] != old_hash, "the pod's node keeps old files"
    versions = cluster.versions(namespace)
    passes.once(orders)
    assert {name: versions[name] for name in versions if name[0] != PIPELINE.kind} == {
        name: version for name, version in cluster.versions(namespace).items() if name[0] != PIPELINE.kind
    }, "a pass over the first pipeline has changed an object"


def test_shared_objects_are_deleted_with_the_last_pipeline(
    cluster: Any, passes: Any, orders: Key, namespace: str, make: Callable[..., Key], eventually: Any
) -> None:
    clicks = make("clicks", namespace)
    passes.until(clicks, Result.SETTLED)
    cluster.api.delete(PIPELINE, namespace, "orders")
    passes.until(orders, Result.GONE)
    assert cluster.child(namespace, "Deployment", "tidemill-api")
    assert set(cluster.child(namespace, "Secret", "tidemill-ingest-secrets")["data"]) == {"clicks.api-keys.json"}
    configs = [item for (_, name), item in cluster.children(namespace).items() if name.startswith("tidemill-pipelines")]
    assert [file for item in configs for file in item["data"]] == ["clicks.json"]
    cluster.api.delete(PIPELINE, namespace, "clicks")
    passes.until(clicks, Result.GONE)
    eventually(lambda: cluster.children(namespace) == {}, what="all objects are deleted")


def test_data_are_kept_when_the_resource_is_deleted(
    cluster: Any, passes: Any, data: Any, orders: Key, namespace: str, eventually: Any
) -> None:
    cluster.api.delete(PIPELINE, namespace, "orders")
    passes.until(orders, Result.GONE)
    eventually(lambda: cluster.children(namespace) == {}, what="all objects are deleted")
    assert len(data.topics(namespace)) == 3
    assert data.has_schema(namespace, "orders")


def test_data_are_deleted_with_the_resource_if_the_reclaim_policy_is_delete(
    cluster: Any, passes: Any, data: Any, namespace: str, make: Callable[..., Key], eventually: Any
) -> None:
    key = make("orders", namespace, reclaimPolicy="Delete")
    passes.until(key, Result.SETTLED)
    assert cluster.get(key)["metadata"]["finalizers"] == [FINALIZER]
    cluster.api.delete(PIPELINE, namespace, "orders")
    passes.until(key, Result.GONE)
    assert data.topics(namespace) == set()
    assert not data.has_schema(namespace, "orders")
    eventually(lambda: cluster.children(namespace) == {}, what="all objects are deleted")


def test_the_finalizer_is_set_only_while_the_reclaim_policy_is_delete(cluster: Any, passes: Any, orders: Key) -> None:
    for policy, expected in (("Delete", [FINALIZER]), ("Retain", [])):
        cluster.patch(orders, spec={"reclaimPolicy": policy})
        passes.until(orders, Result.SETTLED)
        assert cluster.get(orders)["metadata"].get("finalizers", []) == expected
