"""Run a pipeline's workloads as Deployments, with their Services, policies and files."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from tidemill_contract import names
from tidemill_operator.actuators.kubernetes.api import DEPLOYMENT, PIPELINE, POD, Api, Conflict, Document
from tidemill_operator.actuators.kubernetes.rollout import rollout
from tidemill_operator.actuators.kubernetes.workloads import SHARING, Pass
from tidemill_operator.cluster_settings import Placement
from tidemill_operator.errors import Reason, TidemillError
from tidemill_operator.outcome import Outcome
from tidemill_operator.plan.model import Workload
from tidemill_operator.plan.render import marks
from tidemill_operator.plan.render.marks import OwnerReference
from tidemill_operator.plan.render.pods import PORTS, selector

_ATTEMPTS = 3


class NamespaceLocks:
    """A lock for each namespace, because two passes must not change shared objects at the same time."""

    def __init__(self) -> None:
        self.shown: dict[tuple[str, str], str] = {}
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

    `stage` is the number of running processes of the Python stage. Without a stage, `stage` is None.
    """

    def __init__(self, api: Api, placement: Placement, owner: OwnerReference, locks: NamespaceLocks) -> None:
        self._api, self._placement, self._owner, self._locks = api, placement, owner, locks
        self._serving: set[str] = set()
        self.scale: Scale | None = None
        self.stage: int | None = None
        self.repairs: list[str] = []
        self.made: list[str] = []

    def ensure(self, workloads: Sequence[Workload]) -> list[Outcome]:
        """Create, update or remove a pipeline's workloads, as the plan requires.

        Raises:
            TidemillError: the API does not answer.
        """
        self._serving = {workload.component for workload in workloads}
        if not workloads:
            return []

        def act(doing: Pass) -> list[Outcome]:
            outcomes = doing.ensure(workloads)
            self.repairs += doing.children.repairs
            self.made += doing.children.made
            for workload in workloads:
                if workload.component in doing.deployments:
                    self._note_scale(workload, doing.deployments[workload.component])
            return outcomes

        return self._retried(workloads[0].namespace, act)

    def observe(self, workloads: Sequence[Workload]) -> list[Outcome]:
        """Return the state of each workload that has a Deployment.

        Raises:
            TidemillError: the API does not answer.
        """
        outcomes = []
        for workload in workloads:
            live = self._api.get(DEPLOYMENT, workload.namespace, workload.name)
            whose = (live or {}).get("metadata", {}).get("labels", {}).get(marks.OWNER_UID)
            if live is not None and whose == (self._owner.uid if workload.pipeline else marks.SHARED):
                self._note_scale(workload, live)
                outcomes.append(rollout(workload, live, changed=0))
        return outcomes

    def _note_scale(self, workload: Workload, live: Document) -> None:
        if workload.component == "stage":
            self.stage = int(live.get("status", {}).get("replicas", 0))
        if workload.component == "processor":
            label_selector = ",".join(f"{name}={value}" for name, value in sorted(selector(workload).items()))
            self.scale = Scale(int(live.get("status", {}).get("replicas", 0)), label_selector)

    def remove(self, namespace: str, pipeline: str) -> None:
        """Remove a pipeline's workloads, and the pipeline's files from shared workloads.

        Raises:
            TidemillError: the API does not answer, or pods are still terminating (reason Waiting).
        """

        def act(doing: Pass) -> list[Outcome]:
            doing.leave(SHARING, configs=True, all_of_it=True)
            return []

        self._retried(namespace, act)
        pods = self._api.list(
            POD,
            namespace,
            selector=f"{marks.MANAGED_BY}={marks.MANAGER},{marks.PIPELINE}={pipeline}",
            metadata_only=True,
        )
        if pods:
            raise TidemillError(Reason.WAITING, f"{len(pods)} pods of {namespace}/{pipeline} are still ending")

    def endpoints(self, namespace: str, pipeline: str) -> Mapping[str, str]:
        """Return the base URLs of the pipeline's ingest and API within the cluster."""
        return {
            part: f"http://{names.service(pipeline, part)}.{namespace}.svc:{PORTS[part]}"
            for part in SHARING
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

    def _retried(self, namespace: str, act: Callable[[Pass], list[Outcome]]) -> list[Outcome]:
        """Call `act` with the namespace's current state, and call `act` again if another operator changed an object."""
        with self._locks.of(namespace):
            for _ in range(_ATTEMPTS - 1):
                try:
                    return act(self._look(namespace))
                except Conflict:
                    continue
            return act(self._look(namespace))

    def _look(self, namespace: str) -> Pass:
        return Pass.start(self._api, self._placement, self._owner, namespace, self._locks.shown)
