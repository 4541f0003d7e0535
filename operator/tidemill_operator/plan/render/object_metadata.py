"""The names, labels and owner references of the objects in a pipeline's namespace."""

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
MANAGED_LABELS: Mapping[str, str] = {NAME: "tidemill", MANAGED_BY: MANAGER}

CONNECTIONS, RESILIENCE = "tidemill-connections", "tidemill-resilience"
_SHARDS = 8


@dataclass(frozen=True, order=True)
class OwnerReference:
    """The resource that owns an object."""

    uid: str
    name: str

    def manifest(self, *, controller: bool) -> Manifest:
        """Return the reference's manifest."""
        reference: Manifest = {"apiVersion": API_VERSION, "kind": KIND, "name": self.name, "uid": self.uid}
        return reference | ({"controller": True} if controller else {})


def config_map_name(pipeline: str) -> str:
    """Return the name of the ConfigMap of a pipeline's own workloads."""
    return f"{pipeline}-config"


def scaling_config_map(pipeline: str, component: str = "processor") -> str:
    """Return the name of the ConfigMap with the scaling decisions about a component of a pipeline."""
    return f"{pipeline}-{SCALING}" if component == "processor" else f"{pipeline}-{SCALING}-{component}"


def credentials_secret(pipeline: str) -> str:
    """Return the name of the Secret with a pipeline's logins and API keys."""
    return f"{pipeline}-credentials"


def shared_config_maps() -> list[str]:
    """Return the names of the ConfigMaps that together hold all configs of a namespace."""
    return [f"tidemill-pipelines-{shard}" for shard in range(_SHARDS)]


def shared_config_map(pipeline: str) -> str:
    """Return the name of the shared ConfigMap that contains a pipeline's config."""
    return shared_config_maps()[int(hashlib.sha256(pipeline.encode()).hexdigest()[:8], 16) % _SHARDS]


def shared_secret(component: Component) -> str:
    """Return the name of the Secret with the files of a shared workload."""
    return f"tidemill-{component}-secrets"


def own_metadata(name: str, namespace: str, *, pipeline: str, component: str, owner: OwnerReference) -> Manifest:
    """Return the metadata of an object of one pipeline."""
    labels = {**MANAGED_LABELS, COMPONENT: component, INSTANCE: pipeline, PIPELINE: pipeline, OWNER_UID: owner.uid}
    references = [owner.manifest(controller=True)]
    return {"name": name, "namespace": namespace, "labels": labels, "ownerReferences": references}


def shared_metadata(name: str, namespace: str, *, component: str, owners: Iterable[OwnerReference]) -> Manifest:
    """Return the metadata of a shared object. Kubernetes deletes the object after its last owner was deleted."""
    labels = {**MANAGED_LABELS, COMPONENT: component, OWNER_UID: SHARED}
    references = [owner.manifest(controller=False) for owner in sorted(owners)]
    return {"name": name, "namespace": namespace, "labels": labels, "ownerReferences": references}


def digest(text: str) -> str:
    """Return a short hash of a text."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]
