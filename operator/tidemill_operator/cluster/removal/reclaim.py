"""Replaces a missing operator: deletes topics and schemas of pipelines that are being deleted."""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Callable, Mapping

from tidemill_operator.actuators.kubernetes.api import PIPELINE, Api, Conflict, Document
from tidemill_operator.actuators.kubernetes.runtime import NamespaceLocks
from tidemill_operator.cluster.context import PassContext
from tidemill_operator.cluster.event_recorder import EventRecorder
from tidemill_operator.cluster.leader import Elector
from tidemill_operator.cluster.removal.finalizer import Finalizer, has_finalizer, is_paused
from tidemill_operator.cluster_settings import ClusterSettings
from tidemill_operator.errors import TidemillError
from tidemill_operator.keys import Key
from tidemill_operator.settings import Platform

log = logging.getLogger("tidemill_operator.cluster.removal.reclaim")
# If the operator is dead, its Lease expires within 25 s. A running operator renews the Lease every two seconds.
_ELECTION_SECONDS = 25.0
_WORK_SECONDS = 240.0
_PAUSE_SECONDS = 2.0


def pipelines_to_finalize(api: Api, namespaces: tuple[str, ...]) -> list[Document]:
    """Return the pipelines that are being deleted and have the finalizer, except paused pipelines.

    Raises:
        TidemillError: the API refuses or does not answer.
    """
    pipelines = [item for namespace in namespaces or (None,) for item in api.list(PIPELINE, namespace)]
    being_deleted = [item for item in pipelines if item["metadata"].get("deletionTimestamp") and has_finalizer(item)]
    return [item for item in being_deleted if not is_paused(item)]


def reclaim(
    find: Callable[[], list[Document]], finalize: Callable[[Document], object], *, seconds: float = _WORK_SECONDS
) -> list[str]:
    """Try for up to `seconds` to delete the data of the pipelines that `find` returns.

    Returns:
        The pipelines whose data is not deleted yet, as `namespace/name`.

    Raises:
        TidemillError: the pipelines cannot be listed.
    """
    deadline = time.monotonic() + seconds
    while remaining := find():
        for document in remaining:
            key = Key.of(document["metadata"])
            try:
                finalize(document)
            except Conflict as error:
                log.info("%s: %s; again", key, error)
            except TidemillError as error:
                log.warning("%s: %s", key, error)
        if time.monotonic() > deadline:
            break
        time.sleep(_PAUSE_SECONDS)
    return [str(Key.of(item["metadata"])) for item in remaining]


def main(environ: Mapping[str, str] = os.environ) -> int:
    """Delete the data of pipelines that are being deleted, unless an operator runs.

    Returns:
        The exit status: 1 after an error, or if an unpaused pipeline still waits. If an operator runs, 0.
    """
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(message)s")
    try:
        platform = Platform.from_env({**environ, "TIDEMILL_RUNTIME": "kubernetes"})
        settings = ClusterSettings.from_env(platform, environ)
        return _reclaim_as_leader(platform, settings)
    except (TidemillError, ValueError, OSError) as error:
        log.error("%s", error)
        return 1


def _reclaim_as_leader(platform: Platform, settings: ClusterSettings) -> int:
    api = Api()
    if not pipelines_to_finalize(api, settings.namespaces):
        return 0
    elector = Elector.of(settings)
    elector.start()
    try:
        if not elector.wait(_ELECTION_SECONDS):
            log.info("an operator is running")
            return 0
        context = PassContext.of(platform, settings, api=api, elector=elector)
        finalizer = Finalizer(context, EventRecorder(api, settings.pod_name), NamespaceLocks())
        remaining = reclaim(lambda: pipelines_to_finalize(api, settings.namespaces), finalizer.finalize)
    finally:
        elector.stop()
    if remaining:
        log.error("still waiting: %s", ", ".join(remaining))
    return 1 if remaining else 0


if __name__ == "__main__":
    sys.exit(main())
