"""The operator's finalizer, which delays a deletion until topics, schema and connectors are deleted."""

from __future__ import annotations

import datetime as dt
import logging
from collections.abc import Callable
from typing import Any

from tidemill_operator.actuators.kubernetes.api import PIPELINE
from tidemill_operator.actuators.kubernetes.runtime import NamespaceLocks
from tidemill_operator.cluster.events import Recorder
from tidemill_operator.cluster.queue import Result
from tidemill_operator.cluster.world import World
from tidemill_operator.errors import NotOurTurn, Reason, TidemillError
from tidemill_operator.keys import Key
from tidemill_operator.observer import figures
from tidemill_operator.outcome import Component
from tidemill_operator.plan.connect.workers import needs_workers
from tidemill_operator.reconcile import PAUSE, release
from tidemill_operator.status import concerned, detained

log = logging.getLogger(__name__)
FINALIZER = "tidemill.dev/reclaim"

Document = dict[str, Any]


class Finalizing:
    """Sets the finalizer, deletes topics and schema, and then removes the finalizer."""

    def __init__(
        self,
        world: World,
        recorder: Recorder,
        locks: NamespaceLocks,
        *,
        write: Callable[[Document, Document], None] | None = None,
    ) -> None:
        self._world, self._recorder, self._locks, self._write = world, recorder, locks, write

    def prepared(self, document: Document) -> Document:
        """Add or remove the finalizer as needed, and return the resource.

        Raises:
            Conflict: somebody else has written the resource since it was read.
            TidemillError: the API refuses or does not answer.
        """
        if is_paused(document):
            return document
        wanted = needed(document)
        return document if wanted == held(document) else self._finalize(document, wanted)

    def let_go(self, document: Document) -> Result:
        """Delete the topics and schema of a resource that is being deleted, then remove the finalizer.

        Raises:
            Conflict: somebody else has written the resource since it was read.
            TidemillError: the API refuses or does not answer.
        """
        key = Key.of(document["metadata"])
        if not held(document):
            return Result.WAITING  # another finalizer blocks the deletion
        if is_paused(document):
            text = f"the pipeline is paused; its data is deleted when the annotation {PAUSE} is removed"
            self._recorder.tell(document, "Warning", "Paused", text)
            return Result.WAITING
        actuators, _ = self._world.actuators(key, self._locks)
        try:
            release(document, platform=self._world.platform, actuators=actuators)
        except TidemillError as error:
            if error.reason != Reason.WAITING:
                self._recorder.tell(
                    document, "Warning", error.reason, f"the pipeline's data cannot be deleted yet: {error}"
                )
            self._report(document, error)
            log.info("%s: the finalizer cannot be removed yet: %s", key, error)
            return Result.WAITING if error.reason == Reason.WAITING else Result.FAILED
        self._finalize(document, wanted=False)
        return Result.WAITING

    def _report(self, document: Document, error: TidemillError) -> None:
        """If a user has to act, write into the status why the data cannot be deleted."""
        if isinstance(error, NotOurTurn) or (error.reason == Reason.WAITING and not error.remedy):
            return
        previous = figures.others(document.get("status") or {})
        status = detained(previous, error, dt.datetime.now(dt.UTC))
        if self._write is not None and status != previous:
            self._write(document, status)

    def _finalize(self, document: Document, wanted: bool) -> Document:
        metadata = document["metadata"]
        others = [name for name in metadata.get("finalizers", ()) if name != FINALIZER]
        finalizers = [*others, FINALIZER] if wanted else others
        patch = {"metadata": {"resourceVersion": metadata["resourceVersion"], "finalizers": finalizers}}
        return self._world.api.merge(PIPELINE, metadata["namespace"], metadata["name"], patch)


def needed(document: Document) -> bool:
    """Return whether the resource needs the finalizer, e.g. to delete topics or connectors."""
    deletes = (document.get("spec") or {}).get("reclaimPolicy") == "Delete"
    return deletes or needs_workers(document) or Component.CONNECTORS in concerned(document.get("status"))


def held(document: Document) -> bool:
    """Return whether the resource has the operator's finalizer."""
    return FINALIZER in document["metadata"].get("finalizers", ())


def is_paused(document: Document) -> bool:
    """Return whether reconciliation of the resource is paused."""
    return bool((document["metadata"].get("annotations") or {}).get(PAUSE) == "true")
