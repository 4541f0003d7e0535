"""A source topic that was deleted behind our back: told with what is lost, and made anew only if somebody says so.

If somebody else makes it anew between two passes, or Kafka loses events otherwise, that is told too; and so is what
processors cannot do with windows.
"""

from __future__ import annotations

import datetime as dt
from dataclasses import replace
from typing import Any

import pytest

from tidemill_contract.tables.kept import Kept
from tidemill_operator.cluster.events import changed
from tidemill_operator.errors import Reason, TidemillError
from tidemill_operator.plan.live import Failing, LiveSchema, LiveTopic, Loss, Owner
from tidemill_operator.plan.postgres.failing import failing
from tidemill_operator.plan.postgres.losses import losses
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
    """The pipeline ran, and then its topic is gone; the last status."""
    told = apply(document, world, previous=None)
    if read:
        known = world.postgres.schemas[SCHEMA]
        world.postgres.schemas[SCHEMA] = replace(known, read_from="A1", read_to={0: 12, 1: 7})
    del world.kafka.topics[EVENTS]
    world.take_writes()
    return told


def conditions(told: dict[str, Any]) -> dict[str, tuple[str, str]]:
    return {c["type"]: (c["status"], c["reason"]) for c in told["conditions"]}


def test_the_loss_is_told_and_nothing_is_made(document: dict[str, Any], world: MemoryWorld) -> None:
    """The condition says which offsets are counted; processors stay as they are."""
    told = apply(document, world, previous=deleted(document, world))
    assert conditions(told)["TopicsReady"] == ("False", "DataLoss")
    assert conditions(told)["Ready"] == ("False", "DataLoss")
    assert conditions(told)["Stalled"] == ("True", "DataLoss")
    assert conditions(told)["ProcessorsReady"][0] == "True"
    assert next(c["message"] for c in told["conditions"] if c["type"] == "TopicsReady") == LOSS
    assert world.take_writes() == []
    assert EVENTS not in world.kafka.topics


def test_the_annotation_makes_it_anew(document: dict[str, Any], world: MemoryWorld) -> None:
    lost = apply(document, world, previous=deleted(document, world))
    document["metadata"]["annotations"] = {"tidemill.dev/recreate-topics": "true"}
    told = apply(document, world, previous=lost)
    assert conditions(told)["Ready"] == ("True", "Applied")
    assert world.take_writes() == [f"create {EVENTS}"]


def test_the_platform_may_allow_it(document: dict[str, Any], world: MemoryWorld) -> None:
    platform = replace(Platform(), recreate_topics=True)
    told = apply(document, world, platform, previous=deleted(document, world))
    assert conditions(told)["Ready"] == ("True", "Applied")


def test_a_topic_that_nobody_has_read_is_made(document: dict[str, Any], world: MemoryWorld) -> None:
    """There is no position in it, so nothing tells that it has been there."""
    told = apply(document, world, previous=deleted(document, world, read=False))
    assert conditions(told)["Ready"] == ("True", "Applied")


def test_topics_of_results_are_made_again(document: dict[str, Any], world: MemoryWorld) -> None:
    """What they hold is in Postgres."""
    before = apply(document, world, previous=None)
    known = world.postgres.schemas[SCHEMA]
    world.postgres.schemas[SCHEMA] = replace(known, read_from="A1", read_to={0: 12})
    del world.kafka.topics["shop.orders.dead-letters"]
    assert conditions(apply(document, world, previous=before))["Ready"] == ("True", "Applied")


REMADE = (
    "topic shop.orders.events was deleted and created again (id B2 now); events of the former topic that were"
    " not counted are gone (from offsets 0: 12, 1: 7); earlier results are kept; send the missing events again, and"
    " check who may delete topics"
)


def remade(document: dict[str, Any], world: MemoryWorld, *losses: Loss, read_from: str = "A1") -> dict[str, Any]:
    """Somebody deleted the topic and made it again, and processors have noted so much; the status before that."""
    before = apply(document, world, previous=None)
    known = world.postgres.schemas[SCHEMA]
    read_to = {0: 12, 1: 7} if read_from == "A1" else {0: 0, 1: 0}
    world.postgres.schemas[SCHEMA] = replace(known, read_from=read_from, read_to=read_to, losses=losses)
    world.kafka.topics[EVENTS] = replace(world.kafka.topics[EVENTS], id="B2")
    return before


def test_a_topic_that_somebody_made_anew_is_told(document: dict[str, Any], world: MemoryWorld) -> None:
    """By its id, before any processor has taken it up; the pipeline is ready, and one Event tells of it."""
    before = remade(document, world)
    told = apply(document, world, previous=before)
    assert conditions(told)["EventsLost"] == ("True", "TopicRecreated")
    assert conditions(told)["Ready"] == ("True", "Applied")
    assert [(c["type"], c["reason"], c["message"]) for c in changed(before, told)] == [
        ("EventsLost", "TopicRecreated", REMADE)
    ]


def test_it_is_told_once_when_processors_have_noted_it(document: dict[str, Any], world: MemoryWorld) -> None:
    """Their notes say the same as the ids did; a day later it is told no more."""
    told = apply(document, world, previous=remade(document, world))
    known = world.postgres.schemas[SCHEMA]
    noted = tuple(Loss("topic_recreated", partition, 0, offset, None) for partition, offset in known.read_to.items())
    world.postgres.schemas[SCHEMA] = replace(known, read_from="B2", read_to={0: 0, 1: 0}, losses=noted)
    again = apply(document, world, previous=told)
    assert again == told
    assert list(changed(told, again)) == []
    world.postgres.schemas[SCHEMA] = replace(world.postgres.schemas[SCHEMA], losses=())
    calm = apply(document, world, previous=again)
    assert "EventsLost" not in conditions(calm)
    assert [(c["type"], c["status"]) for c in changed(again, calm)] == [("EventsLost", "False")]


def test_more_that_is_lost_is_another_event(document: dict[str, Any], world: MemoryWorld) -> None:
    told = apply(document, world, previous=remade(document, world, read_from="B2"))
    assert "EventsLost" not in conditions(told)
    for first in (5, 9):
        known = world.postgres.schemas[SCHEMA]
        losses = (*known.losses, Loss("expired", 0, 1, first, first + 2))
        world.postgres.schemas[SCHEMA] = replace(known, losses=losses)
        before, told = told, apply(document, world, previous=told)
        assert [c["reason"] for c in changed(before, told)] == ["EventsExpired"]


def test_what_is_not_seen_is_not_taken_back(document: dict[str, Any], world: MemoryWorld) -> None:
    """Postgres does not answer: what was told of events stands."""
    told = apply(document, world, previous=remade(document, world))
    world.postgres.unreachable("Postgres")
    assert conditions(apply(document, world, previous=told))["EventsLost"] == ("True", "TopicRecreated")


def test_the_losses_of_another_pipelines_schema_are_its_own(document: dict[str, Any], world: MemoryWorld) -> None:
    remade(document, world)
    document["metadata"]["uid"] = "uid-of-another"
    assert "EventsLost" not in conditions(apply(document, world, previous=None))


def test_a_quota_that_is_used_up_is_a_condition(document: dict[str, Any], world: MemoryWorld) -> None:
    """While it took something within a day; the pipeline is ready all the same."""
    before = apply(document, world, previous=None)
    kept = Kept("_dead_letters", 10, bare=0, counted=12, expired=0, evicted=0, full=True)
    world.postgres.schemas[SCHEMA] = replace(world.postgres.schemas[SCHEMA], kept=(kept,))
    full = apply(document, world, previous=before)
    assert conditions(full)["QuotaUsedUp"] == ("True", "QuotaUsedUp")
    assert conditions(full)["Ready"] == ("True", "Applied")
    assert [c["message"] for c in changed(before, full)] == [
        "spec.deadLetters.quota of 1Gi is used up: of the dead letters so far 12 were only counted; correct the senders"
        " of the refused events, or raise the quota"
    ]
    world.postgres.schemas[SCHEMA] = replace(world.postgres.schemas[SCHEMA], kept=(replace(kept, full=False),))
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
        "the gravest first",
    ),
    (
        (Loss("topic_recreated", 0, 1, 4, None), Loss("topic_recreated", 0, 0, 12, None)),
        [
            "topic t was deleted and created again (id B2 now); events of the former topic that were not"
            " counted are gone (from offsets 0: 4); earlier results are kept; send the missing events again, and"
            " check who may delete topics"
        ],
        "twice: the last time counts",
    ),
    ((Loss("something new", 0, 0, 5, 6),), [], "of a newer version: left to it"),
]


@pytest.mark.parametrize(("noted", "expected", "why"), WAYS, ids=[row[2] for row in WAYS])
def test_each_way_of_losing_events_has_its_message(noted: tuple[Loss, ...], expected: list[str], why: str) -> None:
    found = losses("t", LiveTopic(2, 1, "B2"), LiveSchema(read_from="B2", losses=noted))
    assert [str(error) for error in found] == expected, why


def test_many_partitions_are_not_all_named() -> None:
    schema = LiveSchema(read_from="A1", read_to={partition: partition for partition in range(40)})
    (error,) = losses("t", LiveTopic(40, 1, "B2"), schema)
    assert isinstance(error, TidemillError)
    assert "14: 14, 15: 15 and 24 more partitions);" in str(error)


def test_an_id_that_the_topic_had_before_is_no_loss() -> None:
    """A broker that lags behind answers with the deleted topic's id. Processors do not follow it: nothing is lost."""
    schema = LiveSchema(read_from="B2", read_before=frozenset({"A1"}), read_to={0: 5})
    assert losses("t", LiveTopic(2, 1, "A1"), schema) == []
    assert [loss.reason for loss in losses("t", LiveTopic(2, 1, "C3"), schema)] == [Reason.TOPIC_RECREATED]


HELD = Failing("visits", "publish", 'column "_max_v" does not exist')
SKIPPED = Failing("sales", "publish", "out of range", "2026-03-01T11:58:00Z", '{"k": "a"}', ("total",), True)


def test_what_processors_cannot_do_is_told(document: dict[str, Any], world: MemoryWorld) -> None:
    """By aggregation, window and reason, as long as it is so; the pipeline is ready nevertheless."""
    before = apply(document, world, previous=None)
    known = world.postgres.schemas[SCHEMA]
    world.postgres.schemas[SCHEMA] = replace(known, held_up=(HELD,), skipped=(SKIPPED,))
    told = apply(document, world, previous=before)
    assert conditions(told)["WindowsFailing"] == ("True", "HeldUp")
    assert conditions(told)["Ready"] == ("True", "Applied")
    message = next(c["message"] for c in told["conditions"] if c["type"] == "WindowsFailing")
    assert message.startswith('aggregation visits: closed windows cannot be published: column "_max_v" does not exist;')
    assert (
        'aggregation sales: window 2026-03-01T11:58:00Z, group {"k": "a"}, with null for total in publish, and'
        " further cases: out of range; everything else is published"
    ) in message
    assert [c["reason"] for c in changed(before, told)] == ["HeldUp"]
    world.postgres.schemas[SCHEMA] = replace(known, skipped=(SKIPPED,))
    again = apply(document, world, previous=told)
    assert conditions(again)["WindowsFailing"] == ("True", "WindowsSkipped")
    world.postgres.unreachable("Postgres")
    assert conditions(apply(document, world, previous=again))["WindowsFailing"] == ("True", "WindowsSkipped")


def test_nothing_is_told_while_nothing_fails(document: dict[str, Any], world: MemoryWorld) -> None:
    told = apply(document, world, previous=None)
    assert "WindowsFailing" not in conditions(apply(document, world, previous=told))
    assert failing(LiveSchema(held_up=(HELD,)), Owner("a", "b", "c", "d")) == []  # it is somebody else's


def test_many_that_fail_are_not_all_named() -> None:
    owner = Owner("a", "b", "c", "d")
    many = tuple(replace(HELD, aggregation=f"a{number}") for number in range(20))
    (error,) = failing(LiveSchema(owner, held_up=many), owner)
    assert "aggregation a7: " in str(error)
    assert "; and 12 more; other aggregations continue" in str(error)
    (record,) = failing(LiveSchema(owner, skipped=(Failing("", "anomalies", "record x: too large"),)), owner)
    assert str(record).startswith("the pipeline: skipped in anomalies: record x: too large; ")
