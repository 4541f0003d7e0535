"""Change an annotation of pods, so that nodes update the pods' mounted files immediately."""

from __future__ import annotations

import logging

from tidemill_operator.actuators.kubernetes.api import POD, Api, NotFound
from tidemill_operator.errors import TidemillError
from tidemill_operator.plan.render import object_metadata

log = logging.getLogger(__name__)
_FILES = "tidemill.dev/files"


def reload_files(
    api: Api, namespace: str, workload: str, *, files_hash: str, reloaded: dict[tuple[str, str], str]
) -> int:
    """Annotate the pods of a workload with a hash of their files.

    Return the number of changed pods.
    """
    # Return early if all running pods have the hash `files_hash`. New pods start with the current files.
    if reloaded.get((namespace, workload)) == files_hash:
        return 0
    changed, all_annotated = 0, True
    selector = f"{object_metadata.MANAGED_BY}={object_metadata.MANAGER},{object_metadata.WORKLOAD}={workload}"
    for pod in api.list(POD, namespace, selector=selector, metadata_only=True):
        metadata = pod["metadata"]
        if metadata.get("annotations", {}).get(_FILES) != files_hash and not metadata.get("deletionTimestamp"):
            try:
                api.merge(POD, namespace, metadata["name"], {"metadata": {"annotations": {_FILES: files_hash}}})
                changed += 1
            except NotFound:
                continue
            except TidemillError as error:  # without the annotation, the node updates the files about a minute later
                log.warning("files of pod %s/%s: %s", namespace, metadata["name"], error)
                all_annotated = False
    if all_annotated:
        reloaded[namespace, workload] = files_hash
    return changed
