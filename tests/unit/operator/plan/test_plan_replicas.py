"""Tests of the planned changes of topics for a changed replication factor."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tidemill_contract.resource.spec import AnalyticsPipeline
from tidemill_operator.plan.build import build_plan
from tidemill_operator.plan.changes import find_changes
from tidemill_operator.plan.live import LiveFacts, LiveTopic
from tidemill_operator.settings import Platform

Document = dict[str, Any]
KINDS = ("events", "results", "dead-letters")


def planned(document: Document, *, source: int, outputs: int, **topic: Any) -> dict[str, list[str]]:
    """Return the planned changes of each existing topic, for these members of the source topic."""
    document["spec"]["source"]["topic"] = {"partitions": 3, **topic}
    pipeline = AnalyticsPipeline.model_validate(document)
    live_topics = {f"shop.orders.{kind}": LiveTopic(3, source if kind == "events" else outputs) for kind in KINDS}
    live = LiveFacts(live_topics, 3)
    platform = replace(Platform(), partitions=3)
    plan = build_plan(pipeline, platform, 1, live)
    before = build_plan(pipeline, platform, 1, replace(live, topics={}))
    configs = {
        item.name: {**item.config, "min.insync.replicas": str(max(1, live_topics[item.name].replication_factor - 1))}
        for item in before.topics
    }
    planned_changes = find_changes(plan, live, before=None, configs=configs)
    return {
        change.name.removeprefix("shop.orders."): [f"{d.member}: {d.before} → {d.after}" for d in change.differences]
        for change in planned_changes
        if change.kind == "topic"
    }


UP = ["replicationFactor: 1 → 3", "replicas: 3 → 9", "config.min.insync.replicas: 1 → 2"]
DOWN = ["replicationFactor: 3 → 2", "replicas: 9 → 6", "config.min.insync.replicas: 2 → 1"]
CASES: list[tuple[dict[str, Any], int, int, dict[str, list[str]], str]] = [
    ({"replicationFactor": 3}, 1, 1, dict.fromkeys(KINDS, UP), "the topics of results and dead letters change too"),
    ({"replicationFactor": 2}, 3, 3, dict.fromkeys(KINDS, DOWN), "fewer replicas"),
    ({"replicationFactor": 3}, 3, 1, dict.fromkeys(KINDS[1:], UP), "only topics with fewer replicas change"),
    ({}, 3, 2, {}, "without a number each topic keeps its replicas"),
    (
        {"replicationFactor": 3, "name": "shop.orders.events", "managed": False},
        1,
        1,
        {},
        "an unmanaged topic and its output topics stay",
    ),
]


@pytest.mark.parametrize(("topic", "source", "outputs", "expected", "why"), CASES, ids=[row[4] for row in CASES])
def test_a_changed_replication_factor_plans_the_moves_of_its_topics(
    document: Document, topic: dict[str, Any], source: int, outputs: int, expected: dict[str, list[str]], why: str
) -> None:
    assert planned(document, source=source, outputs=outputs, **topic) == expected
