"""Turn the rollout state of a Deployment into an outcome."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tidemill_operator.errors import Reason
from tidemill_operator.outcome import COMPONENT_OF_WORKLOAD, Outcome, done, waiting
from tidemill_operator.plan.model import Workload

_MAX_MESSAGE_CHARS = 300


def rollout_outcome(workload: Workload, live: Mapping[str, Any], *, changed: int) -> Outcome:
    """Return Done if all replicas run the newest template and all other pods have ended, else Waiting.

    The outcome says that the workload is serving if at least one pod is available.
    """
    component = COMPONENT_OF_WORKLOAD[workload.component]
    if is_rolled_out(live):
        return done(component, workload.name, changed=changed)
    wanted, status = int(live["spec"].get("replicas", 1)), live.get("status", {})
    running, available = (int(status.get(name, 0)) for name in ("replicas", "availableReplicas"))
    updated = int(status.get("updatedReplicas", 0)) if _is_observed(live) else 0
    message = f"{updated} of {wanted} replicas of {workload.name} run as specified, {available} are available"
    if updated == wanted == available:
        message = f"{running - updated} former replicas of {workload.name} are still terminating"
    serving = available > 0 or wanted == 0 or workload.component == "replay"
    problem = _problem(status)
    reason = Reason.STUCK if problem else Reason.WAITING
    return waiting(component, workload.name, message + problem, changed=changed, serving=serving, reason=reason)


def is_rolled_out(live: Mapping[str, Any]) -> bool:
    """Return whether a Deployment's newest template runs in all replicas, and no other pod is left."""
    wanted, status = int(live["spec"].get("replicas", 1)), live.get("status", {})
    counts = [int(status.get(name, 0)) for name in ("replicas", "updatedReplicas", "availableReplicas")]
    return _is_observed(live) and all(count == wanted for count in counts)


def _is_observed(live: Mapping[str, Any]) -> bool:
    observed = int(live.get("status", {}).get("observedGeneration", 0))
    return observed >= int(live["metadata"].get("generation", 1))


def _problem(status: Mapping[str, Any]) -> str:
    conditions = {condition.get("type"): condition for condition in status.get("conditions", ())}
    failure = conditions.get("ReplicaFailure", {})
    if failure.get("status") == "True":
        return f"; pods cannot be created: {str(failure.get('message', ''))[:_MAX_MESSAGE_CHARS]}"
    progress = conditions.get("Progressing", {})
    if progress.get("status") == "False":
        return f"; no progress ({progress.get('reason')}); check the events of the pods"
    return ""
