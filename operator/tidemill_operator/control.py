"""One pass over one resource of a cluster: fetched, reconciled or released, its status written once, if it has changed.

The finalizer is there only while topics and schema are to be deleted with the resource; Kubernetes' own objects go by
their owner references.
"""

from __future__ import annotations

import datetime as dt
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from tidemill_operator.actuators.base import Actuators, Schemas, Topics
from tidemill_operator.actuators.kubernetes import KubernetesRuntime, NamespaceLocks
from tidemill_operator.actuators.kubernetes_api import PIPELINE, Api, Conflict, NotFound
from tidemill_operator.actuators.kubernetes_secrets import KubernetesSecrets
from tidemill_operator.cluster_settings import Placement
from tidemill_operator.errors import NotOurTurn, Reason, TidemillError
from tidemill_operator.events import Recorder
from tidemill_operator.measures import Measures, timed
from tidemill_operator.plan.render.marks import OwnerReference
from tidemill_operator.plan.replay import REPLAYING
from tidemill_operator.queue import Key, Result
from tidemill_operator.reconcile import PAUSE, reconcile, release
from tidemill_operator.scaling_cluster import ClusterScaling
from tidemill_operator.settings import Platform
from tidemill_operator.telemetry import Telemetry

log = logging.getLogger(__name__)
FINALIZER = "tidemill.dev/reclaim"
_ON_ITS_WAY = frozenset({Reason.APPLIED, Reason.WAITING, Reason.BLOCKED, Reason.SUSPENDED, Reason.NOT_NEEDED})

Document = dict[str, Any]


@dataclass(frozen=True)
class World:
    """What passes work with; safe to share between threads.

    Attributes:
        platform: addresses and defaults.
        placement: what every workload gets in the cluster.
    """

    api: Api
    kafka: Topics
    postgres: Schemas
    platform: Platform
    placement: Placement


class Controller:
    """Does passes; safe to call from several threads, for a different resource each.

    Args:
        world: what there is.
        recorder: writes Events.
        telemetry: lag and freshness of a pipeline.
        measures: the operator's own figures.
        scaling: decides how many processors there are.
        now: the wall clock.
    """

    def __init__(
        self,
        world: World,
        *,
        recorder: Recorder,
        telemetry: Telemetry,
        measures: Measures,
        scaling: ClusterScaling,
        now: Callable[[], dt.datetime] = lambda: dt.datetime.now(dt.UTC),
    ) -> None:
        self._world, self._recorder, self._telemetry = world, recorder, telemetry
        self._measures, self._scaling, self._now = measures, scaling, now
        self._locks = NamespaceLocks()

    def work(self, key: Key) -> Result:
        """Look at a resource and do what is to be done.

        Raises:
            TidemillError: the cluster's API does not answer, or somebody else was faster.
        """
        with self._measures.pass_of(key) as doing:
            try:
                doing.result = self._work(key)
            except NotOurTurn as error:
                log.info("%s: %s", key, error)
                doing.result = Result.WAITING
            except Conflict as error:
                log.info("%s: %s; again", key, error)
                doing.result = Result.FAILED
            except TidemillError as error:
                log.warning("%s: %s", key, error)
                doing.result = Result.FAILED
            return doing.result

    def _work(self, key: Key) -> Result:
        document = self._world.api.get(PIPELINE, key.namespace, key.name)
        if document is not None and document["metadata"]["uid"] != key.uid:
            document = self._world.api.get(PIPELINE, key.namespace, key.name, sure=True)
        if document is None or document["metadata"]["uid"] != key.uid:
            self._forget(key)
            return Result.GONE
        if document["metadata"].get("deletionTimestamp"):
            return self._let_go(document)
        return self._reconcile(self._with_finalizer(document), key)

    def _reconcile(self, document: Document, key: Key) -> Result:
        previous = document.get("status")
        actuators, runtime = self._actuators(key)
        status = reconcile(
            document,
            platform=self._world.platform,
            actuators=actuators,
            previous=previous,
            now=self._now(),
            scaled=lambda running: self._scaling.replicas(key, running),
        )
        scaling = self._scaling.status(key, (previous or {}).get("scaling") or {})
        figures: Mapping[str, Any] = self._telemetry.figures(key, status, previous or {})
        scale = {"replicas": runtime.scale.replicas, "selector": runtime.scale.selector} if runtime.scale else {}
        status = {**status, "scaling": scaling, **figures, **scale}
        status = {name: value for name, value in status.items() if name != "scaling" or value}
        if status != previous:
            self._write(document, status)
            self._recorder.changes(document, previous, status)
        self._measures.state_of(key, status)
        self._scaling.watch(key, paused=_is_paused(document))
        return verdict(status)

    def _write(self, document: Document, status: Document) -> None:
        """One apply of the whole status, of the resource as it was looked at: nobody has told a newer one."""
        metadata = {name: document["metadata"][name] for name in ("name", "namespace", "uid", "resourceVersion")}
        body = {"apiVersion": document["apiVersion"], "kind": document["kind"], "metadata": metadata, "status": status}
        try:
            self._world.api.apply(body, subresource="status")
        except NotFound:
            log.info("%s/%s went while it was looked at", metadata["namespace"], metadata["name"])

    def _with_finalizer(self, document: Document) -> Document:
        """The resource, with our finalizer if and only if its data are to be deleted with it."""
        metadata = document["metadata"]
        if _is_paused(document):
            return document
        wanted = document.get("spec", {}).get("reclaimPolicy") == "Delete"
        return document if wanted == (FINALIZER in metadata.get("finalizers", ())) else self._finalize(document, wanted)

    def _finalize(self, document: Document, wanted: bool) -> Document:
        metadata = document["metadata"]
        others = [name for name in metadata.get("finalizers", ()) if name != FINALIZER]
        finalizers = [*others, FINALIZER] if wanted else others
        patch = {"metadata": {"resourceVersion": metadata["resourceVersion"], "finalizers": finalizers}}
        return self._world.api.merge(PIPELINE, metadata["namespace"], metadata["name"], patch)

    def _let_go(self, document: Document) -> Result:
        """A resource that is being deleted: its topics and schema go first, if they are to go."""
        metadata = document["metadata"]
        key = Key(metadata["namespace"], metadata["name"], metadata["uid"])
        if FINALIZER not in metadata.get("finalizers", ()):
            return Result.WAITING  # somebody else's finalizer holds it
        if _is_paused(document):
            text = f"it is paused; take the annotation {PAUSE} away to have its topics and schema deleted"
            self._recorder.tell(document, "Warning", "Paused", text)
            return Result.WAITING
        actuators, _ = self._actuators(key)
        try:
            release(document, platform=self._world.platform, actuators=actuators)
        except TidemillError as error:
            if error.reason != Reason.WAITING:
                self._recorder.tell(document, "Warning", error.reason, f"its data cannot be deleted yet: {error}")
            log.info("%s: not released yet: %s", key, error)
            return Result.WAITING if error.reason == Reason.WAITING else Result.FAILED
        self._finalize(document, wanted=False)
        return Result.WAITING

    def _forget(self, key: Key) -> None:
        """A resource that is gone: its part of what it shared goes too, its own objects by their owner reference."""
        _, runtime = self._actuators(key)
        try:
            runtime.remove(key.namespace, key.name)
        except TidemillError as error:
            if error.reason != Reason.WAITING or isinstance(error, Conflict):
                raise
        self._telemetry.forget(key)
        self._measures.forget(key)
        self._scaling.forget(key)

    def _actuators(self, key: Key) -> tuple[Actuators, KubernetesRuntime]:
        world, owner = self._world, OwnerReference(key.uid, key.name)
        runtime = KubernetesRuntime(world.api, world.placement, owner, self._locks)
        return (
            Actuators(
                kafka=timed(world.kafka, "topics"),
                postgres=timed(world.postgres, "schema"),
                secrets=timed(KubernetesSecrets(world.api, owner), "secrets"),
                runtime=timed(runtime, "workloads"),
            ),
            runtime,
        )


def _is_paused(document: Document) -> bool:
    return bool((document["metadata"].get("annotations") or {}).get(PAUSE) == "true")


def verdict(status: Mapping[str, Any]) -> Result:
    """How a pass ended, as its conditions tell."""
    conditions = {condition["type"]: condition for condition in status.get("conditions", ())}
    if "ReconciliationPaused" in conditions:
        return Result.SETTLED
    bad = [c for c in conditions.values() if c["status"] == "False" and c["type"] != "Ready"]
    if "Reconciling" not in conditions:
        replaying = status.get("replay", {}).get("phase") == REPLAYING
        return Result.WAITING if replaying else Result.SETTLED
    return Result.WAITING if all(condition["reason"] in _ON_ITS_WAY for condition in bad) else Result.FAILED
