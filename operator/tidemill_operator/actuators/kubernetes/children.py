"""The objects of a pipeline in its namespace, read once per reconcile pass."""

from __future__ import annotations

import json
import logging
from collections.abc import Collection, Iterable, Mapping

from tidemill_operator.actuators.kubernetes.api import (
    CONFIG_MAP,
    DEPLOYMENT,
    DISRUPTION_BUDGET,
    INGRESS,
    KINDS,
    MANAGER,
    NETWORK_POLICY,
    SERVICE,
    SERVICE_ACCOUNT,
    Api,
    Document,
    Kind,
)
from tidemill_operator.actuators.kubernetes.drift import difference, holds, repair, strangers
from tidemill_operator.errors import Reason, TidemillError
from tidemill_operator.plan.render import marks
from tidemill_operator.plan.render.marks import OwnerReference

log = logging.getLogger(__name__)
# Secrets are read by name, so that the operator needs no permission to list Secrets.
LISTED = (DEPLOYMENT, SERVICE, CONFIG_MAP, SERVICE_ACCOUNT, DISRUPTION_BUDGET, NETWORK_POLICY, INGRESS)
_SCALED = f"{MANAGER}-replicas"


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
        self.made: list[str] = []
        self._live: dict[tuple[str, str], Document] = {}
        for kind in LISTED:
            for item in api.owned(kind, namespace, (owner.uid, marks.SHARED)):
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
            live = self._api.recent(kind, self._namespace, name)
            if live is not None:
                self._live[kind.kind, name] = live
        return live

    def ensure(self, manifest: Document) -> Document:
        """Make an object match its manifest, and return the live object.

        Raises:
            TidemillError: the object has another owner, or the API refuses the request or does not answer.
        """
        kind, name = KINDS[manifest["kind"]], manifest["metadata"]["name"]
        wanted = _marked(manifest)
        live = self.get(kind, name)
        if live is not None:
            _check_owner(wanted, live)
            others = strangers(live)
            if not others and _is_so(wanted, live):
                return live
            repaired = repair(wanted, live)
            self._hand_over_replicas(wanted, live)
            written = self._restore(wanted, live) if others else self._api.apply(_guarded(wanted, live))
            self.repairs += [repaired] if repaired else []
            log.info("%s/%s: %s", self._namespace, self._owner.name, repaired or f"changed {kind.kind} {name}")
        else:
            written = self._api.apply(wanted)
            self.made.append(f"{kind.kind} {name}")
            log.info("%s/%s: created %s %s", self._namespace, self._owner.name, kind.kind, name)
        self.changed += 1
        self._live[kind.kind, name] = written
        return written

    def _restore(self, wanted: Document, live: Document) -> Document:
        """Restore the operator's fields, and remove fields added by other users."""
        applied = self._api.apply(_guarded(wanted, live))
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
        if holds(live, MANAGER, "f:spec", "f:replicas"):
            named = {key: live["metadata"][key] for key in ("name", "namespace")}
            body = {"apiVersion": live["apiVersion"], "kind": live["kind"], "metadata": named}
            self._api.apply({**body, "spec": {"replicas": live["spec"]["replicas"]}}, manager=_SCALED)
            live["metadata"].pop("resourceVersion", None)

    def sharing(self) -> set[str]:
        """Return the UIDs of the pipelines that own the shared objects."""
        shared = [item for item in self._live.values() if _label(item) == marks.SHARED]
        return {ref.get("uid", "") for item in shared for ref in item["metadata"].get("ownerReferences", ())}

    def prune(self, keep: Collection[tuple[str, str]], *, spared: Collection[str] = ()) -> None:
        """Delete the pipeline's objects, and remove the pipeline from the owners of shared objects.

        Args:
            keep: kinds and names of single objects to keep.
            spared: components of which all objects are kept.
        """
        for (kind, name), live in list(self._live.items()):
            if (kind, name) in keep or KINDS[kind] not in LISTED or _component(live) in spared:
                continue
            if _label(live) == self._owner.uid:
                self._api.delete(KINDS[kind], self._namespace, name, uid=live["metadata"]["uid"])
                log.info("%s/%s: deleted %s %s", self._namespace, self._owner.name, kind, name)
                self.changed += 1
                del self._live[kind, name]
            elif _label(live) == marks.SHARED:
                self.leave(KINDS[kind], name)

    def shared(self, component: str) -> list[tuple[Kind, str]]:
        """Return the kinds and names of a component's shared objects."""
        return [
            (KINDS[kind], name)
            for (kind, name), live in self._live.items()
            if KINDS[kind] in LISTED and _component(live) == component and _label(live) == marks.SHARED
        ]

    def drop(self, kind: Kind, name: str) -> None:
        """Delete a shared object, even if other pipelines own the object too."""
        live = self.known(kind.kind, name) if kind in LISTED else self.get(kind, name)
        if live is None or _label(live) != marks.SHARED:
            return
        self._api.delete(kind, self._namespace, name, uid=live["metadata"]["uid"])
        log.info("%s/%s: deleted %s %s", self._namespace, self._owner.name, kind.kind, name)
        self.changed += 1
        del self._live[kind.kind, name]

    def leave(self, kind: Kind, name: str, *, files: Iterable[str] = ()) -> None:
        """Remove the pipeline from a shared object's owners, and `files` from the object's data.

        If no owner is left, delete the object.
        """
        live = self.get(kind, name)
        if live is None or _label(live) != marks.SHARED:
            return
        references = live["metadata"].get("ownerReferences", [])
        kept = [reference for reference in references if reference.get("uid") != self._owner.uid]
        gone = [file for file in files if file in (live.get("data") or {})]
        if len(kept) == len(references) and not gone:
            return
        self.changed += 1
        if not kept:
            self._api.delete(kind, self._namespace, name, uid=live["metadata"]["uid"])
            del self._live[kind.kind, name]
            return
        patch: Document = {
            "metadata": {"resourceVersion": live["metadata"]["resourceVersion"], "ownerReferences": kept}
        }
        if gone:
            patch["data"] = dict.fromkeys(gone)
        self._live[kind.kind, name] = self._api.merge(kind, self._namespace, name, patch)


def owners(live: Document | None, alive: Mapping[str, str], owner: OwnerReference) -> list[OwnerReference]:
    """Return `owner`, and the owners of the object `live` whose pipelines still exist."""
    references = live["metadata"].get("ownerReferences", []) if live else []
    uids = [reference.get("uid", "") for reference in references]
    return sorted({owner, *(OwnerReference(uid, alive[uid]) for uid in uids if uid in alive)})


def _component(item: Document) -> str:
    return str(item["metadata"].get("labels", {}).get(marks.COMPONENT, ""))


def _label(item: Document) -> str:
    return str(item["metadata"].get("labels", {}).get(marks.OWNER_UID, ""))


def _marked(manifest: Document) -> Document:
    """Annotate a manifest with a hash of its content."""
    said = {
        **{name: value for name, value in manifest.items() if name != "data"},
        "metadata": {name: value for name, value in manifest["metadata"].items() if name != "ownerReferences"},
    }
    mark = marks.digest(json.dumps(said, sort_keys=True))
    metadata = manifest["metadata"]
    return {
        **manifest,
        "metadata": {**metadata, "annotations": {**metadata.get("annotations", {}), marks.APPLIED: mark}},
    }


def _is_so(wanted: Document, live: Document) -> bool:
    whose = [{reference["uid"] for reference in of["metadata"].get("ownerReferences", ())} for of in (wanted, live)]
    same_data = "data" not in wanted or wanted["data"] == (live.get("data") or {})
    return same_data and whose[0] == whose[1] and difference(wanted, live) is None


def _guarded(wanted: Document, live: Document) -> Document:
    """Add the `resourceVersion` of `live` to a shared object.

    If the object has changed, the write then fails.
    """
    version = live["metadata"].get("resourceVersion")
    if wanted["metadata"]["labels"][marks.OWNER_UID] != marks.SHARED or not version:
        return wanted
    return {**wanted, "metadata": {**wanted["metadata"], "resourceVersion": version}}


def _check_owner(wanted: Document, live: Document) -> None:
    """Raise TidemillError if another tool made the object.

    Also raise TidemillError if pipelines share only one of `wanted` and `live`.
    """
    labels = live["metadata"].get("labels", {})
    ours = any(entry.get("manager") == MANAGER for entry in live["metadata"].get("managedFields", ()))
    shared = wanted["metadata"]["labels"][marks.OWNER_UID] == marks.SHARED
    was_shared = labels.get(marks.OWNER_UID, marks.SHARED if shared else "") == marks.SHARED
    if not ours:
        whose = "was not made by Tidemill"
    elif shared != was_shared:
        whose = "is shared by the namespace" if was_shared else f"belongs to pipeline {labels.get(marks.PIPELINE)}"
    else:
        return
    name = f"{live['metadata'].get('namespace')}/{live['metadata']['name']}"
    raise TidemillError(
        Reason.RESOURCE_CONFLICT,
        f"{live['kind']} {name} exists and {whose}",
        "rename the pipeline, or delete the object",
    )
