"""Tests of webhooks and MQTT in a cluster, by single passes on a real API server.

They check the copies of users' Secrets and the Deployment of an MQTT bridge.
"""

from __future__ import annotations

import base64
from collections.abc import Callable
from typing import Any

import pytest

from tidemill_operator.actuators.kubernetes.api import SECRET
from tidemill_operator.cluster.queue import Result
from tidemill_operator.keys import Key

pytestmark = [pytest.mark.kubernetes, pytest.mark.integration]

SOURCE = {
    "topic": {"partitions": 2, "replicationFactor": 1},
    "fields": [{"name": "country", "type": "string"}],
    "webhooks": [{"name": "github", "signature": "github", "secretRef": {"name": "hooks", "key": "one"}}],
    "mqtt": {"broker": "mqtts://broker.example", "topics": ["plant/+/temp"], "secretRef": {"name": "broker"}},
}
AGGREGATION = {
    "name": "all", "window": {"type": "tumbling", "size": "1m"}, "metrics": [{"name": "events", "function": "count"}],
}  # fmt: skip


def shared(cluster: Any, namespace: str) -> dict[str, str]:
    """Return the files of the Secret that ingest mounts, decoded."""
    data = cluster.child(namespace, "Secret", "tidemill-ingest-secrets")["data"]
    return {name: base64.b64decode(text).decode() for name, text in data.items()}


def secret(namespace: str, **data: str) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": "hooks", "namespace": namespace},
        "stringData": data,
    }


def test_the_secret_of_a_webhook_is_copied_and_a_missing_one_is_named(
    cluster: Any, passes: Any, namespace: str, make: Callable[..., Key], eventually: Callable[..., Any]
) -> None:
    """A pipeline without the Secret is ready and names it. A pass copies a change, and removes an unused key."""
    inputs = make("inputs", namespace, source=SOURCE, aggregations=[AGGREGATION])

    def ready_and_named() -> bool:
        passes.once(inputs)
        conditions = {c["type"]: c for c in cluster.get(inputs)["status"]["conditions"]}
        ready = conditions["Ready"]["status"] == "True"
        return ready and "Secret hooks has no key one; add the key for" in conditions["IngestReady"]["message"]

    eventually(ready_and_named, what="the pipeline is ready without the Secret")
    assert "inputs.webhook-github" not in shared(cluster, namespace)
    cluster.api.create(secret(namespace, one="swordfish", other="x"))
    passes.until(inputs, Result.SETTLED)
    assert shared(cluster, namespace)["inputs.webhook-github"] == "swordfish"
    assert {name for name in shared(cluster, namespace) if "webhook" in name} == {"inputs.webhook-github"}
    cluster.api.merge(SECRET, namespace, "hooks", {"stringData": {"one": "swordfish\nmarlin"}})
    passes.until(inputs, Result.SETTLED)
    assert shared(cluster, namespace)["inputs.webhook-github"] == "swordfish\nmarlin"
    before = cluster.versions(namespace)
    assert passes.once(inputs) is Result.SETTLED
    assert cluster.versions(namespace) == before

    cluster.patch(inputs, spec={"source": {"webhooks": None, "mqtt": None}})
    passes.until(inputs, Result.SETTLED)
    assert "inputs.webhook-github" not in shared(cluster, namespace)
    assert ("Deployment", "inputs-mqtt") not in cluster.children(namespace)


def test_a_bridge_is_a_deployment_with_one_replica(
    cluster: Any, passes: Any, namespace: str, make: Callable[..., Key]
) -> None:
    """The API server accepts the Deployment, which mounts the broker's Secret and the pipeline's config."""
    cluster.api.create(secret(namespace, one="swordfish"))
    inputs = make("inputs", namespace, source=SOURCE, aggregations=[AGGREGATION])
    passes.until(inputs, Result.SETTLED)
    bridge = cluster.child(namespace, "Deployment", "inputs-mqtt")["spec"]
    assert (bridge["replicas"], bridge["strategy"]["type"]) == (1, "Recreate")
    volumes = {volume["name"]: volume for volume in bridge["template"]["spec"]["volumes"]}
    assert volumes["mqtt"]["secret"]["secretName"] == "broker"
    assert volumes["pipelines"]["configMap"]["name"] == "inputs-config"
    assert cluster.condition(inputs, "IngestReady") == ("True", "Applied")
