"""Stands in for a missing operator: deletes topics and schemas of pipelines that are being deleted."""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Callable, Mapping

from tidemill_operator.actuators.kubernetes.api import PIPELINE, Api, Conflict, Document
from tidemill_operator.actuators.kubernetes.runtime import NamespaceLocks
from tidemill_operator.cluster.events import Recorder
from tidemill_operator.cluster.leader import Elector
from tidemill_operator.cluster.removal.finalizing import Finalizing, held, is_paused
from tidemill_operator.cluster.world import World
from tidemill_operator.cluster_settings import ClusterSettings
from tidemill_operator.errors import TidemillError
from tidemill_operator.keys import Key
from tidemill_operator.settings import Platform

log = logging.getLogger("tidemill_operator.cluster.removal.reclaim")
# If the operator is dead, its Lease expires within 25 s. A running operator renews the Lease every two seconds.
_ELECTION_SECONDS = 25.0
_WORK_SECONDS = 240.0
_PAUSE_SECONDS = 2.0


def waiting(api: Api, namespaces: tuple[str, ...]) -> list[Document]:
    """Return the pipelines that are being deleted and have the finalizer, except paused pipelines.

    Raises:
        TidemillError: the API refuses or does not answer.
    """
    pipelines = [item for namespace in namespaces or (None,) for item in api.list(PIPELINE, namespace)]
    leaving = [item for item in pipelines if item["metadata"].get("deletionTimestamp") and held(item)]
    return [item for item in leaving if not is_paused(item)]


def reclaim(
    find: Callable[[], list[Document]], let_go: Callable[[Document], object], *, seconds: float = _WORK_SECONDS
) -> list[str]:
    """Try for up to `seconds` to delete the data of the pipelines that `find` returns.

    Returns:
        The pipelines whose data is not deleted yet, as `namespace/name`.

    Raises:
        TidemillError: the pipelines cannot be listed.
    """
    deadline = time.monotonic() + seconds
    while left := find():
        for document in left:
            key = Key.of(document["metadata"])
            try:
                let_go(document)
            except Conflict as error:
                log.info("%s: %s; again", key, error)
            except TidemillError as error:
                log.warning("%s: %s", key, error)
        if time.monotonic() > deadline:
            break
        time.sleep(_PAUSE_SECONDS)
    return [str(Key.of(item["metadata"])) for item in left]


def main(environ: Mapping[str, str] = os.environ) -> int:
    """Delete the data of pipelines that are being deleted, unless an operator runs.

    Returns:
        The exit status: 1 after an error, or if an unpaused pipeline still waits. If an operator runs, 0.
    """
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(message)s")
    try:
        platform = Platform.from_env({**environ, "TIDEMILL_RUNTIME": "kubernetes"})
        settings = ClusterSettings.from_env(platform, environ)
        return _stand_in(platform, settings)
    except (TidemillError, ValueError, OSError) as error:
        log.error("%s", error)
        return 1


def _stand_in(platform: Platform, settings: ClusterSettings) -> int:
    api = Api()
    if not waiting(api, settings.namespaces):
        return 0
    elector = Elector.of(settings)
    elector.start()
    try:
        if not elector.wait(_ELECTION_SECONDS):
            log.info("an operator is running")
            return 0
        world = World.of(platform, settings, api=api, elector=elector)
        finalizing = Finalizing(world, Recorder(api, settings.pod_name), NamespaceLocks())
        left = reclaim(lambda: waiting(api, settings.namespaces), finalizing.let_go)
    finally:
        elector.stop()
    if left:
        log.error("still waiting: %s", ", ".join(left))
    return 1 if left else 0


if __name__ == "__main__":
    sys.exit(main())
