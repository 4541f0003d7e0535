"""Tests of the annotation that spreads replicas again: each value counts once, and is stored after the last move."""

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
    status = apply(document, world)
    assert world.kafka.spreads == [None]
    assert "rebalancedAt" not in status


def test_each_value_spreads_replicas_once(document: dict[str, Any], world: MemoryWorld) -> None:
    """The stored value is kept without the annotation, and another value asks again."""
    status = apply(document, world)
    status = apply(asking(document, "first"), world, status)
    assert status["rebalancedAt"] == "first"
    again = apply(asking(document, "first"), world, status)
    assert again == status
    without = apply(document, world, again)
    assert without == status
    last = apply(asking(document, "second without 3"), world, without)
    assert world.kafka.spreads == [None, Spread(), None, None, Spread(frozenset({3}))]
    assert last["rebalancedAt"] == "second without 3"


def test_each_pass_asks_again_until_all_replicas_have_moved(document: dict[str, Any], world: MemoryWorld) -> None:
    """The status reports the progress, and the next pass asks Kafka again."""
    status = apply(document, world)
    world.kafka.moving = "spreading 1 replica of each partition again: 0 of 3 partitions done, 3 under way"
    status = apply(asking(document, "first"), world, status)
    assert "rebalancedAt" not in status
    reconciling = next(c for c in status["conditions"] if c["type"] == "Reconciling")
    assert reconciling["message"] == f"TopicsReady: {world.kafka.moving}"
    world.kafka.moving = ""
    status = apply(asking(document, "first"), world, status)
    assert world.kafka.spreads == [None, Spread(), Spread()]
    assert status["rebalancedAt"] == "first"
