"""Nobody takes another pipeline's topic, in no way; only what the operator made goes with a pipeline."""

from __future__ import annotations

import copy
import datetime as dt
from typing import Any

import pytest

from tidemill_operator.plan.kafka.claims import TOPICS
from tidemill_operator.reconcile import reconcile, release
from tidemill_operator.settings import Platform
from tidemill_operator.testing import MemoryWorld

Document = dict[str, Any]
NOON = dt.datetime(2026, 3, 1, 12, tzinfo=dt.UTC)
PLATFORM = Platform(partitions=3)
ALL = {"shop.orders.events", "shop.orders.results", "shop.orders.dead-letters"}


def apply(document: Document, world: MemoryWorld, previous: Document | None = None) -> Document:
    return reconcile(document, platform=PLATFORM, actuators=world.actuators, previous=previous, now=NOON)


def let_go(document: Document, world: MemoryWorld) -> None:
    release(document, platform=PLATFORM, actuators=world.actuators)


def other(document: Document, /, *, adopt: bool = False, **topic: Any) -> Document:
    """A pipeline beside `shop/orders` that names a topic of its own choice, and takes it along when it goes."""
    made = copy.deepcopy(document)
    made["metadata"] |= {"name": "evil", "uid": "uid-2"}
    if adopt:
        made["metadata"]["annotations"] = {"tidemill.dev/adopt": "true"}
    made["spec"]["source"]["topic"] = topic
    made["spec"]["reclaimPolicy"] = "Delete"
    return made


def ready(status: Document) -> tuple[str, str, str]:
    found = next(item for item in status["conditions"] if item["type"] == "Ready")
    return found["status"], found["reason"], found["message"]


@pytest.mark.parametrize("adopt", [False, True], ids=["plain", "adopt"])
@pytest.mark.parametrize("managed", [True, False], ids=["managed", "read"])
@pytest.mark.parametrize("kind", ["events", "results", "anomalies", "dead-letters"])
def test_anothers_topic_is_refused_for_any_use(
    document: Document, world: MemoryWorld, kind: str, managed: bool, adopt: bool
) -> None:
    """Neither its configs nor its records change; and it does not go with the pipeline that asked for it."""
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
    let_go(evil, world)
    assert (world.kafka.configs, world.kafka.writes) == (before, [])
    assert {*ALL, "shop.orders.anomalies"} == set(world.kafka.topics)


def test_a_name_is_kept_for_whom_it_belongs_to(document: Document, world: MemoryWorld) -> None:
    """Before there is such a pipeline."""
    state = ready(apply(other(document, name="shop.orders.results"), world))
    assert state == (
        "False",
        "ResourceConflict",
        "spec.source.topic.name: topic shop.orders.results is reserved for the results of the pipeline shop/orders,"
        " also with managed: false; name another topic; the API answers results",
    )
    assert (world.kafka.topics, world.postgres.schemas) == ({}, {})


def test_no_pipeline_reads_what_it_writes(document: Document, world: MemoryWorld) -> None:
    document["spec"]["source"]["topic"] = {"name": "shop.orders.dead-letters"}
    state, reason, message = ready(apply(document, world))
    assert (state, reason, "of this pipeline itself" in message) == ("False", "ResourceConflict", True)


def test_what_was_accepted_before_that_was_a_rule_stands_still(document: Document, world: MemoryWorld) -> None:
    """Its topic is not altered any more and does not go with it."""
    apply(document, world)
    evil = other(document, name="shop.evil.events", retention="1m")
    apply(evil, world)
    schema = world.postgres.schemas["shop__evil"]
    schema.accepted["source"]["topic"]["name"] = evil["spec"]["source"]["topic"]["name"] = "shop.orders.results"
    world.take_writes()
    assert ready(apply(evil, world))[:2] == ("False", "ResourceConflict")
    assert world.take_writes() == []
    let_go(evil, world)
    assert set(world.kafka.topics) >= ALL


def test_a_topic_is_taken_over_from_a_pipeline_that_is_gone(document: Document, world: MemoryWorld) -> None:
    """Whose data were kept; it was not made for the new one, so it does not go with it."""
    document["spec"]["source"]["topic"]["name"] = "shop.shared"
    apply(document, world)
    let_go(document, world)
    evil = other(document, adopt=True, name="shop.shared", partitions=3)
    assert ready(apply({**evil, "metadata": {**evil["metadata"], "annotations": {}}}, world))[1] == "ResourceConflict"
    assert ready(apply(evil, world))[0] == "True"
    let_go(evil, world)
    assert "shop.shared" in world.kafka.topics


def test_what_was_there_before_does_not_go(document: Document, world: MemoryWorld) -> None:
    """A topic that somebody made, though the pipeline manages it, and though it bears the pipeline's name."""
    world.kafka.put("shop.orders.events", 3)
    document["spec"]["reclaimPolicy"] = "Delete"
    apply(document, world)
    assert world.kafka.configs["shop.orders.events"]["retention.ms"] == "604800000"
    let_go(document, world)
    assert set(world.kafka.topics) == {"shop.orders.events"}


def test_a_pipeline_of_an_earlier_version_has_the_topics_of_its_name(document: Document, world: MemoryWorld) -> None:
    """Its schema does not tell which were made; one of another name may be anybody's."""
    document["spec"]["reclaimPolicy"] = "Delete"
    apply(document, world)
    schema = world.postgres.schemas["shop__orders"]
    columns = {name: table for name, table in schema.columns.items() if name != TOPICS.name}
    object.__setattr__(schema, "made", frozenset())
    object.__setattr__(schema, "columns", columns)
    apply(document, world)
    assert world.postgres.schemas["shop__orders"].made == ALL
    let_go(document, world)
    assert world.kafka.topics == {}
