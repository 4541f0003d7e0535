"""Tests of Events: one for each transition of a pipeline, and one for each new version of an aggregation."""

from __future__ import annotations

import datetime as dt

import pytest

from tidemill_operator.cluster.event_recorder import conditions_to_report
from tidemill_operator.errors import Reason, TidemillError
from tidemill_operator.outcome import Component, Outcome, done, failed, waiting
from tidemill_operator.status import Report, new_status, new_version_messages

NOON = dt.datetime(2026, 3, 1, 12, tzinfo=dt.UTC)
READY = [done(component, component.value) for component in Component]
COMING = waiting(Component.PROCESSORS, "p", "1 of 3 run as specified", serving=True)
STARTING = waiting(Component.PROCESSORS, "p", "0 of 1 are available")
AWAY = failed(Component.TOPICS, "t", TidemillError(Reason.UNREACHABLE, "Kafka does not answer"))
LOST = failed(Component.TOPICS, "t", TidemillError(Reason.DATA_LOSS, "topic t is gone"))
STALE = TidemillError(Reason.NOT_SUPPORTED, "spec.source.key: changed")


def pipeline(*others: Outcome, **more: object) -> Report:
    parts = {outcome.component: outcome for outcome in (*READY, *others)}
    return Report(1, list(parts.values()), **more)  # type: ignore[arg-type]


STORIES: list[tuple[str, list[Report], list[str]]] = [
    (
        "a new pipeline",
        [pipeline(STARTING), pipeline(STARTING), pipeline()],
        ["Progressing True Waiting", "", "Ready True Applied"],
    ),
    (
        "a rollout",
        [pipeline(), pipeline(COMING), pipeline()],
        ["Ready True Applied", "Progressing True Waiting", "Progressing False Applied"],
    ),
    (
        "a server is unreachable for a while",
        [pipeline(), pipeline(AWAY), pipeline(AWAY), pipeline()],
        ["Ready True Applied", "Ready False Unreachable", "", "Ready True Applied"],
    ),
    ("lost data", [pipeline(), pipeline(LOST)], ["Ready True Applied", "Ready False DataLoss"]),
    (
        "an unreachable server, then lost data",
        [pipeline(AWAY), pipeline(LOST)],
        ["Ready False Unreachable", "Stalled True DataLoss"],
    ),
    (
        "a refused edit",
        [pipeline(), pipeline(stalled=[STALE]), pipeline()],
        ["Ready True Applied", "Stalled True NotSupported", "Stalled False Applied"],
    ),
    (
        "a suspended pipeline",
        [pipeline(), pipeline(suspended=True)],
        ["Ready True Applied", "Suspended True Suspended"],
    ),
]


@pytest.mark.parametrize(("story", "reports", "expected"), STORIES, ids=[story for story, *_ in STORIES])
def test_each_transition_is_one_event(story: str, reports: list[Report], expected: list[str]) -> None:
    before, events = None, []
    for minute, report in enumerate(reports):
        now = new_status(before, report, NOON + dt.timedelta(minutes=minute))
        news = [f"{c['type']} {c['status']} {c['reason']}" for c in conditions_to_report(before, now)]
        events.append("; ".join(news))
        before = now
    assert events == expected, story


def test_the_event_of_a_new_version_names_the_former_version() -> None:
    def at(version: int, **more: object) -> dict[str, object]:
        return {"aggregations": [{"name": "by_shop", "version": version}, {"name": "total", "version": 1}], **more}

    assert list(new_version_messages(None, at(1), "orders")) == []
    assert list(new_version_messages(at(1), at(1), "orders")) == []
    assert list(new_version_messages(at(1), at(2), "orders")) == [
        "aggregation by_shop: version 2 counts from now on; earlier windows are kept as v1; `tidemill replay orders"
        " --aggregation by_shop` fills v2"
    ]
    filled = at(1, replay={"phase": "Replaying", "versions": {"by_shop": 2}})
    assert list(new_version_messages(filled, at(2), "orders")) == [
        "aggregation by_shop: version 2 is in force, which a replay has filled"
    ]
