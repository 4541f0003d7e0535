"""How far a Deployment is: done, on its way while others serve, on its way and nobody serves, stuck."""

from __future__ import annotations

from typing import Any

import pytest

from tidemill_operator.actuators.kubernetes.rollout import rollout
from tidemill_operator.errors import Reason
from tidemill_operator.outcome import Rank
from tidemill_operator.plan.model import Workload

ROLLOUTS: list[tuple[str, tuple[int, int, int], dict[str, Any], str, str]] = [
    ("is as it should be", (3, 3, 3), {}, "", "done"),
    ("an old one serves", (2, 0, 1), {}, "0 of 1 replicas of p run as specified, 1 are available", "serving"),
    ("two of three serve", (3, 3, 2), {}, "3 of 3 replicas of p run as specified, 2 are available", "serving"),
    ("none serves", (1, 1, 0), {}, "1 of 1 replicas of p run as specified, 0 are available", "idle"),
    ("old ones end", (2, 1, 1), {}, "1 former replicas of p are still terminating", "serving"),
    ("not seen yet", (1, 1, 1), {"seen": 1}, "0 of 1 replicas of p run as specified, 1 are available", "serving"),
    ("stands still", (0, 0, 0), {}, "0 of 0 replicas of p run as specified, 0 are available", "done"),
]


def deployment(counts: tuple[int, int, int], wanted: int, *, seen: int = 2, **status: Any) -> dict[str, Any]:
    running, updated, available = counts
    told = {"replicas": running, "updatedReplicas": updated, "availableReplicas": available, "observedGeneration": seen}
    return {"metadata": {"generation": 2}, "spec": {"replicas": wanted}, "status": {**told, **status}}


def workload(component: Any = "processor") -> Workload:
    return Workload("p", "shop", component, "orders", "m", 1)


@pytest.mark.parametrize(("what", "counts", "more", "message", "state"), ROLLOUTS, ids=[row[0] for row in ROLLOUTS])
def test_a_rollout_reports_how_many_pods_are_updated_and_whether_it_serves(
    what: str, counts: tuple[int, int, int], more: dict[str, Any], message: str, state: str
) -> None:
    wanted = 1 if "of 1 " in message or "former" in message else counts[0]
    told = rollout(workload(), deployment(counts, wanted, **more), changed=0)
    if state == "done":
        assert told.rank is Rank.DONE, what
        return
    assert (told.rank, told.reason, told.message) == (Rank.WAITING, Reason.WAITING, message), what
    assert told.serving is (state == "serving"), what


def test_a_replay_serves_nobody() -> None:
    """Its processors are beside those that count: that they are missing makes nothing unready."""
    assert rollout(workload("replay"), deployment((1, 1, 0), 1), changed=0).serving


def test_a_stuck_rollout_says_why() -> None:
    condition = {"type": "Progressing", "status": "False", "reason": "ProgressDeadlineExceeded"}
    told = rollout(
        workload(), deployment((2, 1, 1), 1, seen=2, conditions=[condition], unavailableReplicas=1), changed=0
    )
    assert (told.reason, told.serving) == (Reason.STUCK, True)
    assert told.message.endswith("; no progress (ProgressDeadlineExceeded); check the events of the pods")
