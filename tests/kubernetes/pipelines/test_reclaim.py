"""Tests of the chart's CronJob, which deletes data of deleted pipelines while no operator runs.

The job runs as a process on a real API server, Kafka and Postgres.
"""

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


def run_job(start_operator: Callable[..., Any]) -> str:
    """Run the job to its end and return its log."""
    process = start_operator("-m", "tidemill_operator.cluster.removal.reclaim")
    assert process.process.wait(90.0) == 0, process.log.read_text()
    return str(process.log.read_text())


@pytest.mark.fault("operator-gone-while-deleting", "the CronJob deletes the data; nothing is blocked")
def test_the_job_deletes_data_of_deleted_pipelines_when_the_operator_is_gone(
    cluster: Any,
    start_operator: Callable[..., Any],
    data: Any,
    namespace: str,
    make: Callable[..., Key],
    eventually: Any,
) -> None:
    """A killed operator leaves its Lease behind. The job deletes the data, except those of a paused pipeline."""
    operator = start_operator()
    keys = {name: make(name, namespace, reclaimPolicy="Delete") for name in ("leaving", "paused", "staying")}
    for key in keys.values():
        cluster.await_ready(key)
    operator.stop(signal.SIGKILL)
    assert run_job(start_operator) == ""

    cluster.patch(keys["paused"], metadata={"annotations": {PAUSE: "true"}})
    for name in ("leaving", "paused"):
        cluster.api.delete(PIPELINE, namespace, name)
    run_job(start_operator)
    eventually(lambda: cluster.get(keys["leaving"]) == {}, what="the pipeline is deleted")
    assert {name for name, key in keys.items() if cluster.get(key)} == {"paused", "staying"}
    assert {name for name in keys if data.has_schema(namespace, name)} == {"paused", "staying"}
    with_topic = {name for name in keys if names.topic(namespace, name, "events") in data.topics(namespace)}
    assert with_topic == {"paused", "staying"}


def test_the_job_does_nothing_while_an_operator_renews_the_lease(
    cluster: Any, start_operator: Callable[..., Any], namespace: str, make: Callable[..., Key], eventually: Any
) -> None:
    """The running operator here watches another namespace. The job still leaves the deletion to the operator."""
    operator = start_operator()
    key = make("orders", namespace, reclaimPolicy="Delete")
    cluster.await_ready(key)
    operator.stop()
    other = start_operator(TIDEMILL_WATCH_NAMESPACES="default")
    eventually(other.leads, what="the operator leads")
    cluster.api.delete(PIPELINE, namespace, "orders")
    assert "an operator is running" in run_job(start_operator)
    assert cluster.get(key)
    assert other.leads()


def test_the_job_retries_a_pipeline_that_fails_and_returns_it_after_the_deadline() -> None:
    """A conflict and an error that says "waiting" are both retried."""
    document = {"metadata": {"namespace": "shop", "name": "orders", "uid": "u-1"}}
    answers = [
        Conflict(Reason.WAITING, "somebody was faster"),
        TidemillError(Reason.WAITING, "pods have not ended"),
        None,
    ]
    remaining = [document]

    def release(_: Any) -> None:
        answer = answers.pop(0)
        if answer is not None:
            raise answer
        remaining.clear()

    assert reclaim.reclaim(lambda: list(remaining), release, seconds=60.0) == []
    assert answers == []
    remaining.append(document)
    answers.append(TidemillError(Reason.WAITING, "pods have not ended"))
    assert reclaim.reclaim(lambda: list(remaining), release, seconds=0.0) == ["shop/orders"]
