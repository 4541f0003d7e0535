"""A pass over a resource in a cluster.

A pass reads the resource, reconciles or deletes the objects, and writes the status.
"""

from __future__ import annotations

import datetime as dt
import logging
from collections.abc import Callable, Mapping
from typing import Any

from tidemill_operator.actuators.kubernetes.api import PIPELINE, Conflict, NotFound
from tidemill_operator.actuators.kubernetes.runtime import KubernetesRuntime, NamespaceLocks
from tidemill_operator.cluster.context import PassContext
from tidemill_operator.cluster.event_recorder import EventRecorder
from tidemill_operator.cluster.queue import Result
from tidemill_operator.cluster.removal.finalizer import Finalizer, is_paused
from tidemill_operator.cluster.scaling import ClusterScaling
from tidemill_operator.cluster.telemetry import OperatorMetrics
from tidemill_operator.errors import LockNotHeldError, Reason, TidemillError
from tidemill_operator.keys import Key
from tidemill_operator.observer import figures
from tidemill_operator.observer.observers import Observers
from tidemill_operator.observer.progress import ProgressWatch
from tidemill_operator.plan.replay import REPLAYING
from tidemill_operator.reconcile import reconcile
from tidemill_operator.scaler import SCALING_MEMBERS
from tidemill_operator.status import PROGRESSING, not_counting_status

log = logging.getLogger(__name__)
_PROGRESS_REASONS = frozenset({Reason.APPLIED, Reason.WAITING, Reason.BLOCKED, Reason.SUSPENDED, Reason.NOT_NEEDED})

Document = dict[str, Any]


class Controller:
    """Runs passes. Passes for different resources can run in parallel threads."""

    def __init__(
        self,
        context: PassContext,
        *,
        recorder: EventRecorder,
        observer: Observers,
        metrics: OperatorMetrics,
        scaling: ClusterScaling,
        progress: ProgressWatch | None = None,
        now: Callable[[], dt.datetime] = lambda: dt.datetime.now(dt.UTC),
    ) -> None:
        self._context, self._recorder, self._observer = context, recorder, observer
        self._metrics, self._scaling, self._progress, self._now = metrics, scaling, progress, now
        self._locks = NamespaceLocks()
        self._finalizer = Finalizer(context, recorder, self._locks, write=self._write)

    def run_pass(self, key: Key) -> Result:
        """Run a pass over a resource, and return how the pass ended.

        Raises:
            TidemillError: the cluster's API does not answer, or another client has written the resource meanwhile.
        """
        with self._metrics.measure_pass(key) as running_pass:
            try:
                running_pass.result = self._run_pass(key)
            except LockNotHeldError as error:
                log.info("%s: %s", key, error)
                running_pass.result = Result.WAITING
            except Conflict as error:
                log.info("%s: %s; again", key, error)
                running_pass.result = Result.FAILED
            except TidemillError as error:
                log.warning("%s: %s", key, error)
                running_pass.result = Result.FAILED
            return running_pass.result

    def _run_pass(self, key: Key) -> Result:
        document = self._context.api.get(PIPELINE, key.namespace, key.name)
        if document is not None and document["metadata"]["uid"] != key.uid:
            document = self._context.api.get(PIPELINE, key.namespace, key.name, uncached=True)
        if document is None or document["metadata"]["uid"] != key.uid:
            self._forget(key)
            return Result.GONE
        if document["metadata"].get("deletionTimestamp"):
            return self._finalizer.finalize(document)
        return self._reconcile(self._finalizer.sync(document), key)

    def _reconcile(self, document: Document, key: Key) -> Result:
        progress = self._progress
        # the status without the fields that the observer writes, such as the lag
        previous = figures.non_observer_fields(document["status"]) if document.get("status") else None
        actuators, runtime = self._context.actuators(key, self._locks)
        status = reconcile(
            document,
            platform=self._context.platform,
            actuators=actuators,
            previous=previous,
            now=self._now(),
            scaled_replicas=lambda running: self._scaling.replicas(key, running),
            progress_error=(lambda: progress.error(key)) if progress else None,
        )
        status = {**status, **_scale_fields(runtime, previous or {}), **self._scaling.status(key, previous or {})}
        status = {name: value for name, value in status.items() if value or name not in SCALING_MEMBERS}
        if status != previous:
            self._write(document, status)
            self._recorder.record_changes(document, previous, status)
        self._recorder.record_repairs(document, _repairs(runtime, previous, status), at=self._now().isoformat())
        self._metrics.record_state(key, status)
        self._scaling.watch(key, paused=is_paused(document))
        if progress:
            progress.watch(key, document, status)
        self._observer.watch(key, status)
        return pass_result(status)

    def report_interruption(self, key: Key, error: TidemillError) -> None:
        """Report `error` in a pipeline's status at once. `error` says why events are no longer counted."""
        try:
            document = self._context.api.get(PIPELINE, key.namespace, key.name)
            if document is None or document["metadata"]["uid"] != key.uid or not document.get("status"):
                return
            previous = figures.non_observer_fields(document["status"])
            status = not_counting_status(previous, error, self._now())
            if status != previous:
                self._write(document, status)
                self._recorder.record_changes(document, previous, status)
                self._metrics.record_state(key, status)
        except TidemillError as failure:
            log.info("%s: the next pass reports this error: %s", key, failure)

    def _write(self, document: Document, status: Document) -> None:
        metadata = {name: document["metadata"][name] for name in ("name", "namespace", "uid", "resourceVersion")}
        body = {"apiVersion": document["apiVersion"], "kind": document["kind"], "metadata": metadata, "status": status}
        try:
            self._context.api.apply(body, subresource="status")
        except Conflict:
            current = self._context.api.get(PIPELINE, metadata["namespace"], metadata["name"], uncached=True)
            if current is None or _without_figures(current) != _without_figures(document):
                raise
            # Only the observer's figures, such as the lag, have changed, so retry with the current resource version.
            metadata["resourceVersion"] = current["metadata"]["resourceVersion"]
            self._context.api.apply(body, subresource="status")
        except NotFound:
            log.info("%s/%s was deleted during its pass", metadata["namespace"], metadata["name"])

    def _forget(self, key: Key) -> None:
        _, runtime = self._context.actuators(key, self._locks)
        try:
            runtime.remove(key.namespace, key.name)
        except TidemillError as error:
            if error.reason != Reason.WAITING or isinstance(error, Conflict):
                raise
        self._observer.forget(key)
        self._metrics.forget(key)
        self._scaling.forget(key)
        if self._progress:
            self._progress.forget(key)


def _scale_fields(runtime: KubernetesRuntime, previous: Mapping[str, Any]) -> dict[str, Any]:
    """Return the status fields about running replicas, such as `replicas` and `selector`."""
    scale = {name: value for name, value in previous.items() if name in ("replicas", "selector", "stageReplicas")}
    if runtime.scale:
        scale |= {"replicas": runtime.scale.replicas, "selector": runtime.scale.selector}
    if runtime.stage_replicas is not None:
        scale["stageReplicas"] = runtime.stage_replicas
    return scale


def _repairs(runtime: KubernetesRuntime, previous: Document | None, status: Document) -> list[str]:
    """Return a message for each object that the pass repaired or created again."""
    before = {condition["type"]: condition for condition in (previous or {}).get("conditions", ())}
    settled = before.get(PROGRESSING, {}).get("reason") == Reason.APPLIED
    same_generation = (previous or {}).get("observedGeneration") == status["observedGeneration"]
    created = runtime.created if settled and same_generation else []
    return [*runtime.repairs, *(f"created {what} again after its deletion" for what in created)]


def _without_figures(document: Document) -> tuple[Any, ...]:
    metadata = document["metadata"]
    compared = (metadata.get(member) for member in ("uid", "generation", "annotations", "deletionTimestamp"))
    return (*compared, figures.non_observer_fields(document.get("status") or {}))


def pass_result(status: Mapping[str, Any]) -> Result:
    """Derive the result of a pass from the conditions in the status."""
    conditions = {condition["type"]: condition for condition in status.get("conditions", ())}
    if "ReconciliationPaused" in conditions:
        return Result.SETTLED
    bad = [c for c in conditions.values() if c["status"] == "False" and c["type"] not in ("Ready", PROGRESSING)]
    if "Reconciling" not in conditions:
        replaying = status.get("replay", {}).get("phase") == REPLAYING
        return Result.WAITING if replaying else Result.SETTLED
    unready = [*bad, conditions["Reconciling"]]
    return Result.WAITING if all(condition["reason"] in _PROGRESS_REASONS for condition in unready) else Result.FAILED
