"""Tests of the slots of a list of topics: each partition keeps its slot."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tidemill_contract.resource.spec import AnalyticsPipeline
from tidemill_operator.errors import Reason
from tidemill_operator.observer.backlog import Position
from tidemill_operator.observer.scaling_figures import sum_by_partition
from tidemill_operator.plan.build import build_plan
from tidemill_operator.plan.kafka.slots import desired_slots, restrict_to_topic
from tidemill_operator.plan.live import LiveFacts, LiveSchema, LiveTopic, Loss, Slot
from tidemill_operator.plan.model import Plan
from tidemill_operator.plan.postgres.damage import find_damage
from tidemill_operator.plan.postgres.losses import loss_errors
from tidemill_operator.plan.refusals import missing_topic_error, refusals
from tidemill_operator.scaling import PartitionFigures
from tidemill_operator.settings import Platform

Placed = dict[int, tuple[str, int]]


def facts(schema: LiveSchema | None = None, /, **topics: int) -> LiveFacts:
    """Return live facts with these numbers of partitions. The id of a topic is its name in capitals."""
    return LiveFacts({name: LiveTopic(count, 1, name.upper()) for name, count in topics.items()}, 1, schema)


def placed(slots: tuple[Slot, ...], *, reading: bool = True) -> Placed:
    return {slot.number: (slot.topic, slot.partition) for slot in slots if slot.reading == reading}


def schema_of(*slots: Slot) -> LiveSchema:
    """Return a schema with these slots."""
    accepted = {"source": {"topics": sorted({slot.topic for slot in slots})}}
    return LiveSchema(slots=slots, partitions=len(slots), accepted=accepted)


def test_a_new_pipeline_gets_slots_in_the_order_of_the_list() -> None:
    slots = desired_slots(["b", "a"], facts(a=2, b=1), "")
    assert placed(slots) == {0: ("b", 0), 1: ("a", 0), 2: ("a", 1)}
    assert not any(slot.added for slot in slots)


def test_added_partitions_and_topics_get_the_next_slots() -> None:
    first = desired_slots(["a", "b"], facts(a=1, b=1), "")
    grown = desired_slots(["a", "b", "c"], facts(schema_of(*first), a=2, b=1, c=1), "")
    assert placed(grown) == {0: ("a", 0), 1: ("b", 0), 2: ("a", 1), 3: ("c", 0)}
    assert {slot.number for slot in grown if slot.added} == {2, 3}
    assert desired_slots(["c", "b", "a"], facts(schema_of(*grown), a=2, b=1, c=1), "") == grown


def test_a_removed_topic_keeps_its_slots() -> None:
    first = desired_slots(["a", "b"], facts(a=2, b=1), "")
    left = desired_slots(["b"], facts(schema_of(*first), a=2, b=1), "")
    assert (placed(left), placed(left, reading=False)) == ({2: ("b", 0)}, {0: ("a", 0), 1: ("a", 1)})
    assert desired_slots(["a", "b"], facts(schema_of(*left), a=2, b=1), "") == first


def test_partitions_that_are_certainly_missing_are_not_read() -> None:
    first = desired_slots(["a", "b"], facts(a=2, b=2), "")
    assert placed(desired_slots(["a", "b"], facts(schema_of(*first), a=1), "", certain=["b"])) == {0: ("a", 0)}
    unknown = LiveFacts(schema=schema_of(*first))
    assert desired_slots(["a", "b"], unknown, "") == first


def test_an_answer_that_may_be_outdated_stops_no_slot() -> None:
    """Otherwise the watermark would pass unread events. A topic is missing, or has fewer partitions than before."""
    read = [Slot(n, "a", n, topic_id="A", next_offset=9) for n in range(2)]
    schema = schema_of(*read, Slot(2, "b", 0, topic_id="B", next_offset=9), Slot(3, "c", 0, reading=False))
    assert desired_slots(["a", "b", "c"], facts(schema, a=1), "") == schema.slots
    assert placed(desired_slots(["a", "c"], facts(schema, a=1), ""), reading=False) == {2: ("b", 0), 3: ("c", 0)}
    again = LiveFacts({"a": LiveTopic(1, 1, "A2")}, 1, schema)
    assert placed(desired_slots(["a", "b"], again, "")) == {0: ("a", 0), 2: ("b", 0)}
    moved = replace(
        schema, slots=(replace(read[0], topic_id="A2"), *schema.slots[1:]), former_topic_ids=frozenset({"A"})
    )
    assert placed(desired_slots(["a", "b"], replace(again, schema=moved), "")) == {0: ("a", 0), 2: ("b", 0)}


@pytest.mark.parametrize(
    ("name", "more", "recreated", "gone", "waits"),
    [
        ("shop.b", {}, False, "", False),
        ("crm.b", {}, False, "", True),
        ("crm.b", {}, False, "crm.b", False),
        ("shop.b", {"kafka": {"bootstrapServers": "a:9092"}}, False, "", True),
        ("shop.b", {"kafka": {"bootstrapServers": "a:9092"}}, False, "shop.b", False),
        ("shop.b", {"kafka": {"bootstrapServers": "a:9092"}}, True, "", False),
    ],
    ids=["own", "of others", "all brokers", "another cluster", "all brokers there", "asked"],
)
def test_windows_wait_for_a_topic_unless_it_is_certainly_deleted(
    name: str, more: dict[str, Any], recreated: bool, gone: str, waits: bool
) -> None:
    schema = schema_of(Slot(0, "shop.a", 0, topic_id="A", next_offset=4), Slot(1, name, 0, topic_id="B", next_offset=5))
    resource = pipeline(topics=["shop.a", name], **more)
    annotations = {"tidemill.dev/recreate-topics": "true"} if recreated else {}
    resource = resource.model_copy(
        update={"metadata": resource.metadata.model_copy(update={"annotations": annotations})}
    )
    live = LiveFacts({"shop.a": LiveTopic(1, 1, "A")}, 1, schema, confirmed_missing=frozenset({gone}))
    plan = build_plan(resource, Platform(), 1, live)
    assert [slot.reading for slot in plan.schema.slots] == [True, waits]
    if recreated:
        return  # no message in this case
    waiting = (
        "counted, but windows stay open until every broker reports the topic as missing; create it again, set the"
        " annotation"
    )
    assert (waiting in str(missing_topic_error(plan.topics[1]))) == waits
    assert waits or "the other topics are still counted; create it again, or remove the topic" in str(
        missing_topic_error(plan.topics[1])
    )


def test_the_partitions_of_a_former_single_topic_are_the_first_slots() -> None:
    before = LiveSchema(partitions=2, topic_id="A", next_offsets={0: 7})
    slots = desired_slots(["b", "a"], facts(before, a=3, b=1), "a")
    assert placed(slots) == {0: ("a", 0), 1: ("a", 1), 2: ("b", 0), 3: ("a", 2)}
    assert [slot.added for slot in slots] == [False, False, True, True]


def test_positions_and_losses_are_those_of_the_topic() -> None:
    slots = Slot(0, "a", 0, topic_id="A", next_offset=4), Slot(1, "b", 0), Slot(2, "b", 1, topic_id="B", next_offset=9)
    schema = replace(schema_of(*slots), losses=(Loss("expired", 2, 0, 3, 5),))
    assert (restrict_to_topic(schema, "b").topic_id, restrict_to_topic(schema, "b").next_offsets) == ("B", {1: 9})
    (loss,) = loss_errors("b", LiveTopic(2, 1, "B"), restrict_to_topic(schema, "b"))
    assert (loss.reason, "offsets 1: 3 to 5" in loss.message) == (Reason.EVENTS_EXPIRED, True)
    assert loss_errors("a", LiveTopic(1, 1, "A"), restrict_to_topic(schema, "a")) == []
    (loss,) = loss_errors("a", LiveTopic(1, 1, "A2"), restrict_to_topic(schema, "a"))
    assert loss.reason == Reason.TOPIC_RECREATED


def pipeline(**source: Any) -> AnalyticsPipeline:
    source = {"topic": {"managed": False}, "fields": [{"name": "n", "type": "integer"}], **source}
    aggregation = {"name": "all", "window": {"type": "tumbling", "size": "1h"}}
    metrics = [{"name": "events", "function": "count"}]
    return AnalyticsPipeline.model_validate(
        {
            "apiVersion": "tidemill.dev/v1alpha1",
            "kind": "AnalyticsPipeline",
            "metadata": {"name": "orders", "namespace": "shop"},
            "spec": {"source": source, "aggregations": [{**aggregation, "metrics": metrics}]},
        }
    )


def planned(live: LiveFacts, **source: Any) -> Plan:
    return build_plan(pipeline(**source), Platform(), 1, live)


def test_a_plan_reads_each_topic_and_writes_to_none() -> None:
    plan = planned(facts(a=2, b=5), topics=["a", "b", "c"])
    assert [(t.name, t.managed, t.partitions) for t in plan.topics[:3]] == [
        ("a", False, 2),
        ("b", False, 5),
        ("c", False, 1),
    ]
    assert plan.schema.outputs == ("shop.orders.results", "shop.orders.dead-letters")
    assert (plan.schema.partitions, plan.schema.own_sources) == (7, ("a", "b", "c"))
    assert "_slots" in {table.name for table in plan.schema.tables}
    assert {workload.component for workload in plan.workloads} == {"processor", "api"}
    assert '"partitions": 5' in plan.config  # further processors would have nothing to read


def test_a_pipeline_with_one_topic_has_no_slots() -> None:
    plan = planned(facts(a=2), topic={"name": "a", "managed": False})
    assert (plan.schema.slots, plan.schema.listed_topics, plan.schema.partitions) == ((), (), 2)
    assert "_slots" not in {table.name for table in plan.schema.tables}


def test_a_deleted_topic_of_a_list_is_reported_as_lost_events() -> None:
    schema = schema_of(Slot(0, "a", 0, topic_id="A", next_offset=4), Slot(1, "b", 0, topic_id="B", next_offset=5))
    a, b, *_ = planned(facts(schema, a=1), topics=["a", "b"]).topics
    assert (a.lost, b.lost) == ("", "id B; counted up to offsets 0: 5")


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        (
            {"topic": {"name": "shop.a"}},
            {"topics": ["shop.b"]},
            "spec.source.topic.name: changed from shop.a to shop.b",
        ),
        ({"topic": {"name": "shop.a"}}, {"topics": ["shop.b", "shop.a"]}, ""),
        ({"topics": ["shop.a", "shop.b"]}, {"topics": ["shop.b"]}, ""),
        (
            {"topics": ["shop.a"]},
            {"topic": {"name": "shop.a", "managed": False}},
            "spec.source.topics: removed, but the pipeline's positions belong to a list of topics",
        ),
        (
            {"topic": {"name": "shop.a"}},
            {"topics": ["shop.a", "shop.orders.results"]},
            "spec.source.topics: topic shop",
        ),
    ],
)
def test_edits_of_topics_that_lose_positions_are_refused(
    before: dict[str, Any], after: dict[str, Any], message: str
) -> None:
    slots = tuple(Slot(n, name, 0, topic_id=name) for n, name in enumerate(before.get("topics", [])))
    schema = LiveSchema(accepted={"source": before}, slots=slots, partitions=max(1, len(slots)), topic_id="x")
    topics = {name: LiveTopic(1, 1, name) for name in ("shop.a", "shop.b", "shop.orders.results")}
    live = LiveFacts(topics, 1, schema)
    results = [str(error) for error in refusals(pipeline(**after), planned(live, **after), live)]
    assert [text.startswith(message) for text in results] == ([True] if message else [])


def test_deleted_slots_are_damage() -> None:
    schema = schema_of(Slot(0, "a", 0))
    columns = {name: dict[str, str]() for name in ("_aggregations", "_offsets", "_slots")}
    damages = find_damage(planned(facts(a=1), topics=["a"]).schema, replace(schema, columns=columns, slots=()))
    assert [text for text in damages if "_slots" in text and text.startswith("rows of table _slots are gone (slots 0)")]


def test_scaling_adds_up_the_partitions_with_one_number() -> None:
    positions = {
        0: Position(3, 3, None, 0, place=("a", 0)),
        1: Position(None, 0, None, 0, place=("a", 1)),
        2: Position(8, 8, None, 0, place=("b", 0)),
    }
    partitions = {
        0: PartitionFigures(0, 10, 3, 3),
        1: PartitionFigures(4, 6, None, 0),
        2: PartitionFigures(0, 9, 8, 8),
    }
    results = sum_by_partition(partitions, positions)
    assert {number: (at.lag, at.consumed) for number, at in results.items()} == {0: (8, 11), 1: (2, 0)}
