"""A cluster with an administrator's rights, and a small pipeline for tests."""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from typing import Any

import waiting
from kube.controlplane import ControlPlane
from tidemill_operator.actuators.kubernetes.api import KINDS, PIPELINE, Api, Document
from tidemill_operator.errors import TidemillError
from tidemill_operator.keys import Key
from tidemill_operator.plan.render import object_metadata

# Waiting repeats a call while a server does not answer.
eventually = functools.partial(waiting.eventually, seconds=60.0, retry_on=(TidemillError,))
CHILDREN = ("Deployment", "Service", "ConfigMap", "ServiceAccount", "PodDisruptionBudget", "NetworkPolicy", "Secret")


def pipeline(name: str, namespace: str, **spec: Any) -> Document:
    """Return the resource of a pipeline that counts orders by country; `spec` replaces members of the spec."""
    return {
        "apiVersion": PIPELINE.api_version,
        "kind": PIPELINE.kind,
        "metadata": {"name": name, "namespace": namespace},
        "spec": {
            "source": {
                "topic": {"partitions": 2, "replicationFactor": 1},
                "fields": [{"name": "country", "type": "string"}, {"name": "amount", "type": "number"}],
            },
            "aggregations": [
                {
                    "name": "by_country",
                    "groupBy": ["country"],
                    "window": {"type": "tumbling", "size": "1m"},
                    "metrics": [{"name": "orders", "function": "count"}],
                }
            ],
            **spec,
        },
    }


@dataclass
class Cluster:
    """Access to the cluster with an administrator's rights.

    Attributes:
        held: namespaces whose pods are not scheduled.
    """

    plane: ControlPlane
    api: Api
    held: set[str] = field(default_factory=set)

    def create(self, document: Document) -> Key:
        """Create a pipeline and return its key."""
        metadata = self.api.create(document)["metadata"]
        return Key(metadata["namespace"], metadata["name"], metadata["uid"])

    def get(self, key: Key) -> Document:
        """Return the resource of a pipeline, or an empty document if it does not exist."""
        return self.api.get(PIPELINE, key.namespace, key.name) or {}

    def patch(self, key: Key, **members: Any) -> None:
        """Merge members into the resource of a pipeline."""
        self.api.merge(PIPELINE, key.namespace, key.name, members)

    def condition(self, key: Key, kind: str) -> tuple[str, str]:
        """Return status and reason of a condition, or empty strings if the condition is missing."""
        conditions = self.get(key).get("status", {}).get("conditions", ())
        condition = next((item for item in conditions if item["type"] == kind), {"status": "", "reason": ""})
        return condition["status"], condition["reason"]

    def await_ready(self, key: Key, *, generation: int | None = None, seconds: float = 90.0) -> None:
        """Wait until a pipeline is ready and not progressing, at this generation if `generation` is given."""

        def ready() -> bool:
            status = self.get(key).get("status", {})
            seen = generation is None or status.get("observedGeneration") == generation
            states = [self.condition(key, kind)[0] for kind in ("Ready", "Progressing")]
            return seen and states == ["True", "False"]

        eventually(ready, seconds=seconds, what=f"{key} is ready: {self.get(key).get('status')}")

    def children(self, namespace: str) -> dict[tuple[str, str], Document]:
        """Return all objects that the operator has created in a namespace, by kind and name."""
        selector = f"{object_metadata.MANAGED_BY}={object_metadata.MANAGER}"
        return {
            (kind, item["metadata"]["name"]): item
            for kind in CHILDREN
            for item in self.api.list(KINDS[kind], namespace, selector=selector)
        }

    def child(self, namespace: str, kind: str, name: str) -> Document:
        """Return one of these objects, or an empty document if it does not exist."""
        return self.api.get(KINDS[kind], namespace, name) or {}

    def versions(self, namespace: str) -> dict[tuple[str, str], str]:
        """Return the resource versions of these objects and of all pipelines.

        If two calls return the same, nothing was written in between.
        """
        items = {**self.children(namespace)}
        items |= {(PIPELINE.kind, item["metadata"]["name"]): item for item in self.api.list(PIPELINE, namespace)}
        return {name: item["metadata"]["resourceVersion"] for name, item in items.items()}
