"""Tests of claims on topics: no pipeline gets another pipeline's topic, and only created topics are deleted."""

from __future__ import annotations

import copy
import datetime as dt
from typing import Any

import pytest

from tidemill_operator.plan.kafka.claims import TOPICS_TABLE
from tidemill_operator.reconcile import reconcile, release
from tidemill_operator.settings import Platform
from tidemill_operator.testing import MemoryWorld

Document = dict[str, Any]
NOON = dt.datetime(2026, 3, 1, 12, tzinfo=dt.UTC)
PLATFORM = Platform(partitions=3)
ALL = {"shop.orders.events", "shop.orders.results", "shop.orders.dead-letters"}


def apply(document: Document, world: MemoryWorld, previous: Document | None = None) -> Document:
    return reconcile(document, platform=PLATFORM, actuators=world.actuators, previous=previous, now=NOON)


def released(document: Document, world: MemoryWorld) -> None:
    release(document, platform=PLATFORM, actuators=world.actuators)


def other(document: Document, /, *, adopt: bool = False, **topic: Any) -> Document:
    """Return a pipeline beside `shop/orders` with this topic and the reclaim policy Delete."""
    other_document = copy.deepcopy(document)
    other_document["metadata"] |= {"name": "evil", "uid": "uid-2"}
    if adopt:
        other_document["metadata"]["annotations"] = {"tidemill.dev/adopt": "true"}
    other_document["spec"]["source"]["topic"] = topic
    other_document["spec"]["reclaimPolicy"] = "Delete"
    return other_document


def ready(status: Document) -> tuple[str, str, str]:
    condition = next(item for item in status["conditions"] if item["type"] == "Ready")
    return condition["status"], condition["reason"], condition["message"]


@pytest.mark.parametrize("adopt", [False, True], ids=["plain", "adopt"])
@pytest.mark.parametrize("managed", [True, False], ids=["managed", "read"])
@pytest.mark.parametrize("kind", ["events", "results", "anomalies", "dead-letters"])
def test_the_topic_of_another_pipeline_is_refused_for_any_use(
    document: Document, world: MemoryWorld, kind: str, managed: bool, adopt: bool
) -> None:
    """Configs and records are unchanged. The topic is not deleted with the refused pipeline."""
    apply(document, world)
    world.kafka.put("shop.orders.anomalies", 3)
    before, _ = copy.deepcopy((world.kafka.configs, world.take_writes()))
    evil = other(document, adopt=adopt, name=f"shop.orders.{kind}", retention="1m", managed=managed)
    status = apply(evil, world)
    state, reason, message = ready(status)
    assert (state, reason) == ("False", "ResourceConflict")
    assert f"shop.orders.{kind}" in message
    assert "the pipeline shop/orders" in message
    assert [item["type"] for item in status["conditions"] if item["type"] == "Stalled"] == ["Stalled"]
    released(evil, world)
    assert (world.kafka.configs, world.kafka.writes) == (before, [])
    assert {*ALL, "shop.orders.anomalies"} == set(world.kafka.topics)


def test_topic_names_are_reserved_before_their_pipeline_exists(document: Document, world: MemoryWorld) -> None:
    state = ready(apply(other(document, name="shop.orders.results"), world))
    assert state == (
        "False",
        "ResourceConflict",
        "spec.source.topic.name: topic shop.orders.results is reserved for the results of the pipeline shop/orders,"
        " also with managed: false; name another topic; the API answers results",
    )
    assert (world.kafka.topics, world.postgres.schemas) == ({}, {})


def test_a_pipeline_cannot_read_its_output_topics(document: Document, world: MemoryWorld) -> None:
    document["spec"]["source"]["topic"] = {"name": "shop.orders.dead-letters"}
    state, reason, message = ready(apply(document, world))
    assert (state, reason, "of this pipeline itself" in message) == ("False", "ResourceConflict", True)


def test_a_topic_accepted_by_an_earlier_version_is_no_longer_altered(document: Document, world: MemoryWorld) -> None:
    """The topic is no longer altered, and is not deleted with the pipeline."""
    apply(document, world)
    evil = other(document, name="shop.evil.events", retention="1m")
    apply(evil, world)
    schema = world.postgres.schemas["shop__evil"]
    schema.accepted["source"]["topic"]["name"] = evil["spec"]["source"]["topic"]["name"] = "shop.orders.results"
    world.take_writes()
    assert ready(apply(evil, world))[:2] == ("False", "ResourceConflict")
    assert world.take_writes() == []
    released(evil, world)
    assert set(world.kafka.topics) >= ALL


def test_adopt_takes_over_the_topic_of_a_deleted_pipeline(document: Document, world: MemoryWorld) -> None:
    """The former pipeline left its data. The new pipeline did not create the topic, and does not delete the topic."""
    document["spec"]["source"]["topic"]["name"] = "shop.shared"
    apply(document, world)
    released(document, world)
    evil = other(document, adopt=True, name="shop.shared", partitions=3)
    assert ready(apply({**evil, "metadata": {**evil["metadata"], "annotations": {}}}, world))[1] == "ResourceConflict"
    assert ready(apply(evil, world))[0] == "True"
    released(evil, world)
    assert "shop.shared" in world.kafka.topics


def test_a_topic_that_existed_before_the_pipeline_is_never_deleted(document: Document, world: MemoryWorld) -> None:
    """A topic that existed before is kept, even if the pipeline manages it."""
    world.kafka.put("shop.orders.events", 3)
    document["spec"]["reclaimPolicy"] = "Delete"
    apply(document, world)
    assert world.kafka.configs["shop.orders.events"]["retention.ms"] == "604800000"
    released(document, world)
    assert set(world.kafka.topics) == {"shop.orders.events"}


def test_a_pipeline_of_an_earlier_version_owns_the_topics_of_its_name(document: Document, world: MemoryWorld) -> None:
    """The schema of an earlier version does not list created topics, so names decide."""
    document["spec"]["reclaimPolicy"] = "Delete"
    apply(document, world)
    schema = world.postgres.schemas["shop__orders"]
    columns = {name: table for name, table in schema.columns.items() if name != TOPICS_TABLE.name}
    object.__setattr__(schema, "made", frozenset())
    object.__setattr__(schema, "columns", columns)
    apply(document, world)
    assert world.postgres.schemas["shop__orders"].created_topics == ALL
    released(document, world)
    assert world.kafka.topics == {}
