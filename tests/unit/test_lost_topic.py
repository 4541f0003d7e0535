"""A source topic that was deleted behind our back: told with what is lost, and made anew only if somebody says so."""

from __future__ import annotations

import datetime as dt
from dataclasses import replace
from typing import Any

from tidemill_operator.reconcile import reconcile
from tidemill_operator.settings import Platform

NOON = dt.datetime(2026, 3, 1, 12, tzinfo=dt.UTC)
EVENTS, SCHEMA = "shop.orders.events", "shop__orders"
LOSS = (
    "topic shop.orders.events is gone, and with it every event that was not counted (id A1; counted up to offsets 0: 12"
    ", 1: 7); make it anew with the annotation tidemill.dev/recreate-topics: 'true'; what is counted stays"
)


def apply(document: dict[str, Any], world: Any, platform: Platform | None = None, **more: Any) -> dict[str, Any]:
    return reconcile(document, platform=platform or Platform(), actuators=world.actuators, now=NOON, **more)


def deleted(document: dict[str, Any], world: Any, *, read: bool = True) -> dict[str, Any]:
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


def test_the_loss_is_told_and_nothing_is_made(document: dict[str, Any], world: Any) -> None:
    """The condition says which offsets are counted; processors stay as they are."""
    told = apply(document, world, previous=deleted(document, world))
    assert conditions(told)["TopicsReady"] == ("False", "DataLoss")
    assert conditions(told)["Ready"] == ("False", "DataLoss")
    assert conditions(told)["Stalled"] == ("True", "DataLoss")
    assert conditions(told)["ProcessorsReady"][0] == "True"
    assert next(c["message"] for c in told["conditions"] if c["type"] == "TopicsReady") == LOSS
    assert world.take_writes() == []
    assert EVENTS not in world.kafka.topics


def test_the_annotation_makes_it_anew(document: dict[str, Any], world: Any) -> None:
    lost = apply(document, world, previous=deleted(document, world))
    document["metadata"]["annotations"] = {"tidemill.dev/recreate-topics": "true"}
    told = apply(document, world, previous=lost)
    assert conditions(told)["Ready"] == ("True", "Applied")
    assert world.take_writes() == [f"create {EVENTS}"]


def test_the_platform_may_allow_it(document: dict[str, Any], world: Any) -> None:
    platform = replace(Platform(), recreate_topics=True)
    told = apply(document, world, platform, previous=deleted(document, world))
    assert conditions(told)["Ready"] == ("True", "Applied")


def test_a_topic_that_nobody_has_read_is_made(document: dict[str, Any], world: Any) -> None:
    """There is no position in it, so nothing tells that it has been there."""
    told = apply(document, world, previous=deleted(document, world, read=False))
    assert conditions(told)["Ready"] == ("True", "Applied")


def test_topics_of_results_are_made_again(document: dict[str, Any], world: Any) -> None:
    """What they hold is in Postgres."""
    before = apply(document, world, previous=None)
    known = world.postgres.schemas[SCHEMA]
    world.postgres.schemas[SCHEMA] = replace(known, read_from="A1", read_to={0: 12})
    del world.kafka.topics["shop.orders.dead-letters"]
    assert conditions(apply(document, world, previous=before))["Ready"] == ("True", "Applied")
