"""Uninstalls the operator and the objects of the operator. Topics, schemas and workloads are kept."""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass

from tidemill_operator.actuators.kubernetes.api import (
    CONFIG_MAP,
    DEPLOYMENT,
    LEASE,
    PIPELINE,
    POD,
    SECRET,
    WEBHOOKS,
    Api,
    Conflict,
    NotFound,
)
from tidemill_operator.cluster.leader_tasks import CANARY
from tidemill_operator.errors import Reason, TidemillError
from tidemill_operator.settings import read_list

log = logging.getLogger("tidemill_operator.cluster.removal.uninstall")

FINALIZER_PREFIX = "tidemill.dev/"
_END_SECONDS = 90.0
_PAUSE_SECONDS = 1.0
_ATTEMPTS = 5


@dataclass(frozen=True)
class Installation:
    """The installation to remove."""

    namespace: str
    deployment: str
    webhook: str = ""
    namespaces: tuple[str, ...] = ()
    lease: str = ""
    secret: str = ""

    @classmethod
    def from_env(cls, environ: Mapping[str, str] = os.environ) -> Installation:
        """Read the installation from the environment variables that the chart sets.

        Raises:
            ValueError: TIDEMILL_OPERATOR_NAMESPACE or TIDEMILL_OPERATOR_DEPLOYMENT is missing.
        """
        required = {name: environ.get(f"TIDEMILL_OPERATOR_{name}", "") for name in ("NAMESPACE", "DEPLOYMENT")}
        for name, value in required.items():
            if not value:
                raise ValueError(f"TIDEMILL_OPERATOR_{name}: is not set; it names the installation to remove")
        return cls(
            namespace=required["NAMESPACE"],
            deployment=required["DEPLOYMENT"],
            webhook=environ.get("TIDEMILL_WEBHOOK_CONFIGURATION", ""),
            namespaces=read_list(environ, "TIDEMILL_WATCH_NAMESPACES"),
            lease=environ.get("TIDEMILL_LEASE_NAME", ""),
            secret=environ.get("TIDEMILL_WEBHOOK_SECRET", ""),
        )


def uninstall(api: Api, installation: Installation, *, end_seconds: float = _END_SECONDS) -> list[str]:
    """Remove an installation, and return the pipelines whose finalizer was removed, as `namespace/name`.

    Raises:
        TidemillError: the API refuses or does not answer, or pods do not end.
    """
    stop_operator(api, installation, seconds=end_seconds)
    freed = [
        pipeline for namespace in installation.namespaces or (None,) for pipeline in remove_finalizers(api, namespace)
    ]
    for kind in WEBHOOKS if installation.webhook else ():
        if api.delete(kind, None, installation.webhook):
            log.info("%s %s is removed", kind.kind, installation.webhook)
    remove_operator_objects(api, installation)
    return freed


def remove_operator_objects(api: Api, installation: Installation) -> None:
    """Remove the objects that the operator created for itself.

    Raises:
        TidemillError: the API refuses or does not answer.
    """
    home, watched = installation.namespace, installation.namespaces
    canary_namespace = watched[0] if watched and home not in watched else home
    own = [
        (LEASE, home, installation.lease),
        (SECRET, home, installation.secret),
        (CONFIG_MAP, canary_namespace, CANARY),
    ]
    for kind, namespace, name in own:
        if name and api.delete(kind, namespace, name):
            log.info("%s %s/%s is removed", kind.kind, namespace, name)


def stop_operator(api: Api, installation: Installation, *, seconds: float) -> None:
    """Scale the operator to zero, and wait until no pod is left.

    A running pod would set finalizers again.

    Raises:
        TidemillError: pods are left after `seconds`.
    """
    try:
        deployment = api.merge(DEPLOYMENT, installation.namespace, installation.deployment, {"spec": {"replicas": 0}})
    except NotFound:
        return
    labels = deployment["spec"]["selector"]["matchLabels"]
    selector = ",".join(f"{name}={value}" for name, value in sorted(labels.items()))
    deadline = time.monotonic() + seconds
    while pods := api.list(POD, installation.namespace, selector=selector, metadata_only=True):
        if time.monotonic() > deadline:
            names = ", ".join(pod["metadata"]["name"] for pod in pods)
            raise TidemillError(
                Reason.WAITING, f"operator pods have not ended within {seconds:g} s: {names}", "delete them"
            )
        time.sleep(_PAUSE_SECONDS)
    log.info("operator %s/%s has ended", installation.namespace, installation.deployment)


def remove_finalizers(api: Api, namespace: str | None) -> list[str]:
    """Remove the operator's finalizers from the pipelines of a namespace, or of all namespaces (None).

    Raises:
        TidemillError: the API refuses or does not answer.
    """
    try:
        pipelines = api.list(PIPELINE, namespace, metadata_only=True)
    except NotFound:
        return []  # the CRD was deleted, so all pipelines are gone
    changed = []
    for pipeline in pipelines:
        metadata = pipeline["metadata"]
        if any(name.startswith(FINALIZER_PREFIX) for name in metadata.get("finalizers", ())):
            _remove_pipeline_finalizers(api, metadata["namespace"], metadata["name"])
            changed.append(f"{metadata['namespace']}/{metadata['name']}")
            note = "; its topics and schema are kept" if metadata.get("deletionTimestamp") else ""
            log.info("pipeline %s: the finalizer is removed%s", changed[-1], note)
    return changed


def _remove_pipeline_finalizers(api: Api, namespace: str, name: str) -> None:
    for attempt in range(_ATTEMPTS):
        live = api.get(PIPELINE, namespace, name)
        if live is None:
            return
        finalizers = live["metadata"].get("finalizers", ())
        others = [finalizer for finalizer in finalizers if not finalizer.startswith(FINALIZER_PREFIX)]
        version = live["metadata"]["resourceVersion"]
        try:
            api.merge(
                PIPELINE, namespace, name, {"metadata": {"finalizers": others or None, "resourceVersion": version}}
            )
        except NotFound:
            return
        except Conflict:
            if attempt == _ATTEMPTS - 1:
                raise
        else:
            return


def main() -> int:
    """Uninstall the operator, and return the exit code."""
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(message)s")
    try:
        freed = uninstall(Api(), Installation.from_env())
    except (TidemillError, ValueError) as error:
        log.error("%s", error)
        return 1
    log.info("done: finalizers of %d pipelines removed; the CRD, topics and schemas are kept", len(freed))
    return 0


if __name__ == "__main__":
    sys.exit(main())
