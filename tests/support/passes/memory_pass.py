"""Passes over a resource against a world in memory, and functions that read their status."""

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
    """Run a pass, and return the status."""
    return reconcile(document, platform=PLATFORM, actuators=world.actuators, previous=previous, now=now)


def edited(document: Document, **spec: Any) -> Document:
    """Return the next generation of a resource, with these members of the spec."""
    edited_document = copy.deepcopy(document)
    edited_document["spec"] |= spec
    edited_document["metadata"]["generation"] += 1
    return edited_document


def with_topic(document: Document, **topic: Any) -> Document:
    return edited(document, source={**document["spec"]["source"], "topic": topic})


def conditions(status: Status) -> dict[str, tuple[str, str]]:
    """Return state and reason of each condition by its type."""
    return {condition["type"]: (condition["status"], condition["reason"]) for condition in status["conditions"]}


def message(status: Status, kind: str) -> str:
    return next(str(condition["message"]) for condition in status["conditions"] if condition["type"] == kind)


def true_types(status: Status) -> set[str]:
    """Return the types of the conditions that are true."""
    return {kind for kind, (state, _) in conditions(status).items() if state == "True"}


ALL_CONDITIONS = {"Ready", "TopicsReady", "SchemaReady", "ProcessorsReady", "IngestReady", "APIReady"}
