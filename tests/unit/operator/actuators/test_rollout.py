"""Tests of the progress of a Deployment: complete, serving while it changes, not serving, or stuck."""

from __future__ import annotations

from typing import Any

import pytest

from tidemill_operator.actuators.kubernetes.rollout import rollout_outcome
from tidemill_operator.errors import Reason
from tidemill_operator.outcome import Rank
from tidemill_operator.plan.model import Workload

ROLLOUTS: list[tuple[str, tuple[int, int, int], dict[str, Any], str, str]] = [
    ("complete", (3, 3, 3), {}, "", "done"),
    ("a former pod serves", (2, 0, 1), {}, "0 of 1 replicas of p run as specified, 1 are available", "serving"),
    ("two of three pods serve", (3, 3, 2), {}, "3 of 3 replicas of p run as specified, 2 are available", "serving"),
    ("no pod serves", (1, 1, 0), {}, "1 of 1 replicas of p run as specified, 0 are available", "idle"),
    ("former pods end", (2, 1, 1), {}, "1 former replicas of p are still terminating", "serving"),
    (
        "the status is of an earlier generation",
        (1, 1, 1),
        {"observed": 1},
        "0 of 1 replicas of p run as specified, 1 are available",
        "serving",
    ),
    ("zero replicas", (0, 0, 0), {}, "0 of 0 replicas of p run as specified, 0 are available", "done"),
]


def deployment(counts: tuple[int, int, int], wanted: int, *, observed: int = 2, **status: Any) -> dict[str, Any]:
    running, updated, available = counts
    outcome = {
        "replicas": running,
        "updatedReplicas": updated,
        "availableReplicas": available,
        "observedGeneration": observed,
    }
    return {"metadata": {"generation": 2}, "spec": {"replicas": wanted}, "status": {**outcome, **status}}


def workload(component: Any = "processor") -> Workload:
    return Workload("p", "shop", component, "orders", "m", 1)


@pytest.mark.parametrize(("case", "counts", "more", "message", "state"), ROLLOUTS, ids=[row[0] for row in ROLLOUTS])
def test_a_rollout_reports_how_many_pods_are_updated_and_whether_it_serves(
    case: str, counts: tuple[int, int, int], more: dict[str, Any], message: str, state: str
) -> None:
    wanted = 1 if "of 1 " in message or "former" in message else counts[0]
    outcome = rollout_outcome(workload(), deployment(counts, wanted, **more), changed=0)
    if state == "done":
        assert outcome.rank is Rank.DONE, case
        return
    assert (outcome.rank, outcome.reason, outcome.message) == (Rank.WAITING, Reason.WAITING, message), case
    assert outcome.serving is (state == "serving"), case


def test_the_rollout_of_a_replay_always_serves() -> None:
    """A replay runs beside the processors, so missing pods of a replay make nothing unready."""
    assert rollout_outcome(workload("replay"), deployment((1, 1, 0), 1), changed=0).serving


def test_a_stuck_rollout_reports_the_reason() -> None:
    condition = {"type": "Progressing", "status": "False", "reason": "ProgressDeadlineExceeded"}
    outcome = rollout_outcome(
        workload(), deployment((2, 1, 1), 1, observed=2, conditions=[condition], unavailableReplicas=1), changed=0
    )
    assert (outcome.reason, outcome.serving) == (Reason.STUCK, True)
    assert outcome.message.endswith("; no progress (ProgressDeadlineExceeded); check the events of the pods")
