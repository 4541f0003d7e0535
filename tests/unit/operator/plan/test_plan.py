"""Tests of the plan of a pipeline: defaults come from the spec, the platform and the live facts, in one place."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidemill_contract.resource.spec import AnalyticsPipeline
from tidemill_contract.runtime import PipelineConfig
from tidemill_operator.plan.build import build_plan, owner_of
from tidemill_operator.plan.kafka.claims import Claim, find_conflicts
from tidemill_operator.plan.live import LiveFacts, LiveSchema, LiveTopic, Owner
from tidemill_operator.plan.model import Plan
from tidemill_operator.settings import Platform

Document = dict[str, Any]
EVENTS = "shop.orders.events"


def plan_of(document: Document, live: LiveFacts | None = None, **platform: Any) -> Plan:
    pipeline = AnalyticsPipeline.model_validate(document)
    return build_plan(pipeline, replace(Platform(), **platform), document["metadata"]["generation"], live)


def test_the_platform_sets_members_that_the_spec_omits(document: Document) -> None:
    """The config that workloads read has a value for every member."""
    document["spec"]["source"]["topic"] = {}
    plan = plan_of(document, partitions=12, replication_factor=3, auth_required=True)
    config = PipelineConfig.from_json(plan.config)
    topic = config.spec.source.topic
    assert (topic.name, topic.partitions, topic.replication_factor) == (EVENTS, 12, 3)
    assert config.spec.auth.required is True
    assert {topic.replication_factor for topic in plan.topics} == {3}
    assert plan.topics[0].config["min.insync.replicas"] == "2"


PARTITIONS: list[tuple[int | None, int | None, int, int, str]] = [
    (None, None, 0, 4, "the platform's default"),
    (None, 6, 0, 6, "the live number counts more than the default"),
    (8, 6, 0, 8, "the spec lets it grow"),
    (3, 6, 0, 6, "the number never shrinks; refusals are tested elsewhere"),
    (None, None, 9, 9, "a recreated topic gets a partition for each stored position"),
    (None, 2, 9, 9, "the stored positions count more than a smaller topic"),
]


@pytest.mark.parametrize(
    ("wanted", "live", "stored_partitions", "expected", "reason"), PARTITIONS, ids=[r for *_, r in PARTITIONS]
)
def test_topic_positions_and_config_agree_on_the_number_of_partitions(
    document: Document, wanted: int | None, live: int | None, stored_partitions: int, expected: int, reason: str
) -> None:
    document["spec"]["source"]["topic"] = {} if wanted is None else {"partitions": wanted}
    topics = {} if live is None else {EVENTS: LiveTopic(live, 1)}
    plan = plan_of(
        document, LiveFacts(topics, 1, LiveSchema(partitions=stored_partitions) if stored_partitions else None)
    )
    ports = (plan.topics[0].partitions, plan.schema.partitions, json.loads(plan.config)["spec"]["source"]["topic"])
    assert ports[:2] == (expected, expected), reason
    assert ports[2]["partitions"] == expected, reason


def test_an_unmanaged_topic_keeps_its_partitions_and_configs(document: Document) -> None:
    """The plan takes the live partitions and replicas, and sets no config."""
    document["spec"]["source"]["topic"] = {"managed": False, "name": "shop.legacy"}
    plan = plan_of(document, LiveFacts({"shop.legacy": LiveTopic(7, 2)}, 1))
    source = plan.topics[0]
    assert (source.name, source.partitions, source.replication_factor, source.config) == ("shop.legacy", 7, 2, {})
    assert plan.schema.partitions == 7


def test_only_needed_output_topics_are_planned(document: Document) -> None:
    """Without a rule there is no anomalies topic, and without published results no results topic."""
    assert [topic.name for topic in plan_of(document).topics] == [
        EVENTS,
        "shop.orders.results",
        "shop.orders.dead-letters",
    ]
    document["spec"]["results"] = {"publish": False}
    assert [topic.name for topic in plan_of(document).topics] == [EVENTS, "shop.orders.dead-letters"]


def test_a_suspended_pipeline_has_no_processors(document: Document) -> None:
    """Topics, schema and other workloads are planned as before."""
    document["spec"] |= {"suspend": True, "processor": {"replicas": 3}}
    plan = plan_of(document)
    assert {workload.name: workload.replicas for workload in plan.workloads} == {
        "orders-processor": 0,
        "tidemill-ingest": 1,
        "tidemill-api": 1,
    }


def test_scaling_starts_at_its_minimum_and_ends_at_the_partitions(document: Document) -> None:
    document["spec"]["processor"] = {"replicas": 9, "scaling": {"minReplicas": 2}}
    plan = plan_of(document)
    assert plan.workloads[0].replicas == 2
    assert json.loads(plan.config)["spec"]["processor"]["scaling"]["maxReplicas"] == 3


def test_stored_events_have_a_table_and_a_retention(document: Document) -> None:
    assert plan_of(document).schema.events_retention_ms is None
    document["spec"]["events"] = {"store": True, "retention": "2d"}
    schema = plan_of(document).schema
    assert schema.events_retention_ms == 2 * 86_400_000
    assert "_events" in {table.name for table in schema.tables}


def test_the_accepted_spec_is_stored_without_defaults(document: Document) -> None:
    """Defaults of a later version do not count as an edit."""
    assert json.loads(plan_of(document).schema.accepted) == document["spec"]


@given(st.randoms(use_true_random=False))
def test_a_plan_does_not_depend_on_the_order_of_members(random: Any) -> None:
    def shuffled(value: Any) -> Any:
        if isinstance(value, dict):
            keys = list(value)
            random.shuffle(keys)
            return {key: shuffled(value[key]) for key in keys}
        return [shuffled(item) for item in value] if isinstance(value, list) else value

    document = {
        "apiVersion": "tidemill.dev/v1alpha1",
        "kind": "AnalyticsPipeline",
        "metadata": {"name": "orders", "namespace": "shop", "generation": 1},
        "spec": {
            "source": {
                "topic": {"partitions": 3, "config": {"segment.ms": "1", "segment.bytes": "2"}},
                "fields": [{"name": "a", "type": "string"}, {"name": "b", "type": "number", "required": True}],
            },
            "aggregations": [
                {
                    "name": "x",
                    "groupBy": ["a"],
                    "window": {"type": "hopping", "size": "1h", "hop": "10m"},
                    "metrics": [{"name": "m", "function": "sum", "field": "b"}, {"name": "n", "function": "count"}],
                }
            ],
            "processor": {"resources": {"requests": {"cpu": "1", "memory": "1Gi"}}},
        },
    }
    assert plan_of(document) == plan_of(shuffled(document))


def test_the_owner_names_the_resource_and_the_cluster(document: Document) -> None:
    owner = owner_of(AnalyticsPipeline.model_validate(document), replace(Platform(), cluster_id="west"))
    assert owner == Owner("shop", "orders", "uid-1", "west")


def test_only_processors_reach_the_cluster_of_the_source(document: Document) -> None:
    """Ingest writes nothing to this cluster. The output topics are on the Kafka of the platform."""
    kafka = {"bootstrapServers": "b:9094, a:9093", "secretRef": {"name": "crm"}}
    document["spec"]["source"] |= {"kafka": kafka, "topic": {"name": "shop.bids.events", "managed": False}}
    plan = plan_of(document)
    workloads = {workload.component: workload for workload in plan.workloads}
    ports = {name: (workload.kafka_secret, workload.egress_ports) for name, workload in workloads.items()}
    assert ports == {"processor": ("crm", (9093, 9094)), "api": ("", ())}
    source, *outputs = plan.topics
    assert (source.managed, source.config) == (False, {})
    assert source.kafka is not None
    assert source.kafka.servers == ("b:9094", "a:9093")
    assert [topic.kafka for topic in outputs] == [None] * len(outputs)
    # Another pipeline may manage a topic of this name on the Kafka of the platform.
    assert (plan.schema.source, plan.schema.own_sources) == ("shop.bids.events", ())
    manager = Claim("shop.bids.events", True, Owner("shop", "bids", "u", "local"), "shop__bids")
    assert list(find_conflicts(plan.schema, Owner("shop", "orders", "uid-1", "local"), [manager])) == []


def test_ingest_does_not_write_to_the_topics_of_others(document: Document) -> None:
    document["spec"]["source"]["topic"] = {"name": "crm.orders", "managed": False}
    listed = Platform(readable_topics=("crm.*",))
    for platform, takes in ((listed, False), (Platform(topic_prefixes=("crm.",)), True)):
        plan = build_plan(AnalyticsPipeline.model_validate(document), platform, 1)
        assert ("ingest" in {workload.component for workload in plan.workloads}) is takes
        assert PipelineConfig.from_json(plan.config).takes_http is takes
        assert ("only_read" in plan.config) is not takes


def test_only_processors_reach_the_schema_registry(document: Document) -> None:
    """Ingest writes no events of this pipeline, and the API does not read its topic."""
    registry = {"url": "https://a, http://b:8081", "secretRef": {"name": "registry"}}
    document["spec"]["source"]["format"] = {"type": "avro", "registry": registry}
    workloads = {workload.component: workload for workload in plan_of(document).workloads}
    assert workloads.keys() == {"processor", "api"}
    ports = {name: (workload.registry_secret, workload.egress_ports) for name, workload in workloads.items()}
    assert ports == {"processor": ("registry", (443, 8081)), "api": ("", ())}
    document["spec"]["source"]["format"]["registry"] = {"url": "http://registry"}
    (processor, _) = plan_of(document).workloads
    assert (processor.registry_secret, processor.egress_ports) == ("", (80,))


def test_an_mqtt_broker_gets_a_bridge_for_this_pipeline_only(document: Document) -> None:
    """The bridge has no login. Only edits of the broker or its topics replace it."""
    document["spec"]["source"]["mqtt"] = {"broker": "mqtts://b", "topics": ["a/#"], "secretRef": {"name": "broker"}}
    workloads = {workload.component: workload for workload in plan_of(document).workloads}
    assert workloads.keys() == {"processor", "mqtt", "ingest", "api"}
    bridge, processor = workloads["mqtt"], workloads["processor"]
    assert (bridge.name, bridge.replicas, bridge.is_singleton, bridge.mqtt_secret) == ("orders-mqtt", 1, True, "broker")
    assert (bridge.secrets, bridge.egress_ports) == ({}, (8883,))
    document["spec"]["source"]["mqtt"]["qos"] = 0
    changed = {workload.component: workload for workload in plan_of(document).workloads}
    assert (changed["mqtt"].revision != bridge.revision, changed["processor"].revision) == (True, processor.revision)
    document["spec"]["processor"] = {"flushInterval": "1s"}
    again = {workload.component: workload for workload in plan_of(document).workloads}
    assert again["mqtt"].revision == changed["mqtt"].revision


def test_ingest_gets_the_secrets_of_webhooks_only(document: Document) -> None:
    hook = {"name": "github", "signature": "github", "secretRef": {"name": "hooks", "key": "one"}}
    document["spec"]["source"]["webhooks"] = [hook]
    copied = {workload.component: dict(workload.secret_sources) for workload in plan_of(document).workloads}
    assert copied == {"processor": {}, "ingest": {"webhook-github": ("hooks", "one")}, "api": {}}
