"""Names, labels and owner references of the objects in a pipeline's namespace."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from tidemill_contract.resource.spec import API_VERSION, KIND
from tidemill_operator.plan.model import Component

Manifest = dict[str, Any]

MANAGER = "tidemill"
NAME, COMPONENT = "app.kubernetes.io/name", "app.kubernetes.io/component"
INSTANCE, MANAGED_BY = "app.kubernetes.io/instance", "app.kubernetes.io/managed-by"
PIPELINE, WORKLOAD, OWNER_UID = "tidemill.dev/pipeline", "tidemill.dev/workload", "tidemill.dev/owner-uid"
APPLIED = "tidemill.dev/applied"
SHARED, SCALING = "shared", "scaling"
OURS: Mapping[str, str] = {NAME: "tidemill", MANAGED_BY: MANAGER}

CONNECTIONS, RESILIENCE = "tidemill-connections", "tidemill-resilience"
_SHARDS = 8


@dataclass(frozen=True, order=True)
class OwnerReference:
    """The resource that an object is there for."""

    uid: str
    name: str

    def manifest(self, *, controller: bool) -> Manifest:
        """As it stands in an object's metadata."""
        reference: Manifest = {"apiVersion": API_VERSION, "kind": KIND, "name": self.name, "uid": self.uid}
        return reference | ({"controller": True} if controller else {})


def config_map(pipeline: str) -> str:
    """The ConfigMap of a pipeline's own workloads."""
    return f"{pipeline}-config"


def scaling(pipeline: str) -> str:
    """The ConfigMap that remembers what scaling has decided about a pipeline."""
    return f"{pipeline}-{SCALING}"


def credentials(pipeline: str) -> str:
    """The Secret with a pipeline's logins and API keys."""
    return f"{pipeline}-credentials"


def shared_configs() -> list[str]:
    """The ConfigMaps that hold all configs of a namespace: several, as one holds at most 1 MiB."""
    return [f"tidemill-pipelines-{shard}" for shard in range(_SHARDS)]


def shared_config(pipeline: str) -> str:
    """The one of them that holds a pipeline's config."""
    return shared_configs()[int(hashlib.sha256(pipeline.encode()).hexdigest()[:8], 16) % _SHARDS]


def shared_secret(component: Component) -> str:
    """The Secret that holds what a shared workload may see of all pipelines."""
    return f"tidemill-{component}-secrets"


def own_metadata(name: str, namespace: str, *, pipeline: str, component: str, owner: OwnerReference) -> Manifest:
    """Metadata of an object that belongs to one pipeline."""
    labels = {**OURS, COMPONENT: component, INSTANCE: pipeline, PIPELINE: pipeline, OWNER_UID: owner.uid}
    references = [owner.manifest(controller=True)]
    return {"name": name, "namespace": namespace, "labels": labels, "ownerReferences": references}


def shared_metadata(name: str, namespace: str, *, component: str, owners: Iterable[OwnerReference]) -> Manifest:
    """Metadata of an object that several pipelines of a namespace need: it goes when the last of them has gone."""
    labels = {**OURS, COMPONENT: component, OWNER_UID: SHARED}
    references = [owner.manifest(controller=False) for owner in sorted(owners)]
    return {"name": name, "namespace": namespace, "labels": labels, "ownerReferences": references}


def digest(text: str) -> str:
    """A short mark of a text: another text has another one."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]
