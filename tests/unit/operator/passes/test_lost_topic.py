"""Tests of lost events: a deleted or recreated source topic, and offsets that Kafka no longer has.

A deleted topic is created again only on request. Windows that processors cannot publish are reported too.
"""

from __future__ import annotations

import datetime as dt
from dataclasses import replace
from typing import Any

import pytest

from tidemill_contract.tables.quotas import QuotaUsage
from tidemill_operator.cluster.event_recorder import conditions_to_report
from tidemill_operator.errors import Reason, TidemillError
from tidemill_operator.plan.live import LiveSchema, LiveTopic, Loss, Owner, TaskFailure
from tidemill_operator.plan.postgres.failures import failure_errors
from tidemill_operator.plan.postgres.losses import loss_errors
from tidemill_operator.reconcile import reconcile
from tidemill_operator.settings import Platform
from tidemill_operator.testing import MemoryWorld

NOON = dt.datetime(2026, 3, 1, 12, tzinfo=dt.UTC)
EVENTS, SCHEMA = "shop.orders.events", "shop__orders"
LOSS = (
    "topic shop.orders.events is gone, and with it every event that was not counted (id A1; counted up to offsets 0: 12"
    ", 1: 7); create it again with the annotation tidemill.dev/recreate-topics: 'true'; earlier results are kept"
)


def apply(
    document: dict[str, Any], world: MemoryWorld, platform: Platform | None = None, **more: Any
) -> dict[str, Any]:
    return reconcile(document, platform=platform or Platform(), actuators=world.actuators, now=NOON, **more)


def deleted(document: dict[str, Any], world: MemoryWorld, *, read: bool = True) -> dict[str, Any]:
    """Run a pass, delete the topic, and return the status before the deletion."""
    status = apply(document, world, previous=None)
    if read:
        schema = world.postgres.schemas[SCHEMA]
        world.postgres.schemas[SCHEMA] = replace(schema, topic_id="A1", next_offsets={0: 12, 1: 7})
    del world.kafka.topics[EVENTS]
    world.take_writes()
    return status


def conditions(status: dict[str, Any]) -> dict[str, tuple[str, str]]:
    return {c["type"]: (c["status"], c["reason"]) for c in status["conditions"]}


def test_a_deleted_topic_is_reported_and_not_created_again(document: dict[str, Any], world: MemoryWorld) -> None:
    """The condition has the counted offsets. Processors keep running."""
    status = apply(document, world, previous=deleted(document, world))
    assert conditions(status)["TopicsReady"] == ("False", "DataLoss")
    assert conditions(status)["Ready"] == ("False", "DataLoss")
    assert conditions(status)["Stalled"] == ("True", "DataLoss")
    assert conditions(status)["ProcessorsReady"][0] == "True"
    assert next(c["message"] for c in status["conditions"] if c["type"] == "TopicsReady") == LOSS
    assert world.take_writes() == []
    assert EVENTS not in world.kafka.topics


def test_the_annotation_creates_the_topic_again(document: dict[str, Any], world: MemoryWorld) -> None:
    lost = apply(document, world, previous=deleted(document, world))
    document["metadata"]["annotations"] = {"tidemill.dev/recreate-topics": "true"}
    status = apply(document, world, previous=lost)
    assert conditions(status)["Ready"] == ("True", "Applied")
    assert world.take_writes() == [f"create {EVENTS}"]


def test_the_platform_setting_creates_the_topic_again(document: dict[str, Any], world: MemoryWorld) -> None:
    platform = replace(Platform(), recreate_topics=True)
    status = apply(document, world, platform, previous=deleted(document, world))
    assert conditions(status)["Ready"] == ("True", "Applied")


def test_a_topic_that_was_never_read_is_created(document: dict[str, Any], world: MemoryWorld) -> None:
    """Without a stored position, the topic counts as never created."""
    status = apply(document, world, previous=deleted(document, world, read=False))
    assert conditions(status)["Ready"] == ("True", "Applied")


def test_deleted_output_topics_are_created_again(document: dict[str, Any], world: MemoryWorld) -> None:
    """Postgres has everything that these topics hold."""
    before = apply(document, world, previous=None)
    schema = world.postgres.schemas[SCHEMA]
    world.postgres.schemas[SCHEMA] = replace(schema, topic_id="A1", next_offsets={0: 12})
    del world.kafka.topics["shop.orders.dead-letters"]
    assert conditions(apply(document, world, previous=before))["Ready"] == ("True", "Applied")


REMADE = (
    "topic shop.orders.events was deleted and created again (id B2 now); events of the former topic that were"
    " not counted are gone (from offsets 0: 12, 1: 7); earlier results are kept; send the missing events again, and"
    " check who may delete topics"
)


def remade(document: dict[str, Any], world: MemoryWorld, *losses: Loss, read_from: str = "A1") -> dict[str, Any]:
    """Recreate the topic, and store these losses as processors do. Return the status before the recreation."""
    before = apply(document, world, previous=None)
    schema = world.postgres.schemas[SCHEMA]
    read_to = {0: 12, 1: 7} if read_from == "A1" else {0: 0, 1: 0}
    world.postgres.schemas[SCHEMA] = replace(schema, topic_id=read_from, next_offsets=read_to, losses=losses)
    world.kafka.topics[EVENTS] = replace(world.kafka.topics[EVENTS], id="B2")
    return before


def test_a_recreated_topic_is_reported_by_its_id(document: dict[str, Any], world: MemoryWorld) -> None:
    """The id is compared before any processor reads the new topic. The pipeline is ready, and one Event is sent."""
    before = remade(document, world)
    status = apply(document, world, previous=before)
    assert conditions(status)["EventsLost"] == ("True", "TopicRecreated")
    assert conditions(status)["Ready"] == ("True", "Applied")
    assert [(c["type"], c["reason"], c["message"]) for c in conditions_to_report(before, status)] == [
        ("EventsLost", "TopicRecreated", REMADE)
    ]


def test_a_recreated_topic_is_reported_once(document: dict[str, Any], world: MemoryWorld) -> None:
    """The losses that processors store repeat the report by ids. A day later the condition is removed."""
    status = apply(document, world, previous=remade(document, world))
    schema = world.postgres.schemas[SCHEMA]
    stored = tuple(
        Loss("topic_recreated", partition, 0, offset, None) for partition, offset in schema.next_offsets.items()
    )
    world.postgres.schemas[SCHEMA] = replace(schema, topic_id="B2", next_offsets={0: 0, 1: 0}, losses=stored)
    again = apply(document, world, previous=status)
    assert again == status
    assert list(conditions_to_report(status, again)) == []
    world.postgres.schemas[SCHEMA] = replace(world.postgres.schemas[SCHEMA], losses=())
    calm = apply(document, world, previous=again)
    assert "EventsLost" not in conditions(calm)
    assert [(c["type"], c["status"]) for c in conditions_to_report(again, calm)] == [("EventsLost", "False")]


def test_each_further_loss_is_a_further_event(document: dict[str, Any], world: MemoryWorld) -> None:
    status = apply(document, world, previous=remade(document, world, read_from="B2"))
    assert "EventsLost" not in conditions(status)
    for first in (5, 9):
        schema = world.postgres.schemas[SCHEMA]
        losses = (*schema.losses, Loss("expired", 0, 1, first, first + 2))
        world.postgres.schemas[SCHEMA] = replace(schema, losses=losses)
        before, status = status, apply(document, world, previous=status)
        assert [c["reason"] for c in conditions_to_report(before, status)] == ["EventsExpired"]


def test_lost_events_stay_reported_while_postgres_does_not_answer(document: dict[str, Any], world: MemoryWorld) -> None:
    """Without an answer of Postgres, the condition is kept."""
    status = apply(document, world, previous=remade(document, world))
    world.postgres.make_unreachable("Postgres")
    assert conditions(apply(document, world, previous=status))["EventsLost"] == ("True", "TopicRecreated")


def test_losses_in_the_schema_of_another_pipeline_are_not_reported(
    document: dict[str, Any], world: MemoryWorld
) -> None:
    remade(document, world)
    document["metadata"]["uid"] = "uid-of-another"
    assert "EventsLost" not in conditions(apply(document, world, previous=None))


def test_a_used_up_quota_is_a_condition(document: dict[str, Any], world: MemoryWorld) -> None:
    """The condition is true while the quota took effect within a day. The pipeline is ready."""
    before = apply(document, world, previous=None)
    usage = QuotaUsage("_dead_letters", 10, bare=0, counted=12, expired=0, evicted=0, full=True)
    world.postgres.schemas[SCHEMA] = replace(world.postgres.schemas[SCHEMA], stored_totals=(usage,))
    full = apply(document, world, previous=before)
    assert conditions(full)["QuotaUsedUp"] == ("True", "QuotaUsedUp")
    assert conditions(full)["Ready"] == ("True", "Applied")
    assert [c["message"] for c in conditions_to_report(before, full)] == [
        "spec.deadLetters.quota of 1Gi is used up: of the dead letters so far 12 were only counted; correct the senders"
        " of the refused events, or raise the quota"
    ]
    world.postgres.schemas[SCHEMA] = replace(
        world.postgres.schemas[SCHEMA], stored_totals=(replace(usage, full=False),)
    )
    assert "QuotaUsedUp" not in conditions(apply(document, world, previous=full))


WAYS: list[tuple[tuple[Loss, ...], list[str], str]] = [
    ((), [], "nothing is lost"),
    (
        (Loss("expired", 1, 0, 3, 9), Loss("expired", 0, 0, 5, 6)),
        [
            "the retention of events in topic t ended before the events were read (offsets 0: 5 to 6, 1: 3 to 9);"
            " increase spec.source.topic.retention, or run more processors"
        ],
        "ranges by partition",
    ),
    (
        (Loss("expired", 0, 0, 5, 6), Loss("truncated", 0, 1, 7, 9)),
        [
            "topic t ends before the last read offset, so Kafka has lost counted events (offsets 0: 7 to 9); the lost"
            " events stay counted; find out why a replica that was behind became leader",
            "the retention of events in topic t ended before the events were read (offsets 0: 5 to 6); increase"
            " spec.source.topic.retention, or run more processors",
        ],
        "the most serious loss first",
    ),
    (
        (Loss("topic_recreated", 0, 1, 4, None), Loss("topic_recreated", 0, 0, 12, None)),
        [
            "topic t was deleted and created again (id B2 now); events of the former topic that were not"
            " counted are gone (from offsets 0: 4); earlier results are kept; send the missing events again, and"
            " check who may delete topics"
        ],
        "of two recreations the last counts",
    ),
    ((Loss("something new", 0, 0, 5, 6),), [], "a kind of loss of a newer version is ignored"),
]


@pytest.mark.parametrize(("stored", "expected", "name"), WAYS, ids=[row[2] for row in WAYS])
def test_each_way_of_losing_events_has_its_message(stored: tuple[Loss, ...], expected: list[str], name: str) -> None:
    lost = loss_errors("t", LiveTopic(2, 1, "B2"), LiveSchema(topic_id="B2", losses=stored))
    assert [str(error) for error in lost] == expected, name


def test_of_many_partitions_only_the_first_are_named() -> None:
    schema = LiveSchema(topic_id="A1", next_offsets={partition: partition for partition in range(40)})
    (error,) = loss_errors("t", LiveTopic(40, 1, "B2"), schema)
    assert isinstance(error, TidemillError)
    assert "14: 14, 15: 15 and 24 more partitions);" in str(error)


def test_an_id_that_the_topic_had_before_is_no_loss() -> None:
    """A lagging broker answers with the id of the deleted topic. Processors do not follow it, so nothing is lost."""
    schema = LiveSchema(topic_id="B2", former_topic_ids=frozenset({"A1"}), next_offsets={0: 5})
    assert loss_errors("t", LiveTopic(2, 1, "A1"), schema) == []
    assert [loss.reason for loss in loss_errors("t", LiveTopic(2, 1, "C3"), schema)] == [Reason.TOPIC_RECREATED]


HELD = TaskFailure("visits", "publish", 'column "_max_v" does not exist')
SKIPPED = TaskFailure("sales", "publish", "out of range", "2026-03-01T11:58:00Z", '{"k": "a"}', ("total",), True)


def test_windows_that_cannot_be_published_are_reported(document: dict[str, Any], world: MemoryWorld) -> None:
    """The message names aggregation, window and reason. The pipeline is ready."""
    before = apply(document, world, previous=None)
    schema = world.postgres.schemas[SCHEMA]
    world.postgres.schemas[SCHEMA] = replace(schema, held_up=(HELD,), skipped=(SKIPPED,))
    status = apply(document, world, previous=before)
    assert conditions(status)["WindowsFailing"] == ("True", "HeldUp")
    assert conditions(status)["Ready"] == ("True", "Applied")
    message = next(c["message"] for c in status["conditions"] if c["type"] == "WindowsFailing")
    assert message.startswith('aggregation visits: closed windows cannot be published: column "_max_v" does not exist;')
    assert (
        'aggregation sales: window 2026-03-01T11:58:00Z, group {"k": "a"}, with null for total in publish, and'
        " further cases: out of range; everything else is published"
    ) in message
    assert [c["reason"] for c in conditions_to_report(before, status)] == ["HeldUp"]
    world.postgres.schemas[SCHEMA] = replace(schema, skipped=(SKIPPED,))
    again = apply(document, world, previous=status)
    assert conditions(again)["WindowsFailing"] == ("True", "WindowsSkipped")
    world.postgres.make_unreachable("Postgres")
    assert conditions(apply(document, world, previous=again))["WindowsFailing"] == ("True", "WindowsSkipped")


def test_a_pipeline_without_failures_has_no_condition_about_windows(
    document: dict[str, Any], world: MemoryWorld
) -> None:
    status = apply(document, world, previous=None)
    assert "WindowsFailing" not in conditions(apply(document, world, previous=status))
    assert (
        failure_errors(LiveSchema(held_up=(HELD,)), Owner("a", "b", "c", "d")) == []
    )  # the schema belongs to another resource


def test_of_many_failing_aggregations_only_the_first_are_named() -> None:
    owner = Owner("a", "b", "c", "d")
    many = tuple(replace(HELD, aggregation=f"a{number}") for number in range(20))
    (error,) = failure_errors(LiveSchema(owner, held_up=many), owner)
    assert "aggregation a7: " in str(error)
    assert "; and 12 more; other aggregations continue" in str(error)
    (record,) = failure_errors(LiveSchema(owner, skipped=(TaskFailure("", "anomalies", "record x: too large"),)), owner)
    assert str(record).startswith("the pipeline: skipped in anomalies: record x: too large; ")
