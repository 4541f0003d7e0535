"""Tests of passes after the spec or an annotation of a pipeline has changed."""

from __future__ import annotations

from typing import Any

import pytest

from tidemill_operator.actuators.kubernetes.api import DEPLOYMENT
from tidemill_operator.cluster.queue import Result
from tidemill_operator.keys import Key

pytestmark = [pytest.mark.kubernetes, pytest.mark.integration]


def test_objects_that_the_spec_no_longer_needs_are_deleted(
    cluster: Any, passes: Any, orders: Key, namespace: str
) -> None:
    cluster.patch(orders, spec={"api": {"enabled": False}})
    passes.until(orders, Result.SETTLED)
    assert ("Service", "orders-api") not in cluster.children(namespace)
    assert ("Deployment", "tidemill-api") not in cluster.children(namespace)
    assert ("Secret", "tidemill-api-secrets") not in cluster.children(namespace)
    assert set(cluster.get(orders)["status"]["endpoints"]) == {"ingest"}
    cluster.patch(orders, spec={"api": {"enabled": True, "dedicated": True}})
    passes.until(orders, Result.SETTLED)
    assert ("Deployment", "orders-api") in cluster.children(namespace)
    assert ("Deployment", "tidemill-api") not in cluster.children(namespace)


def test_a_pipeline_remains_ready_while_a_changed_spec_rolls_out(
    cluster: Any, passes: Any, orders: Key, namespace: str
) -> None:
    cluster.patch(orders, spec={"processor": {"replicas": 2}})
    assert passes.once(orders) is Result.WAITING
    assert cluster.condition(orders, "ProcessorsReady") == ("True", "Waiting")
    assert cluster.condition(orders, "Ready") == ("True", "Applied")
    assert cluster.condition(orders, "Progressing") == ("True", "Waiting")
    passes.until(orders, Result.SETTLED)
    assert cluster.condition(orders, "Progressing") == ("False", "Applied")
    assert cluster.child(namespace, "Deployment", "orders-processor")["status"]["readyReplicas"] == 2
    assert cluster.get(orders)["status"]["observedGeneration"] == 2


def test_suspending_stops_the_processors_and_keeps_the_api(
    cluster: Any, passes: Any, orders: Key, namespace: str
) -> None:
    cluster.patch(orders, spec={"suspend": True})
    passes.until(orders, Result.SETTLED)
    assert cluster.child(namespace, "Deployment", "orders-processor")["spec"]["replicas"] == 0
    assert cluster.child(namespace, "Deployment", "tidemill-api")["spec"]["replicas"] == 1
    assert cluster.condition(orders, "Suspended")[0] == "True"


def test_an_external_autoscaler_takes_over_the_replicas_until_scaling_is_removed(
    cluster: Any, passes: Any, orders: Key, namespace: str
) -> None:
    """The operator stops setting replicas without a drop to one, and keeps the autoscaler's number."""
    cluster.patch(orders, spec={"processor": {"replicas": 2}})
    passes.until(orders, Result.SETTLED)
    cluster.patch(orders, spec={"processor": {"scaling": {"mode": "external"}}})
    passes.until(orders, Result.SETTLED)
    assert cluster.child(namespace, "Deployment", "orders-processor")["spec"]["replicas"] == 2
    path = f"/apis/apps/v1/namespaces/{namespace}/deployments/orders-processor/scale"
    content = "application/merge-patch+json"
    cluster.api._call("PATCH", path, body={"spec": {"replicas": 4}}, query={"fieldManager": "hpa"}, content=content)
    passes.until(orders, Result.SETTLED)
    assert cluster.child(namespace, "Deployment", "orders-processor")["spec"]["replicas"] == 4
    cluster.patch(orders, spec={"processor": {"scaling": None, "replicas": 2}})
    passes.until(orders, Result.SETTLED)
    assert cluster.child(namespace, "Deployment", "orders-processor")["spec"]["replicas"] == 2


def test_a_paused_pipeline_is_not_repaired(cluster: Any, passes: Any, orders: Key, namespace: str) -> None:
    cluster.patch(orders, metadata={"annotations": {"tidemill.dev/paused": "true"}})
    cluster.api.delete(DEPLOYMENT, namespace, "orders-processor")
    assert passes.once(orders) is Result.SETTLED
    assert cluster.child(namespace, "Deployment", "orders-processor") == {}
    assert cluster.condition(orders, "ReconciliationPaused")[0] == "True"
    assert cluster.condition(orders, "ProcessorsReady")[0] == cluster.condition(orders, "Ready")[0] == "False"
    cluster.patch(orders, metadata={"annotations": {"tidemill.dev/paused": None}})
    passes.until(orders, Result.SETTLED)
    assert cluster.child(namespace, "Deployment", "orders-processor")
    assert cluster.condition(orders, "ReconciliationPaused")[0] == ""
