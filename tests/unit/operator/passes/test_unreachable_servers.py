"""Tests of passes while a server does not answer or fails, against a world in memory."""

from __future__ import annotations

import pytest

from passes.memory_pass import ALL_CONDITIONS, LATER, Document, apply, conditions, message, true_types
from tidemill_operator.errors import Reason, TidemillError
from tidemill_operator.testing import MemoryWorld

PARTS = [
    ("postgres", "SchemaReady", {"TopicsReady", "ProcessorsReady", "IngestReady", "APIReady"}),
    ("kafka", "TopicsReady", {"SchemaReady", "ProcessorsReady", "IngestReady", "APIReady"}),
]


@pytest.mark.parametrize(("part", "kind", "others"), PARTS, ids=["postgres", "kafka"])
def test_an_unreachable_server_is_named_in_its_condition(
    document: Document, world: MemoryWorld, part: str, kind: str, others: set[str]
) -> None:
    """The other conditions are kept, and nothing is written. When the server answers again, all conditions are true."""
    first = apply(document, world)
    world.take_writes()
    getattr(world, part).make_unreachable(part)
    status = apply(document, world, first, LATER)
    assert conditions(status)[kind] == ("False", "Unreachable")
    assert conditions(status)["Ready"] == ("False", "Unreachable")
    assert others <= true_types(status)
    assert message(status, "Reconciling") == f"{kind}: {part} does not answer"
    assert world.take_writes() == []
    getattr(world, part).failure = None
    assert true_types(apply(document, world, status, LATER)) == ALL_CONDITIONS


def test_processes_are_observed_while_a_server_is_unreachable(document: Document, world: MemoryWorld) -> None:
    """Conditions that do not depend on the server are still updated."""
    first = apply(document, world)
    world.kafka.make_unreachable("kafka")
    world.runtime.starting = {"tidemill-api"}
    status = apply(document, world, first, LATER)
    assert conditions(status)["APIReady"] == ("False", "Waiting")
    assert conditions(status)["IngestReady"] == ("True", "Applied")


@pytest.mark.parametrize("part", ["postgres", "kafka"])
def test_nothing_is_created_while_a_server_has_never_answered(
    document: Document, world: MemoryWorld, part: str
) -> None:
    getattr(world, part).make_unreachable(part)
    status = apply(document, world)
    assert true_types(status) == {"Progressing", "Reconciling"}
    assert conditions(status)["Reconciling"] == ("True", "Unreachable")
    assert {state for state, reason in conditions(status).values() if reason == "Blocked"} == {"Unknown"}


def test_an_unexpected_error_is_reported_and_other_parts_are_applied(document: Document, world: MemoryWorld) -> None:
    """An unexpected error becomes the condition of the part that raised it."""
    world.runtime.failure = RuntimeError("fork:\nno memory")
    status = apply(document, world)
    assert conditions(status)["ProcessorsReady"] == ("False", "Internal")
    assert message(status, "ProcessorsReady") == r"RuntimeError: fork:\nno memory; see the log"
    assert conditions(status)["TopicsReady"] == ("True", "Applied")


def test_no_schema_is_created_without_secrets(document: Document, world: MemoryWorld) -> None:
    world.secrets.failure = TidemillError(Reason.REFUSED, "the disk is full", "make room")
    status = apply(document, world)
    assert conditions(status)["SchemaReady"] == ("False", "Refused")
    assert message(status, "Stalled") == "the disk is full; make room"
    assert (world.postgres.schemas, world.kafka.topics) == ({}, {})
