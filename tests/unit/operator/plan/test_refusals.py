"""Tests of every refusal of a plan, with its message."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from typing import Any

import pytest

from tidemill_contract.resource.kinds.kafka import KafkaSpec
from tidemill_contract.resource.rules import TopicLimits
from tidemill_contract.resource.spec import AnalyticsPipeline
from tidemill_contract.resource.validate import check_document
from tidemill_operator.errors import Reason
from tidemill_operator.plan.build import build_plan
from tidemill_operator.plan.live import LiveFacts, LiveSchema, LiveTopic, Owner
from tidemill_operator.plan.model import Topic
from tidemill_operator.plan.postgres.schema import column_type
from tidemill_operator.plan.refusals import missing_topic_error, ownership_errors, refusals
from tidemill_operator.plan.replay import REPLAY
from tidemill_operator.settings import Platform

Document = dict[str, Any]
EVENTS = "shop.orders.events"


def at(document: Document, path: str) -> Any:
    """Return the member of the spec at a path like `source.topic`."""
    member = document["spec"]
    for step in path.split("."):
        member = member[int(step)] if step.isdigit() else member.setdefault(step, {})
    return member


def live_of(document: Document, **facts: Any) -> LiveFacts:
    """Return the live facts after the document was applied."""
    plan = build_plan(AnalyticsPipeline.model_validate(document), Platform(), 1)
    schema = LiveSchema(
        shapes={(row.name, row.version): row.shape for row in plan.schema.aggregations},
        columns={
            table.name: {c.name: column_type(c.definition) for c in table.columns} for table in plan.schema.tables
        },
        accepted=json.loads(plan.schema.accepted),
        partitions=plan.schema.partitions,
    )
    topics = {topic.name: LiveTopic(topic.partitions, topic.replication_factor) for topic in plan.topics}
    return replace(LiveFacts(topics, 1, schema), **facts)


def refused(document: Document, live: LiveFacts) -> list[tuple[Reason, str]]:
    pipeline = AnalyticsPipeline.model_validate(document)
    return [(error.reason, str(error)) for error in refusals(pipeline, build_plan(pipeline, Platform(), 2, live), live)]


def test_the_running_spec_is_not_refused(document: Document) -> None:
    assert refused(document, live_of(document)) == []


def test_a_first_spec_is_not_refused(document: Document) -> None:
    assert refused(document, LiveFacts()) == []


def test_partitions_that_others_added_refuse_no_edit(document: Document) -> None:
    """The running spec stays applicable to a topic that grew, and its edits too."""
    document["spec"]["source"]["topic"] = {"partitions": 3}
    live = live_of(document)
    grown = replace(live, topics={name: replace(topic, partitions=5) for name, topic in live.topics.items()})
    document["spec"]["suspend"] = True
    assert refused(document, grown) == []
    assert build_plan(AnalyticsPipeline.model_validate(document), Platform(), 2, grown).schema.partitions == 5
    document["spec"]["source"]["topic"]["partitions"] = 4
    assert [reason for reason, _ in refused(document, grown)] == [Reason.NOT_SUPPORTED]


EDITS: list[tuple[str, dict[str, Any], Reason, str]] = [
    (
        "source.topic",
        {"name": "shop.other"},
        Reason.NOT_SUPPORTED,
        "spec.source.topic.name: changed from shop.orders.events to shop.other; unread events in"
        " shop.orders.events would never be counted; change the field back, or create a pipeline with another name",
    ),
    (
        "source.topic",
        {"partitions": 2},
        Reason.NOT_SUPPORTED,
        "spec.source.topic.partitions: 2 is less than the 3 partitions that topic shop.orders.events has; Kafka cannot"
        " remove partitions; write 3 or more",
    ),
    (
        "source.topic",
        {"replicationFactor": 2},
        Reason.INVALID_SPEC,
        "spec.source.topic.replicationFactor: 2 needs 2 brokers, but only 1 is available; write at most 1",
    ),
    (
        "source.topic",
        {"config": {"min.insync.replicas": "2"}},
        Reason.INVALID_SPEC,
        "spec.source.topic.config.min.insync.replicas: 2 is more than the replication factor 1, so no record could"
        " be written; write at most 1",
    ),
    (
        "source",
        {"key": "amount"},
        Reason.NOT_SUPPORTED,
        "spec.source.key: changed from country to amount; events of one key would be in two partitions and lose their"
        " order; change the field back, or create a pipeline with another name",
    ),
    (
        "source",
        {"key": None},
        Reason.NOT_SUPPORTED,
        "spec.source.key: changed from country to none; events of one key would be in two partitions and lose their"
        " order; change the field back, or create a pipeline with another name",
    ),
]


@pytest.mark.parametrize(
    ("path", "edit", "reason", "text"), EDITS, ids=[f"{path}: {json.dumps(edit)}" for path, edit, *_ in EDITS]
)
def test_an_edit_that_cannot_be_applied_is_refused(
    document: Document, path: str, edit: dict[str, Any], reason: Reason, text: str
) -> None:
    """The message begins with the path of the field."""
    live = live_of(document)
    edited = copy.deepcopy(document)
    at(edited, path).update(edit)
    assert refused(edited, live) == [(reason, text)]


ALLOWED: list[tuple[str, dict[str, Any], str]] = [
    ("source.topic", {"partitions": 9}, "partitions are added"),
    ("source.topic", {"retention": "1d"}, "a config can be changed"),
    ("aggregations.0.window", {"grace": "5m"}, "grace does not change the content of windows"),
    ("aggregations.0.window", {"size": "2h"}, "other windows begin another version"),
    ("aggregations.0", {"groupBy": []}, "other groups begin another version"),
    ("source.fields.1", {"type": "integer"}, "a group of another type begins another version"),
    ("aggregations.0", {"retention": "5d"}, "retention does not change the content of windows"),
    ("aggregations.0", {"groupBy": ["amount"], "name": "other"}, "another aggregation has other tables"),
    ("aggregations.0", {"metrics": [{"name": "x", "function": "max", "field": "amount"}]}, "columns are added"),
    ("processor", {"replicas": 3}, "the number of processes may change"),
]


@pytest.mark.parametrize(("path", "edit", "why"), ALLOWED, ids=[row[2] for row in ALLOWED])
def test_an_edit_that_loses_nothing_is_allowed(document: Document, path: str, edit: dict[str, Any], why: str) -> None:
    live = live_of(document)
    edited = copy.deepcopy(document)
    at(edited, path).update(edit)
    assert refused(edited, live) == [], why


REPLAYS: list[tuple[str, str]] = [
    (
        "by_country",
        'not a replay request (got by_country); write {"aggregations": ["NAME"], "from": "earliest", "rate": 5000}',
    ),
    (
        '{"aggregations": ["other"]}',
        "aggregations ['other'] do not all exist; name some of by_country, or leave it out",
    ),
    ('{"rate": -1}', "rate -1 is not a number of events per second; write a whole number, or leave it out"),
    ('{"from": "latest"}', "from latest is not a start time; write earliest, or a time like 2026-03-01T00:00:00Z"),
    (
        '{"from": "2026-03-01T00:00:00"}',
        "from 2026-03-01T00:00:00 is not a start time; write earliest, or a time like 2026-03-01T00:00:00Z",
    ),
]


@pytest.mark.parametrize(("wanted", "text"), REPLAYS)
def test_an_invalid_replay_request_is_refused(document: Document, wanted: str, text: str) -> None:
    document["metadata"]["annotations"] = {REPLAY: wanted}
    refusal = f"metadata.annotations[{REPLAY}]: {text}"
    assert refused(document, live_of(document)) == [(Reason.INVALID_SPEC, refusal)]


BROKERS: list[tuple[int | None, int, bool, list[str]]] = [
    (3, 1, False, ["spec.source.topic.replicationFactor: 3 needs 3 brokers, but only 1 is available; write at most 1"]),
    (
        3,
        2,
        False,
        ["spec.source.topic.replicationFactor: 3 needs 3 brokers, but only 2 are available; write at most 2"],
    ),
    (
        None,
        2,
        False,
        [
            "spec.source.topic.replicationFactor: 3 (the platform's default) needs 3 brokers, but only 2 are available;"
            " write at most 2"
        ],
    ),
    (3, 3, False, []),
    (3, 2, True, []),  # a broker is down, but the topic exists
]


@pytest.mark.parametrize(("wanted", "brokers", "exists", "expected"), BROKERS)
def test_more_replicas_than_brokers_are_refused_for_a_new_topic(
    document: Document, wanted: int | None, brokers: int, exists: bool, expected: list[str]
) -> None:
    """A broker that holds replicas counts even if it does not answer."""
    if wanted is not None:
        document["spec"]["source"]["topic"]["replicationFactor"] = wanted
    pipeline = AnalyticsPipeline.model_validate(document)
    live = LiveFacts({EVENTS: LiveTopic(3, 3, replica_brokers=frozenset({1, 2, 3}))} if exists else {}, brokers)
    plan = build_plan(pipeline, replace(Platform(), replication_factor=3), 1, live)
    assert [str(error) for error in refusals(pipeline, plan, live)] == expected


def test_fewer_partitions_than_positions_are_refused(document: Document) -> None:
    """The deleted topic would be created with fewer partitions than stored positions."""
    live = live_of(document, topics={})
    document["spec"]["source"]["topic"]["partitions"] = 2
    assert refused(document, live) == [
        (
            Reason.NOT_SUPPORTED,
            "spec.source.topic.partitions: topic shop.orders.events would have 2 partitions, but 3 have"
            " positions; the watermark would never advance past the missing partitions; give the topic 3 partitions or"
            " more",
        )
    ]


def test_an_unmanaged_topic_with_fewer_partitions_than_positions_is_refused(document: Document) -> None:
    live = live_of(document)
    document["spec"]["source"]["topic"] = {"managed": False, "name": "shop.small"}
    live = replace(live, topics={"shop.small": LiveTopic(1, 1)})
    ((reason, text),) = refused(document, live)
    assert reason == Reason.NOT_SUPPORTED
    assert text.startswith("spec.source.topic.partitions: topic shop.small would have 1 partitions, but 3 have pos")


RULES: list[tuple[str, dict[str, Any], str]] = [
    (
        "source.topic",
        {"name": "bank.payments.events"},
        'spec.source.topic.name: the topic belongs to another namespace (got "bank.payments.events"); start the name'
        " with 'shop.', or remove the name",
    ),
    (
        "source.topic",
        {"replicationFactor": 2, "config": {"min.insync.replicas": "3"}},
        'spec.source.topic.config.min.insync.replicas: is more than the number of replicas (got "3"); write'
        " at most 2, the replicationFactor",
    ),
    (
        "processor",
        {"replicas": 4},
        "spec.processor.replicas: is more than the topic's 3 partitions (got 4); write at most 3; a replica"
        " without a partition idles",
    ),
    (
        "processor",
        {"scaling": {"maxReplicas": 4}},
        "spec.processor.scaling.maxReplicas: is more than the topic's 3 partitions (got 4); write at most 3",
    ),
    (
        "aggregations.0",
        {"retention": "30m"},
        'spec.aggregations[0].retention: is shorter than a window plus its grace (got "30m"); keep windows for at least'
        " 1h + 0s",
    ),
]


@pytest.mark.parametrize(("path", "edit", "text"), RULES, ids=[row[2].partition(":")[0] for row in RULES])
def test_rules_without_live_facts_refuse_a_spec(document: Document, path: str, edit: dict[str, Any], text: str) -> None:
    """`validate`, admission and reconcile use the same rules."""
    at(document, path).update(edit)
    assert [str(fault) for fault in check_document(document, TopicLimits())[1]] == [text]


def test_a_topic_prefix_that_the_platform_grants_is_allowed(document: Document) -> None:
    document["spec"]["source"]["topic"]["name"] = "bank.payments.events"
    assert check_document(document, TopicLimits(topic_prefixes=("bank.payments.",)))[1] == []


OURS = Owner("shop", "orders", "uid-1", "west")
OWNERS: list[tuple[Owner | None, str]] = [
    (None, "names no owner"),
    (replace(OURS, uid="uid-0"), "belongs to shop/orders (uid uid-0, cluster west)"),
    (replace(OURS, cluster="east"), "belongs to shop/orders (uid uid-1, cluster east)"),
    (replace(OURS, namespace="bank", uid=""), "belongs to bank/orders (uid none, cluster west)"),
]


def test_a_topic_of_others_is_not_claimed_before_it_exists(document: Document) -> None:
    """Otherwise its owner, a pipeline that is created later, could not create the topic."""
    document["spec"]["source"]["topic"] = {"name": "crm.orders.events", "managed": False}
    ((reason, text),) = refused(document, LiveFacts(brokers=1))
    assert (reason, text) == (
        Reason.INVALID_SPEC,
        "spec.source.topic.name: topic crm.orders.events does not exist, and managed: false forbids creating it;"
        " create it, or correct the name",
    )
    assert refused(document, LiveFacts({"crm.orders.events": LiveTopic(3, 1)}, 1)) == []
    assert refused(document, replace(live_of(document), topics={})) == []


def elsewhere(document: Document, servers: str = "a:9092", topic: str = "crm.orders") -> Document:
    """Return the document with a source on another cluster."""
    edited_document = copy.deepcopy(document)
    edited_document["spec"]["source"] |= {
        "kafka": {"bootstrapServers": servers},
        "topic": {"name": topic, "managed": False, "partitions": 3},
    }
    return edited_document


def test_a_source_that_was_read_cannot_be_another_topic(document: Document) -> None:
    """Other addresses are allowed if the topic has the same id."""
    far = elsewhere(document)
    live = live_of(far)
    assert live.schema is not None
    live = replace(
        live,
        schema=replace(live.schema, topic_id="id-1"),
        topics={**live.topics, "crm.orders": LiveTopic(3, 1, "id-1")},
    )
    assert refused(far, live) == []
    assert refused(elsewhere(document, "b:9092,c:9092"), live) == []
    moved = replace(live, topics={**live.topics, "crm.orders": LiveTopic(3, 1, "id-2")})
    refusal = (
        "which is another topic; unread events of the former topic would never be counted; change the field back, or"
    )
    ((reason, text),) = refused(elsewhere(document, "b:9092"), moved)
    assert reason == Reason.NOT_SUPPORTED
    assert text.startswith(f"spec.source.kafka.bootstrapServers: changed from a:9092 to b:9092, {refusal}")
    ((_, text),) = refused(elsewhere(document, topic="crm.others"), live)
    assert text.startswith(f"spec.source.topic.name: changed from crm.orders to crm.others, {refusal}")
    ((_, text),) = refused(document, live)
    assert text.startswith(
        f"spec.source.kafka.bootstrapServers: changed from a:9092 to the platform's own Kafka, {refusal}"
    )


def test_a_missing_topic_of_another_cluster_is_named_with_its_servers() -> None:
    kafka = KafkaSpec(bootstrap_servers="a:9092, b:9092")
    assert str(missing_topic_error(Topic("crm.orders", 1, 1, managed=False, kafka=kafka))) == (
        "spec.source.topic.name: topic crm.orders does not exist at a:9092,b:9092, or the login may not describe it;"
        " correct the name, or allow Describe and Read on the topic"
    )


@pytest.mark.parametrize(("live", "whose"), OWNERS, ids=[whose for _, whose in OWNERS])
def test_a_schema_of_another_owner_is_a_conflict(live: Owner | None, whose: str) -> None:
    """The message has the owner, and how to take the schema over."""
    (error,) = ownership_errors("shop__orders", live, OURS)
    assert (error.reason, str(error)) == (
        Reason.RESOURCE_CONFLICT,
        f"schema shop__orders exists and {whose}; rename the pipeline, or take the schema over with the annotation"
        " tidemill.dev/adopt: 'true'",
    )


def test_the_schema_of_this_resource_is_no_conflict() -> None:
    assert list(ownership_errors("shop__orders", OURS, OURS)) == []


def test_a_missing_unmanaged_topic_is_refused() -> None:
    error = missing_topic_error(Topic("shop.legacy", 1, 1, managed=False))
    assert (error.reason, str(error)) == (
        Reason.INVALID_SPEC,
        "spec.source.topic.name: topic shop.legacy does not exist, and managed: false forbids creating it;"
        " create it, or"
        " set managed: true",
    )
