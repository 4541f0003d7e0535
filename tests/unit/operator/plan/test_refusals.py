"""Every refusal, in its words: what is asked for, what is there, what to do."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from typing import Any

import pytest

from tidemill_contract.resource.kinds.kafka import KafkaSpec
from tidemill_contract.resource.rules import Limits
from tidemill_contract.resource.spec import AnalyticsPipeline
from tidemill_contract.resource.validate import check
from tidemill_operator.errors import Reason
from tidemill_operator.plan.build import build_plan
from tidemill_operator.plan.live import LiveFacts, LiveSchema, LiveTopic, Owner
from tidemill_operator.plan.model import Topic
from tidemill_operator.plan.postgres.schema import column_type
from tidemill_operator.plan.refusals import foreign, missing, refusals
from tidemill_operator.plan.replay import REPLAY
from tidemill_operator.settings import Platform

Document = dict[str, Any]
EVENTS = "shop.orders.events"


def at(document: Document, path: str) -> Any:
    """A place in the spec, e.g. `source.topic`."""
    found = document["spec"]
    for step in path.split("."):
        found = found[int(step)] if step.isdigit() else found.setdefault(step, {})
    return found


def live_of(document: Document, **facts: Any) -> LiveFacts:
    """The world after the document was applied."""
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


def test_what_runs_is_not_refused(document: Document) -> None:
    assert refused(document, live_of(document)) == []


def test_nothing_is_refused_where_nothing_is_known(document: Document) -> None:
    assert refused(document, LiveFacts()) == []


def test_partitions_that_somebody_else_has_added_are_no_edit(document: Document) -> None:
    """The spec that runs stays applicable, whatever else is edited in it; it gets all the partitions there are."""
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
def test_an_edit_that_cannot_be_applied(
    document: Document, path: str, edit: dict[str, Any], reason: Reason, text: str
) -> None:
    """One refusal, which begins with the field."""
    live = live_of(document)
    edited = copy.deepcopy(document)
    at(edited, path).update(edit)
    assert refused(edited, live) == [(reason, text)]


ALLOWED: list[tuple[str, dict[str, Any], str]] = [
    ("source.topic", {"partitions": 9}, "partitions may grow"),
    ("source.topic", {"retention": "1d"}, "a config is changed in place"),
    ("aggregations.0.window", {"grace": "5m"}, "grace says how long a window waits, not what is in it"),
    ("aggregations.0.window", {"size": "2h"}, "other windows are another version"),
    ("aggregations.0", {"groupBy": []}, "other groups are another version"),
    ("source.fields.1", {"type": "integer"}, "a group of another type is another version"),
    ("aggregations.0", {"retention": "5d"}, "retention says how long windows stay"),
    ("aggregations.0", {"groupBy": ["amount"], "name": "other"}, "another aggregation has tables of its own"),
    ("aggregations.0", {"metrics": [{"name": "x", "function": "max", "field": "amount"}]}, "columns are added"),
    ("processor", {"replicas": 3}, "processes come and go"),
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


@pytest.mark.parametrize(("asked", "text"), REPLAYS)
def test_a_replay_that_cannot_be(document: Document, asked: str, text: str) -> None:
    document["metadata"]["annotations"] = {REPLAY: asked}
    told = f"metadata.annotations[{REPLAY}]: {text}"
    assert refused(document, live_of(document)) == [(Reason.INVALID_SPEC, told)]


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
    (3, 2, True, []),  # a broker is down: the topic is there already
]


@pytest.mark.parametrize(("asked", "brokers", "exists", "expected"), BROKERS)
def test_more_replicas_than_brokers(
    document: Document, asked: int | None, brokers: int, exists: bool, expected: list[str]
) -> None:
    """A broker that holds replicas counts, whether it answers or not."""
    if asked is not None:
        document["spec"]["source"]["topic"]["replicationFactor"] = asked
    pipeline = AnalyticsPipeline.model_validate(document)
    live = LiveFacts({EVENTS: LiveTopic(3, 3, holders=frozenset({1, 2, 3}))} if exists else {}, brokers)
    plan = build_plan(pipeline, replace(Platform(), replication_factor=3), 1, live)
    assert [str(error) for error in refusals(pipeline, plan, live)] == expected


def test_fewer_partitions_than_positions(document: Document) -> None:
    """The topic is gone and would be made anew with fewer partitions than were read."""
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


def test_an_unmanaged_topic_with_fewer_partitions_than_positions(document: Document) -> None:
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
def test_what_no_server_is_needed_to_refuse(document: Document, path: str, edit: dict[str, Any], text: str) -> None:
    """Rules across the stages of a pipeline: told by `validate`, by admission and by reconcile alike."""
    at(document, path).update(edit)
    assert [str(fault) for fault in check(document, Limits())[1]] == [text]


def test_a_topic_prefix_that_the_platform_grants(document: Document) -> None:
    document["spec"]["source"]["topic"]["name"] = "bank.payments.events"
    assert check(document, Limits(topic_prefixes=("bank.payments.",)))[1] == []


OURS = Owner("shop", "orders", "uid-1", "west")
OWNERS: list[tuple[Owner | None, str]] = [
    (None, "names no owner"),
    (replace(OURS, uid="uid-0"), "belongs to shop/orders (uid uid-0, cluster west)"),
    (replace(OURS, cluster="east"), "belongs to shop/orders (uid uid-1, cluster east)"),
    (replace(OURS, namespace="bank", uid=""), "belongs to bank/orders (uid none, cluster west)"),
]


def test_a_topic_of_others_is_not_claimed_before_it_exists(document: Document) -> None:
    """Else its owner, a pipeline that is created later, could not create it."""
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
    """The document with a source on another cluster."""
    found = copy.deepcopy(document)
    found["spec"]["source"] |= {
        "kafka": {"bootstrapServers": servers},
        "topic": {"name": topic, "managed": False, "partitions": 3},
    }
    return found


def test_a_source_that_was_read_stays_where_it_is(document: Document) -> None:
    """It may have other addresses, by which the topic has the same id."""
    far = elsewhere(document)
    live = live_of(far)
    assert live.schema is not None
    live = replace(
        live,
        schema=replace(live.schema, read_from="id-1"),
        topics={**live.topics, "crm.orders": LiveTopic(3, 1, "id-1")},
    )
    assert refused(far, live) == []
    assert refused(elsewhere(document, "b:9092,c:9092"), live) == []
    moved = replace(live, topics={**live.topics, "crm.orders": LiveTopic(3, 1, "id-2")})
    told = "which is another topic; unread events of the former topic would never be counted; change the field back, or"
    ((reason, text),) = refused(elsewhere(document, "b:9092"), moved)
    assert reason == Reason.NOT_SUPPORTED
    assert text.startswith(f"spec.source.kafka.bootstrapServers: changed from a:9092 to b:9092, {told}")
    ((_, text),) = refused(elsewhere(document, topic="crm.others"), live)
    assert text.startswith(f"spec.source.topic.name: changed from crm.orders to crm.others, {told}")
    ((_, text),) = refused(document, live)
    assert text.startswith(
        f"spec.source.kafka.bootstrapServers: changed from a:9092 to the platform's own Kafka, {told}"
    )


def test_a_topic_that_is_not_there_on_another_cluster() -> None:
    kafka = KafkaSpec(bootstrap_servers="a:9092, b:9092")
    assert str(missing(Topic("crm.orders", 1, 1, managed=False, kafka=kafka))) == (
        "spec.source.topic.name: topic crm.orders does not exist at a:9092,b:9092, or the login may not describe it;"
        " correct the name, or allow Describe and Read on the topic"
    )


@pytest.mark.parametrize(("live", "whose"), OWNERS, ids=[whose for _, whose in OWNERS])
def test_a_schema_of_somebody_else(live: Owner | None, whose: str) -> None:
    """The conflict says whose it is and how to take it over."""
    (error,) = foreign("shop__orders", live, OURS)
    assert (error.reason, str(error)) == (
        Reason.RESOURCE_CONFLICT,
        f"schema shop__orders exists and {whose}; rename the pipeline, or take the schema over with the annotation"
        " tidemill.dev/adopt: 'true'",
    )


def test_ones_own_schema_is_no_conflict() -> None:
    assert list(foreign("shop__orders", OURS, OURS)) == []


def test_an_unmanaged_topic_that_is_not_there() -> None:
    error = missing(Topic("shop.legacy", 1, 1, managed=False))
    assert (error.reason, str(error)) == (
        Reason.INVALID_SPEC,
        "spec.source.topic.name: topic shop.legacy does not exist, and managed: false forbids creating it;"
        " create it, or"
        " set managed: true",
    )
