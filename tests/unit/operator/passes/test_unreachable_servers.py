"""A pass while a server does not answer or fails, against a world in memory."""

from __future__ import annotations

import pytest

from passes.memory_pass import ALL, LATER, Document, apply, conditions, message, true
from tidemill_operator.errors import Reason, TidemillError
from tidemill_operator.testing import MemoryWorld

PARTS = [
    ("postgres", "SchemaReady", {"TopicsReady", "ProcessorsReady", "IngestReady", "APIReady"}),
    ("kafka", "TopicsReady", {"SchemaReady", "ProcessorsReady", "IngestReady", "APIReady"}),
]


@pytest.mark.parametrize(("part", "kind", "others"), PARTS, ids=["postgres", "kafka"])
def test_a_server_that_is_away(document: Document, world: MemoryWorld, part: str, kind: str, others: set[str]) -> None:
    """Its condition says so, what was seen before stays, and nothing is written; then it is as before."""
    first = apply(document, world)
    world.take_writes()
    getattr(world, part).unreachable(part)
    told = apply(document, world, first, LATER)
    assert conditions(told)[kind] == ("False", "Unreachable")
    assert conditions(told)["Ready"] == ("False", "Unreachable")
    assert others <= true(told)
    assert message(told, "Reconciling") == f"{kind}: {part} does not answer"
    assert world.take_writes() == []
    getattr(world, part).failure = None
    assert true(apply(document, world, told, LATER)) == ALL


def test_processes_are_looked_at_while_a_server_is_away(document: Document, world: MemoryWorld) -> None:
    """What does not need the server is told as it is."""
    first = apply(document, world)
    world.kafka.unreachable("kafka")
    world.runtime.starting = {"tidemill-api"}
    told = apply(document, world, first, LATER)
    assert conditions(told)["APIReady"] == ("False", "Waiting")
    assert conditions(told)["IngestReady"] == ("True", "Applied")


@pytest.mark.parametrize("part", ["postgres", "kafka"])
def test_a_server_that_was_never_there(document: Document, world: MemoryWorld, part: str) -> None:
    getattr(world, part).unreachable(part)
    told = apply(document, world)
    assert true(told) == {"Progressing", "Reconciling"}
    assert conditions(told)["Reconciling"] == ("True", "Unreachable")
    assert {state for state, reason in conditions(told).values() if reason == "Blocked"} == {"Unknown"}


def test_a_defect_is_told_and_stops_nobody(document: Document, world: MemoryWorld) -> None:
    """An unexpected error becomes the condition of what it happened to."""
    world.runtime.failure = RuntimeError("fork:\nno memory")
    told = apply(document, world)
    assert conditions(told)["ProcessorsReady"] == ("False", "Internal")
    assert message(told, "ProcessorsReady") == r"RuntimeError: fork:\nno memory; see the log"
    assert conditions(told)["TopicsReady"] == ("True", "Applied")


def test_secrets_that_cannot_be_made_stop_before_the_schema(document: Document, world: MemoryWorld) -> None:
    world.secrets.failure = TidemillError(Reason.REFUSED, "the disk is full", "make room")
    told = apply(document, world)
    assert conditions(told)["SchemaReady"] == ("False", "Refused")
    assert message(told, "Stalled") == "the disk is full; make room"
    assert (world.postgres.schemas, world.kafka.topics) == ({}, {})
