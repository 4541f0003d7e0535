"""The cluster of the tests as its administrator sees it, and a small pipeline for it."""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from typing import Any

import waiting
from kube.controlplane import ControlPlane
from tidemill_operator.actuators.kubernetes.api import KINDS, PIPELINE, Api, Document
from tidemill_operator.errors import TidemillError
from tidemill_operator.keys import Key
from tidemill_operator.plan.render import marks

# A server that is away is asked again.
eventually = functools.partial(waiting.eventually, seconds=60.0, retry_on=(TidemillError,))
CHILDREN = ("Deployment", "Service", "ConfigMap", "ServiceAccount", "PodDisruptionBudget", "NetworkPolicy", "Secret")


def pipeline(name: str, namespace: str, **spec: Any) -> Document:
    """A small pipeline."""
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
    """The cluster as its administrator sees it.

    Attributes:
        held: namespaces whose pods find no node.
    """

    plane: ControlPlane
    api: Api
    held: set[str] = field(default_factory=set)

    def create(self, document: Document) -> Key:
        """Make a pipeline."""
        metadata = self.api.create(document)["metadata"]
        return Key(metadata["namespace"], metadata["name"], metadata["uid"])

    def get(self, key: Key) -> Document:
        """A pipeline as it is; empty: it is gone."""
        return self.api.get(PIPELINE, key.namespace, key.name) or {}

    def patch(self, key: Key, **members: Any) -> None:
        """Change members of a pipeline."""
        self.api.merge(PIPELINE, key.namespace, key.name, members)

    def condition(self, key: Key, kind: str) -> tuple[str, str]:
        """Status and reason of a condition; empty strings: it is not there."""
        conditions = self.get(key).get("status", {}).get("conditions", ())
        found = next((item for item in conditions if item["type"] == kind), {"status": "", "reason": ""})
        return found["status"], found["reason"]

    def await_ready(self, key: Key, *, generation: int | None = None, seconds: float = 90.0) -> None:
        """Wait until a pipeline is ready and nothing is on its way, as of a generation."""

        def ready() -> bool:
            status = self.get(key).get("status", {})
            seen = generation is None or status.get("observedGeneration") == generation
            states = [self.condition(key, kind)[0] for kind in ("Ready", "Progressing")]
            return seen and states == ["True", "False"]

        eventually(ready, seconds=seconds, what=f"{key} is ready: {self.get(key).get('status')}")

    def children(self, namespace: str) -> dict[tuple[str, str], Document]:
        """What the operator has made in a namespace."""
        selector = f"{marks.MANAGED_BY}={marks.MANAGER}"
        return {
            (kind, item["metadata"]["name"]): item
            for kind in CHILDREN
            for item in self.api.list(KINDS[kind], namespace, selector=selector)
        }

    def child(self, namespace: str, kind: str, name: str) -> Document:
        """One of them; empty: it is not there."""
        return self.api.get(KINDS[kind], namespace, name) or {}

    def versions(self, namespace: str) -> dict[tuple[str, str], str]:
        """The versions of all of them and of all pipelines: equal twice means that nothing was written between."""
        items = {**self.children(namespace)}
        items |= {(PIPELINE.kind, item["metadata"]["name"]): item for item in self.api.list(PIPELINE, namespace)}
        return {name: item["metadata"]["resourceVersion"] for name, item in items.items()}
