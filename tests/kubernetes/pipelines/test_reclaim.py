"""What the chart's CronJob does while no operator runs."""

from __future__ import annotations

import signal
from collections.abc import Callable
from typing import Any

import pytest

from tidemill_contract import names
from tidemill_operator.actuators.kubernetes.api import PIPELINE, Conflict
from tidemill_operator.cluster.removal import reclaim
from tidemill_operator.errors import Reason, TidemillError
from tidemill_operator.keys import Key
from tidemill_operator.reconcile import PAUSE

pytestmark = [pytest.mark.kubernetes, pytest.mark.integration, pytest.mark.slow]


def stand_in(start_operator: Callable[..., Any]) -> str:
    """Run it to its end; what it logged."""
    process = start_operator("-m", "tidemill_operator.cluster.removal.reclaim")
    assert process.process.wait(90.0) == 0, process.log.read_text()
    return str(process.log.read_text())


@pytest.mark.fault("operator-gone-while-deleting", "data that are to go go; nothing is stuck")
def test_data_go_without_an_operator(
    cluster: Any,
    start_operator: Callable[..., Any],
    data: Any,
    namespace: str,
    make: Callable[..., Key],
    eventually: Any,
) -> None:
    """The operator was killed with the Lease in its hands. Whoever is paused waits, and so does nobody else."""
    operator = start_operator()
    keys = {name: make(name, namespace, reclaimPolicy="Delete") for name in ("leaving", "paused", "staying")}
    for key in keys.values():
        cluster.await_ready(key)
    operator.stop(signal.SIGKILL)
    assert stand_in(start_operator) == ""

    cluster.patch(keys["paused"], metadata={"annotations": {PAUSE: "true"}})
    for name in ("leaving", "paused"):
        cluster.api.delete(PIPELINE, namespace, name)
    stand_in(start_operator)
    eventually(lambda: cluster.get(keys["leaving"]) == {}, what="it is gone")
    assert {name for name, key in keys.items() if cluster.get(key)} == {"paused", "staying"}
    assert {name for name in keys if data.has_schema(namespace, name)} == {"paused", "staying"}
    with_topic = {name for name in keys if names.topic(namespace, name, "events") in data.topics(namespace)}
    assert with_topic == {"paused", "staying"}


def test_an_operator_that_runs_is_left_alone(
    cluster: Any, start_operator: Callable[..., Any], namespace: str, make: Callable[..., Key], eventually: Any
) -> None:
    """Who has the Lease renews it, so what waits is theirs to do; here it is one that looks elsewhere."""
    operator = start_operator()
    key = make("orders", namespace, reclaimPolicy="Delete")
    cluster.await_ready(key)
    operator.stop()
    other = start_operator(TIDEMILL_WATCH_NAMESPACES="default")
    eventually(other.leads, what="it leads")
    cluster.api.delete(PIPELINE, namespace, "orders")
    assert "an operator is running" in stand_in(start_operator)
    assert cluster.get(key)
    assert other.leads()


def test_what_fails_is_tried_again_and_told_in_the_end() -> None:
    """A conflict and a server that is away leave the others alone."""
    document = {"metadata": {"namespace": "shop", "name": "orders", "uid": "u-1"}}
    answers = [
        Conflict(Reason.WAITING, "somebody was faster"),
        TidemillError(Reason.WAITING, "pods have not ended"),
        None,
    ]
    left = [document]

    def let_go(_: Any) -> None:
        answer = answers.pop(0)
        if answer is not None:
            raise answer
        left.clear()

    assert reclaim.reclaim(lambda: list(left), let_go, seconds=60.0) == []
    assert answers == []
    left.append(document)
    answers.append(TidemillError(Reason.WAITING, "pods have not ended"))
    assert reclaim.reclaim(lambda: list(left), let_go, seconds=0.0) == ["shop/orders"]
