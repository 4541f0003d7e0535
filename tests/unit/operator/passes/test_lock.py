"""Tests of a pass without the lock of the pipeline, and of the epoch in a schema's comment."""

from __future__ import annotations

import datetime as dt
from typing import Any

import pytest

from tidemill_operator.actuators.postgres.ownership import parse_epoch, schema_comment
from tidemill_operator.errors import LockNotHeldError, Reason
from tidemill_operator.plan.live import Owner
from tidemill_operator.reconcile import reconcile, release
from tidemill_operator.settings import Platform
from tidemill_operator.testing import MemoryWorld

NOON = dt.datetime(2026, 3, 1, 12, tzinfo=dt.UTC)
OWNER = Owner(cluster="c", namespace="shop", name="orders", uid="uid-1")


def test_a_pass_without_the_lock_writes_nothing_and_returns_no_status(
    world: MemoryWorld, document: dict[str, Any]
) -> None:
    world.postgres.lock_error = LockNotHeldError(Reason.WAITING, "another is at it")
    with pytest.raises(LockNotHeldError):
        reconcile(document, platform=Platform(), actuators=world.actuators, previous=None, now=NOON)
    assert world.take_writes() == []


def test_a_release_without_the_lock_deletes_no_data(world: MemoryWorld, document: dict[str, Any]) -> None:
    document["spec"]["reclaimPolicy"] = "Delete"
    reconcile(document, platform=Platform(), actuators=world.actuators, previous=None, now=NOON)
    world.take_writes()
    world.postgres.lock_error = LockNotHeldError(Reason.WAITING, "another is at it")
    with pytest.raises(LockNotHeldError):
        release(document, platform=Platform(), actuators=world.actuators)
    assert world.take_writes() == []


def test_an_unreachable_postgres_is_reported_in_the_conditions(world: MemoryWorld, document: dict[str, Any]) -> None:
    """The lock is in Postgres, so without Postgres nothing is observed."""
    world.postgres.make_unreachable("Postgres")
    status = reconcile(document, platform=Platform(), actuators=world.actuators, previous=None, now=NOON)
    conditions = {item["type"]: item["reason"] for item in status["conditions"]}
    assert conditions["SchemaReady"] == "Unreachable"
    assert conditions["TopicsReady"] == "Blocked"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (schema_comment(OWNER, 7), 7),
        (schema_comment(OWNER, None), None),  # no leader was elected
        ('{"tidemill": {}, "epoch": "x"}', None),
        ("somebody's own words", None),
        (None, None),
    ],
)
def test_the_epoch_is_read_from_the_comment(text: str | None, expected: int | None) -> None:
    assert parse_epoch(text) == expected
