"""The annotation that asks for replicas to be spread anew: each value once, and noted when all of it is done."""

from __future__ import annotations

import datetime as dt
from typing import Any

from tidemill_operator.plan.kafka.replication import Spread
from tidemill_operator.reconcile import reconcile
from tidemill_operator.settings import Platform
from tidemill_operator.testing import MemoryWorld

NOON = dt.datetime(2026, 3, 1, 12, tzinfo=dt.UTC)


def apply(document: dict[str, Any], world: MemoryWorld, previous: dict[str, Any] | None = None) -> dict[str, Any]:
    return reconcile(document, platform=Platform(), actuators=world.actuators, previous=previous, now=NOON)


def asking(document: dict[str, Any], text: str) -> dict[str, Any]:
    return {**document, "metadata": {**document["metadata"], "annotations": {"tidemill.dev/rebalance-at": text}}}


def test_without_the_annotation_no_replica_moves(document: dict[str, Any], world: MemoryWorld) -> None:
    told = apply(document, world)
    assert world.kafka.spreads == [None]
    assert "rebalancedAt" not in told


def test_each_value_asks_once(document: dict[str, Any], world: MemoryWorld) -> None:
    """Done once, it is done; the note stays when the annotation goes, and another value asks again."""
    told = apply(document, world)
    told = apply(asking(document, "first"), world, told)
    assert told["rebalancedAt"] == "first"
    again = apply(asking(document, "first"), world, told)
    assert again == told
    without = apply(document, world, again)
    assert without == told
    last = apply(asking(document, "second without 3"), world, without)
    assert world.kafka.spreads == [None, Spread(), None, None, Spread(frozenset({3}))]
    assert last["rebalancedAt"] == "second without 3"


def test_it_is_asked_until_all_is_done(document: dict[str, Any], world: MemoryWorld) -> None:
    """While replicas move the status says so, and the next pass asks again."""
    told = apply(document, world)
    world.kafka.moving = "spreading 1 replica of each partition again: 0 of 3 partitions done, 3 under way"
    told = apply(asking(document, "first"), world, told)
    assert "rebalancedAt" not in told
    reconciling = next(c for c in told["conditions"] if c["type"] == "Reconciling")
    assert reconciling["message"] == f"TopicsReady: {world.kafka.moving}"
    world.kafka.moving = ""
    told = apply(asking(document, "first"), world, told)
    assert world.kafka.spreads == [None, Spread(), Spread()]
    assert told["rebalancedAt"] == "first"
