"""Run a pipeline's workloads as Deployments, with their Services, policies and files."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from tidemill_contract import names
from tidemill_operator.actuators.kubernetes.api import DEPLOYMENT, PIPELINE, POD, Api, Conflict, Document
from tidemill_operator.actuators.kubernetes.rollout import rollout_outcome
from tidemill_operator.actuators.kubernetes.workloads import SHARED_COMPONENTS, Pass
from tidemill_operator.cluster_settings import Placement
from tidemill_operator.errors import Reason, TidemillError
from tidemill_operator.outcome import Outcome
from tidemill_operator.plan.model import Workload
from tidemill_operator.plan.render import object_metadata
from tidemill_operator.plan.render.object_metadata import OwnerReference
from tidemill_operator.plan.render.pods import PORTS, selector

_ATTEMPTS = 3


class NamespaceLocks:
    """A lock for each namespace, because two passes must not change shared objects at the same time.

    `reloaded` holds the last hash for `reload_files`, by namespace and workload.
    """

    def __init__(self) -> None:
        self.reloaded: dict[tuple[str, str], str] = {}
        self._locks: dict[str, threading.Lock] = defaultdict(threading.Lock)
        self._guard = threading.Lock()

    def of(self, namespace: str) -> threading.Lock:
        """Return a namespace's lock."""
        with self._guard:
            return self._locks[namespace]


@dataclass(frozen=True)
class Scale:
    """The values of a pipeline's scale subresource."""

    replicas: int
    selector: str


class KubernetesRuntime:
    """The runtime of one pipeline in a cluster, during one pass.

    `stage_replicas` is the number of running processes of the Python stage. Without a stage, `stage_replicas` is None.
    """

    def __init__(self, api: Api, placement: Placement, owner: OwnerReference, locks: NamespaceLocks) -> None:
        self._api, self._placement, self._owner, self._locks = api, placement, owner, locks
        self._serving: set[str] = set()
        self.scale: Scale | None = None
        self.stage_replicas: int | None = None
        self.repairs: list[str] = []
        self.created: list[str] = []

    def ensure(self, workloads: Sequence[Workload]) -> list[Outcome]:
        """Create, update or remove a pipeline's workloads, as the plan requires.

        Raises:
            TidemillError: the API does not answer.
        """
        self._serving = {workload.component for workload in workloads}
        if not workloads:
            return []

        def act(this_pass: Pass) -> list[Outcome]:
            outcomes = this_pass.ensure(workloads)
            self.repairs += this_pass.children.repairs
            self.created += this_pass.children.created
            for workload in workloads:
                if workload.component in this_pass.deployments:
                    self._record_scale(workload, this_pass.deployments[workload.component])
            return outcomes

        return self._retry_on_conflict(workloads[0].namespace, act)

    def observe(self, workloads: Sequence[Workload]) -> list[Outcome]:
        """Return the state of each workload that has a Deployment.

        Raises:
            TidemillError: the API does not answer.
        """
        outcomes = []
        for workload in workloads:
            live = self._api.get(DEPLOYMENT, workload.namespace, workload.name)
            owner_uid = (live or {}).get("metadata", {}).get("labels", {}).get(object_metadata.OWNER_UID)
            if live is not None and owner_uid == (self._owner.uid if workload.pipeline else object_metadata.SHARED):
                self._record_scale(workload, live)
                outcomes.append(rollout_outcome(workload, live, changed=0))
        return outcomes

    def _record_scale(self, workload: Workload, live: Document) -> None:
        if workload.component == "stage":
            self.stage_replicas = int(live.get("status", {}).get("replicas", 0))
        if workload.component == "processor":
            label_selector = ",".join(f"{name}={value}" for name, value in sorted(selector(workload).items()))
            self.scale = Scale(int(live.get("status", {}).get("replicas", 0)), label_selector)

    def remove(self, namespace: str, pipeline: str) -> None:
        """Remove a pipeline's workloads, and the pipeline's files from shared workloads.

        Raises:
            TidemillError: the API does not answer, or pods are still terminating (reason Waiting).
        """

        def act(this_pass: Pass) -> list[Outcome]:
            this_pass.clean_up(SHARED_COMPONENTS, configs=True, connections=True)
            return []

        self._retry_on_conflict(namespace, act)
        pods = self._api.list(
            POD,
            namespace,
            selector=f"{object_metadata.MANAGED_BY}={object_metadata.MANAGER},{object_metadata.PIPELINE}={pipeline}",
            metadata_only=True,
        )
        if pods:
            raise TidemillError(Reason.WAITING, f"{len(pods)} pods of {namespace}/{pipeline} are still ending")

    def endpoints(self, namespace: str, pipeline: str) -> Mapping[str, str]:
        """Return the base URLs of the pipeline's ingest and API within the cluster."""
        return {
            part: f"http://{names.service(pipeline, part)}.{namespace}.svc:{PORTS[part]}"
            for part in SHARED_COMPONENTS
            if part in self._serving
        }

    def exists(self, namespace: str, pipeline: str) -> bool:
        """Return whether the resource exists. If the API refuses the request, return True.

        Raises:
            TidemillError: the API does not answer.
        """
        try:
            return self._api.get(PIPELINE, namespace, pipeline) is not None
        except TidemillError as error:
            if error.reason != Reason.REFUSED:
                raise
            return True

    def _retry_on_conflict(self, namespace: str, act: Callable[[Pass], list[Outcome]]) -> list[Outcome]:
        """Call `act` with the namespace's current state, and call `act` again if another operator changed an object."""
        with self._locks.of(namespace):
            for _ in range(_ATTEMPTS - 1):
                try:
                    return act(self._start_pass(namespace))
                except Conflict:
                    continue
            return act(self._start_pass(namespace))

    def _start_pass(self, namespace: str) -> Pass:
        return Pass.start(self._api, self._placement, self._owner, namespace, self._locks.reloaded)
