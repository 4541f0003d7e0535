"""Passes over a resource against a world in memory, and readers of the status that a pass returns."""

from __future__ import annotations

import copy
import datetime as dt
from typing import Any

from tidemill_operator.reconcile import reconcile
from tidemill_operator.settings import Platform
from tidemill_operator.testing import MemoryWorld

Document = dict[str, Any]
Status = dict[str, Any]
NOON = dt.datetime(2026, 3, 1, 12, tzinfo=dt.UTC)
LATER = NOON + dt.timedelta(hours=1)
PLATFORM = Platform()
EVENTS, SCHEMA = "shop.orders.events", "shop__orders"


def apply(document: Document, world: MemoryWorld, previous: Status | None = None, now: dt.datetime = NOON) -> Status:
    return reconcile(document, platform=PLATFORM, actuators=world.actuators, previous=previous, now=now)


def edited(document: Document, **spec: Any) -> Document:
    """The next generation, with these members of the spec."""
    found = copy.deepcopy(document)
    found["spec"] |= spec
    found["metadata"]["generation"] += 1
    return found


def with_topic(document: Document, **topic: Any) -> Document:
    return edited(document, source={**document["spec"]["source"], "topic": topic})


def conditions(told: Status) -> dict[str, tuple[str, str]]:
    return {condition["type"]: (condition["status"], condition["reason"]) for condition in told["conditions"]}


def message(told: Status, kind: str) -> str:
    return next(str(condition["message"]) for condition in told["conditions"] if condition["type"] == kind)


def true(told: Status) -> set[str]:
    return {kind for kind, (state, _) in conditions(told).items() if state == "True"}


ALL = {"Ready", "TopicsReady", "SchemaReady", "ProcessorsReady", "IngestReady", "APIReady"}
