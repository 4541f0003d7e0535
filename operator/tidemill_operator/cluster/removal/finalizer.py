"""The operator's finalizer, which delays a deletion until topics, schema and connectors are deleted."""

from __future__ import annotations

import datetime as dt
import logging
from collections.abc import Callable
from typing import Any

from tidemill_operator.actuators.kubernetes.api import PIPELINE
from tidemill_operator.actuators.kubernetes.runtime import NamespaceLocks
from tidemill_operator.cluster.context import PassContext
from tidemill_operator.cluster.event_recorder import EventRecorder
from tidemill_operator.cluster.queue import Result
from tidemill_operator.errors import LockNotHeldError, Reason, TidemillError
from tidemill_operator.keys import Key
from tidemill_operator.observer import figures
from tidemill_operator.outcome import Component
from tidemill_operator.plan.connect.workers import needs_workers
from tidemill_operator.reconcile import PAUSE, release
from tidemill_operator.status import reported_components, undeletable_status

log = logging.getLogger(__name__)
FINALIZER = "tidemill.dev/reclaim"

Document = dict[str, Any]


class Finalizer:
    """Sets the finalizer, deletes topics and schema, and then removes the finalizer."""

    def __init__(
        self,
        context: PassContext,
        recorder: EventRecorder,
        locks: NamespaceLocks,
        *,
        write: Callable[[Document, Document], None] | None = None,
    ) -> None:
        self._context, self._recorder, self._locks, self._write = context, recorder, locks, write

    def sync(self, document: Document) -> Document:
        """Add or remove the finalizer as needed, and return the resource.

        Raises:
            Conflict: somebody else has written the resource since it was read.
            TidemillError: the API refuses or does not answer.
        """
        if is_paused(document):
            return document
        wanted = needs_finalizer(document)
        return document if wanted == has_finalizer(document) else self._set_finalizer(document, wanted)

    def finalize(self, document: Document) -> Result:
        """Delete the topics and schema of a resource that is being deleted, then remove the finalizer.

        Raises:
            Conflict: somebody else has written the resource since it was read.
            TidemillError: the API refuses or does not answer.
        """
        key = Key.of(document["metadata"])
        if not has_finalizer(document):
            return Result.WAITING  # another finalizer blocks the deletion
        if is_paused(document):
            text = f"the pipeline is paused; its data is deleted when the annotation {PAUSE} is removed"
            self._recorder.write_event(document, "Warning", "Paused", text)
            return Result.WAITING
        actuators, _ = self._context.actuators(key, self._locks)
        try:
            release(document, platform=self._context.platform, actuators=actuators)
        except TidemillError as error:
            if error.reason != Reason.WAITING:
                self._recorder.write_event(
                    document, "Warning", error.reason, f"the pipeline's data cannot be deleted yet: {error}"
                )
            self._report(document, error)
            log.info("%s: the finalizer cannot be removed yet: %s", key, error)
            return Result.WAITING if error.reason == Reason.WAITING else Result.FAILED
        self._set_finalizer(document, wanted=False)
        return Result.WAITING

    def _report(self, document: Document, error: TidemillError) -> None:
        """If a user has to act, write into the status why the data cannot be deleted."""
        if isinstance(error, LockNotHeldError) or (error.reason == Reason.WAITING and not error.remedy):
            return
        previous = figures.non_observer_fields(document.get("status") or {})
        status = undeletable_status(previous, error, dt.datetime.now(dt.UTC))
        if self._write is not None and status != previous:
            self._write(document, status)

    def _set_finalizer(self, document: Document, wanted: bool) -> Document:
        metadata = document["metadata"]
        others = [name for name in metadata.get("finalizers", ()) if name != FINALIZER]
        finalizers = [*others, FINALIZER] if wanted else others
        patch = {"metadata": {"resourceVersion": metadata["resourceVersion"], "finalizers": finalizers}}
        return self._context.api.merge(PIPELINE, metadata["namespace"], metadata["name"], patch)


def needs_finalizer(document: Document) -> bool:
    """Return whether the resource needs the finalizer, e.g. to delete topics or connectors."""
    deletes = (document.get("spec") or {}).get("reclaimPolicy") == "Delete"
    return deletes or needs_workers(document) or Component.CONNECTORS in reported_components(document.get("status"))


def has_finalizer(document: Document) -> bool:
    """Return whether the resource has the operator's finalizer."""
    return FINALIZER in document["metadata"].get("finalizers", ())


def is_paused(document: Document) -> bool:
    """Return whether reconciliation of the resource is paused."""
    return bool((document["metadata"].get("annotations") or {}).get(PAUSE) == "true")
