"""The objects of a pipeline in its namespace, read once per reconcile pass."""

from __future__ import annotations

import json
import logging
from collections.abc import Collection, Iterable, Mapping

from tidemill_operator.actuators.kubernetes.api import (
    CONFIG_MAP,
    DEPLOYMENT,
    DISRUPTION_BUDGET,
    FIELD_MANAGER,
    INGRESS,
    KINDS,
    NETWORK_POLICY,
    SERVICE,
    SERVICE_ACCOUNT,
    Api,
    Document,
    Kind,
)
from tidemill_operator.actuators.kubernetes.drift import describe_repair, difference, foreign_managers, has_applied
from tidemill_operator.errors import Reason, TidemillError
from tidemill_operator.plan.render import object_metadata
from tidemill_operator.plan.render.object_metadata import OwnerReference

log = logging.getLogger(__name__)
# Secrets are read by name, so that the operator needs no permission to list Secrets.
LISTED = (DEPLOYMENT, SERVICE, CONFIG_MAP, SERVICE_ACCOUNT, DISRUPTION_BUDGET, NETWORK_POLICY, INGRESS)
_REPLICAS_MANAGER = f"{FIELD_MANAGER}-replicas"


class Children:
    """The objects of one pipeline, and the objects that all pipelines of the namespace share.

    Attributes:
        changed: number of changes made.
        repairs: descriptions of changes by other users that were reverted.
    """

    def __init__(self, api: Api, namespace: str, owner: OwnerReference) -> None:
        self._api, self._namespace, self._owner = api, namespace, owner
        self.changed = 0
        self.repairs: list[str] = []
        self.created: list[str] = []
        self._live: dict[tuple[str, str], Document] = {}
        for kind in LISTED:
            for item in api.list_owned(kind, namespace, (owner.uid, object_metadata.SHARED)):
                self._live[kind.kind, item["metadata"]["name"]] = item

    def known(self, kind: str, name: str) -> Document | None:
        """Return an object in its state at the start of the pass, or None."""
        return self._live.get((kind, name))

    def get(self, kind: Kind, name: str) -> Document | None:
        """Return an object, or None if it does not exist.

        Raises:
            TidemillError: the API does not answer.
        """
        live = self.known(kind.kind, name)
        if live is None:
            live = self._api.get_maybe_cached(kind, self._namespace, name)
            if live is not None:
                self._live[kind.kind, name] = live
        return live

    def ensure(self, manifest: Document) -> Document:
        """Make an object match its manifest, and return the live object.

        Raises:
            TidemillError: the object has another owner, or the API refuses the request or does not answer.
        """
        kind, name = KINDS[manifest["kind"]], manifest["metadata"]["name"]
        wanted = _with_hash(manifest)
        live = self.get(kind, name)
        if live is not None:
            _check_owner(wanted, live)
            others = foreign_managers(live)
            if not others and _matches(wanted, live):
                return live
            repair = describe_repair(wanted, live)
            self._hand_over_replicas(wanted, live)
            written = self._restore(wanted, live) if others else self._api.apply(_with_version(wanted, live))
            self.repairs += [repair] if repair else []
            log.info("%s/%s: %s", self._namespace, self._owner.name, repair or f"changed {kind.kind} {name}")
        else:
            written = self._api.apply(wanted)
            self.created.append(f"{kind.kind} {name}")
            log.info("%s/%s: created %s %s", self._namespace, self._owner.name, kind.kind, name)
        self.changed += 1
        self._live[kind.kind, name] = written
        return written

    def _restore(self, wanted: Document, live: Document) -> Document:
        """Restore the operator's fields, and remove fields added by other users."""
        applied = self._api.apply(_with_version(wanted, live))
        body = dict(applied)
        for part in ("spec", "data"):
            if part in wanted:
                body[part] = wanted[part]
        body.pop("binaryData", None)
        if wanted["kind"] == DEPLOYMENT.kind and "replicas" not in wanted["spec"]:
            body["spec"] = {**wanted["spec"], "replicas": applied["spec"]["replicas"]}
        return self._api.replace(body)

    def _hand_over_replicas(self, wanted: Document, live: Document) -> None:
        """Make another field manager own `replicas`. Otherwise, the next apply would reset the number of replicas."""
        if wanted["kind"] != DEPLOYMENT.kind or "replicas" in wanted["spec"]:
            return
        if has_applied(live, FIELD_MANAGER, "f:spec", "f:replicas"):
            metadata = {key: live["metadata"][key] for key in ("name", "namespace")}
            body = {"apiVersion": live["apiVersion"], "kind": live["kind"], "metadata": metadata}
            self._api.apply({**body, "spec": {"replicas": live["spec"]["replicas"]}}, manager=_REPLICAS_MANAGER)
            live["metadata"].pop("resourceVersion", None)

    def sharing_uids(self) -> set[str]:
        """Return the UIDs of the pipelines that own the shared objects."""
        shared = [item for item in self._live.values() if _owner_uid(item) == object_metadata.SHARED]
        return {ref.get("uid", "") for item in shared for ref in item["metadata"].get("ownerReferences", ())}

    def prune(self, keep: Collection[tuple[str, str]], *, keep_components: Collection[str] = ()) -> None:
        """Delete the pipeline's objects, and remove the pipeline from the owners of shared objects.

        Args:
            keep: kinds and names of single objects to keep.
            keep_components: components of which all objects are kept.
        """
        for (kind, name), live in list(self._live.items()):
            if (kind, name) in keep or KINDS[kind] not in LISTED or _component(live) in keep_components:
                continue
            if _owner_uid(live) == self._owner.uid:
                self._api.delete(KINDS[kind], self._namespace, name, uid=live["metadata"]["uid"])
                log.info("%s/%s: deleted %s %s", self._namespace, self._owner.name, kind, name)
                self.changed += 1
                del self._live[kind, name]
            elif _owner_uid(live) == object_metadata.SHARED:
                self.disown(KINDS[kind], name)

    def shared_objects(self, component: str) -> list[tuple[Kind, str]]:
        """Return the kinds and names of a component's shared objects."""
        return [
            (KINDS[kind], name)
            for (kind, name), live in self._live.items()
            if KINDS[kind] in LISTED and _component(live) == component and _owner_uid(live) == object_metadata.SHARED
        ]

    def delete_shared(self, kind: Kind, name: str) -> None:
        """Delete a shared object, even if other pipelines own the object too."""
        live = self.known(kind.kind, name) if kind in LISTED else self.get(kind, name)
        if live is None or _owner_uid(live) != object_metadata.SHARED:
            return
        self._api.delete(kind, self._namespace, name, uid=live["metadata"]["uid"])
        log.info("%s/%s: deleted %s %s", self._namespace, self._owner.name, kind.kind, name)
        self.changed += 1
        del self._live[kind.kind, name]

    def disown(self, kind: Kind, name: str, *, files: Iterable[str] = ()) -> None:
        """Remove the pipeline from a shared object's owners, and `files` from the object's data.

        If no owner is left, delete the object.
        """
        live = self.get(kind, name)
        if live is None or _owner_uid(live) != object_metadata.SHARED:
            return
        references = live["metadata"].get("ownerReferences", [])
        kept = [reference for reference in references if reference.get("uid") != self._owner.uid]
        removed = [file for file in files if file in (live.get("data") or {})]
        if len(kept) == len(references) and not removed:
            return
        self.changed += 1
        if not kept:
            self._api.delete(kind, self._namespace, name, uid=live["metadata"]["uid"])
            del self._live[kind.kind, name]
            return
        patch: Document = {
            "metadata": {"resourceVersion": live["metadata"]["resourceVersion"], "ownerReferences": kept}
        }
        if removed:
            patch["data"] = dict.fromkeys(removed)
        self._live[kind.kind, name] = self._api.merge(kind, self._namespace, name, patch)


def owners(live: Document | None, pipelines: Mapping[str, str], owner: OwnerReference) -> list[OwnerReference]:
    """Return `owner`, and the owners of the object `live` whose pipelines still exist."""
    references = live["metadata"].get("ownerReferences", []) if live else []
    uids = [reference.get("uid", "") for reference in references]
    return sorted({owner, *(OwnerReference(uid, pipelines[uid]) for uid in uids if uid in pipelines)})


def _component(item: Document) -> str:
    return str(item["metadata"].get("labels", {}).get(object_metadata.COMPONENT, ""))


def _owner_uid(item: Document) -> str:
    return str(item["metadata"].get("labels", {}).get(object_metadata.OWNER_UID, ""))


def _with_hash(manifest: Document) -> Document:
    """Annotate a manifest with a hash of its content."""
    content = {
        **{name: value for name, value in manifest.items() if name != "data"},
        "metadata": {name: value for name, value in manifest["metadata"].items() if name != "ownerReferences"},
    }
    content_hash = object_metadata.digest(json.dumps(content, sort_keys=True))
    metadata = manifest["metadata"]
    return {
        **manifest,
        "metadata": {
            **metadata,
            "annotations": {**metadata.get("annotations", {}), object_metadata.APPLIED: content_hash},
        },
    }


def _matches(wanted: Document, live: Document) -> bool:
    same_data = "data" not in wanted or wanted["data"] == (live.get("data") or {})
    return same_data and _reference_uids(wanted) == _reference_uids(live) and difference(wanted, live) is None


def _reference_uids(item: Document) -> set[str]:
    return {reference["uid"] for reference in item["metadata"].get("ownerReferences", ())}


def _with_version(wanted: Document, live: Document) -> Document:
    """Add the `resourceVersion` of `live` to a shared object.

    If the object has changed, the write then fails.
    """
    version = live["metadata"].get("resourceVersion")
    if wanted["metadata"]["labels"][object_metadata.OWNER_UID] != object_metadata.SHARED or not version:
        return wanted
    return {**wanted, "metadata": {**wanted["metadata"], "resourceVersion": version}}


def _check_owner(wanted: Document, live: Document) -> None:
    """Raise TidemillError if another tool made the object.

    Also raise TidemillError if pipelines share only one of `wanted` and `live`.
    """
    labels = live["metadata"].get("labels", {})
    is_ours = any(entry.get("manager") == FIELD_MANAGER for entry in live["metadata"].get("managedFields", ()))
    shared = wanted["metadata"]["labels"][object_metadata.OWNER_UID] == object_metadata.SHARED
    live_owner = labels.get(object_metadata.OWNER_UID, object_metadata.SHARED if shared else "")
    was_shared = live_owner == object_metadata.SHARED
    if not is_ours:
        problem = "was not made by Tidemill"
    elif shared == was_shared:
        return
    elif was_shared:
        problem = "is shared by the namespace"
    else:
        problem = f"belongs to pipeline {labels.get(object_metadata.PIPELINE)}"
    name = f"{live['metadata'].get('namespace')}/{live['metadata']['name']}"
    raise TidemillError(
        Reason.RESOURCE_CONFLICT,
        f"{live['kind']} {name} exists and {problem}",
        "rename the pipeline, or delete the object",
    )
