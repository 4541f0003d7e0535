"""Tests of the changes that a plan makes: everything, nothing, or only the differences."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from tidemill_contract.resource.spec import AnalyticsPipeline
from tidemill_operator.plan.build import build_plan
from tidemill_operator.plan.changes import Change, Difference, find_changes, flatten
from tidemill_operator.plan.live import LiveFacts, LiveSchema, LiveTopic
from tidemill_operator.plan.model import Plan
from tidemill_operator.plan.postgres.schema import column_type
from tidemill_operator.settings import Platform

Document = dict[str, Any]


def plan_of(document: Document, live: LiveFacts | None = None) -> Plan:
    return build_plan(AnalyticsPipeline.model_validate(document), Platform(), document["metadata"]["generation"], live)


def applied(plan: Plan) -> LiveFacts:
    """Return the live facts after a plan was applied."""
    columns = {table.name: {c.name: column_type(c.definition) for c in table.columns} for table in plan.schema.tables}
    topics = {topic.name: LiveTopic(topic.partitions, topic.replication_factor) for topic in plan.topics}
    return LiveFacts(topics, 1, LiveSchema(columns=columns))


def configs(plan: Plan) -> dict[str, dict[str, str]]:
    return {topic.name: dict(topic.config) for topic in plan.topics}


def described(planned_changes: tuple[Change, ...]) -> list[str]:
    return [f"{change.action} {change.kind} {change.name}" for change in planned_changes]


def test_a_first_plan_creates_everything(document: Document) -> None:
    plan = plan_of(document)
    planned_changes = find_changes(plan, LiveFacts(), before=None, configs={})
    assert {change.action for change in planned_changes} == {"create"}
    assert [change.name for change in planned_changes if change.kind == "topic"] == [
        topic.name for topic in plan.topics
    ]
    assert [change.name for change in planned_changes if change.kind == "table"] == [
        table.name for table in plan.schema.tables
    ]
    assert described(planned_changes)[-4:] == [
        "create config orders.json",
        "create workload orders-processor",
        "create workload tidemill-ingest",
        "create workload tidemill-api",
    ]


def test_an_applied_plan_changes_nothing(document: Document) -> None:
    plan = plan_of(document)
    assert find_changes(plan, applied(plan), before=plan, configs=configs(plan)) == ()


def edit_replicas(document: Document) -> None:
    document["spec"]["processor"] = {"replicas": 2}


def edit_metric(document: Document) -> None:
    metric = {"name": "revenue", "function": "sum", "field": "amount"}
    document["spec"]["aggregations"][0]["metrics"].append(metric)


def edit_aggregation(document: Document) -> None:
    document["spec"]["aggregations"].append({**document["spec"]["aggregations"][0], "name": "by_land"})


def edit_partitions(document: Document) -> None:
    document["spec"]["source"]["topic"]["partitions"] = 5


def edit_retention(document: Document) -> None:
    document["spec"]["source"]["topic"]["retention"] = "1d"


def edit_ingest(document: Document) -> None:
    document["spec"]["ingest"] = {"enabled": False}


def edit_api(document: Document) -> None:
    document["spec"]["api"] = {"dedicated": True}


PROCESSOR = "change workload orders-processor"
CONFIG = "change config orders.json"
EDITS: list[tuple[Callable[[Document], None], list[str], tuple[str, str, Any, Any]]] = [
    (edit_replicas, [CONFIG, PROCESSOR], (PROCESSOR, "replicas", 1, 2)),
    (edit_replicas, [CONFIG, PROCESSOR], (CONFIG, "spec.processor.replicas", 1, 2)),
    (
        edit_metric,
        ["change table by_country_v1", CONFIG, PROCESSOR],
        ("change table by_country_v1", "_sum_amount", None, "double precision"),
    ),
    (
        edit_metric,
        ["change table by_country_v1", CONFIG, PROCESSOR],
        (CONFIG, "spec.aggregations[by_country].metrics[revenue].function", None, "sum"),
    ),
    (
        edit_metric,
        ["change table by_country_v1", CONFIG, PROCESSOR],
        (PROCESSOR, "processes", "with the former config", "with the new config"),
    ),
    (
        edit_aggregation,
        ["create table by_land_v1", CONFIG, PROCESSOR],
        ("create table by_land_v1", "country", None, 'text COLLATE "C"'),
    ),
    (
        edit_partitions,
        ["change topic shop.orders.events", CONFIG, PROCESSOR],
        ("change topic shop.orders.events", "partitions", 3, 5),
    ),
    (
        edit_retention,
        ["change topic shop.orders.events", CONFIG],
        ("change topic shop.orders.events", "config.retention.ms", "604800000", "86400000"),
    ),
    (
        edit_ingest,
        [CONFIG, "remove workload tidemill-ingest"],
        (CONFIG, "spec.ingest.enabled", True, False),
    ),
    (
        edit_api,
        [CONFIG, "create workload orders-api", "remove workload tidemill-api"],
        ("create workload orders-api", "environment.TIDEMILL_PIPELINE", None, "orders"),
    ),
]


@pytest.mark.parametrize(
    ("edit", "expected", "difference"),
    EDITS,
    ids=[f"{edit.__name__}: {difference[1]}" for edit, _, difference in EDITS],
)
def test_an_edit_changes_only_its_parts_and_shows_both_values(
    document: Document, edit: Callable[[Document], None], expected: list[str], difference: tuple[str, str, Any, Any]
) -> None:
    before = plan_of(document)
    edited = copy.deepcopy(document)
    edit(edited)
    live = applied(before)
    planned_changes = find_changes(plan_of(edited, live), live, before=before, configs=configs(before))
    assert sorted(described(planned_changes)) == sorted(expected)
    where, member, old, new = difference
    (change,) = [change for change in planned_changes if f"{change.action} {change.kind} {change.name}" == where]
    assert Difference(member, old, new) in change.differences


def test_only_drift_of_planned_configs_is_a_change(document: Document) -> None:
    plan = plan_of(document)
    drifted = configs(plan)
    drifted["shop.orders.events"] |= {"retention.ms": "5", "segment.ms": "7"}
    (change,) = find_changes(plan, applied(plan), before=plan, configs=drifted)
    assert change.differences == (Difference("config.retention.ms", "5", "604800000"),)


def test_an_unmanaged_topic_is_never_changed(document: Document) -> None:
    document["spec"]["source"]["topic"] = {"managed": False}
    plan = plan_of(document)
    assert "shop.orders.events" not in {
        change.name for change in find_changes(plan, LiveFacts(), before=None, configs={})
    }


def test_a_suspended_processor_is_not_restarted(document: Document) -> None:
    """The config changes, but no process has to read it."""
    document["spec"]["suspend"] = True
    before = plan_of(document)
    edited = copy.deepcopy(document)
    edit_metric(edited)
    live = applied(before)
    planned_changes = find_changes(plan_of(edited, live), live, before=before, configs=configs(before))
    assert described(planned_changes) == ["change table by_country_v1", CONFIG]


def test_a_generation_without_other_changes_changes_the_config(document: Document) -> None:
    before = plan_of(document)
    plan = replace(before, config=before.config.replace('"generation": 1', '"generation": 2'))
    (change,) = find_changes(plan, applied(plan), before=before, configs=configs(plan))
    assert change.differences == (Difference("generation", 1, 2),)


FLAT: list[tuple[Any, dict[str, Any], str]] = [
    ({"a": {"b": 1}}, {"a.b": 1}, "members by path"),
    ({"a": [{"name": "x", "size": 1}]}, {"a[x].size": 1}, "items by their name"),
    ({"a": [1, 2]}, {"a": [1, 2]}, "a plain list is one value"),
    ({"a": None, "b": False}, {"b": False}, "null is absent, false is not"),
]


@pytest.mark.parametrize(("value", "expected", "reason"), FLAT, ids=[reason for *_, reason in FLAT])
def test_members_are_flattened_to_paths(value: Any, expected: dict[str, Any], reason: str) -> None:
    assert flatten(value) == expected, reason
