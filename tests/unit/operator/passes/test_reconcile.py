"""Tests of one pass over a resource, against a world in memory: its writes, and the status that it returns."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace

import pytest

from passes.memory_pass import (
    ALL_CONDITIONS,
    EVENTS,
    LATER,
    SCHEMA,
    Document,
    apply,
    conditions,
    edited,
    message,
    true_types,
    with_topic,
)
from tidemill_operator.errors import Reason, TidemillError
from tidemill_operator.plan.live import Owner
from tidemill_operator.testing import MemoryWorld


def test_the_first_pass_creates_everything_in_order(document: Document, world: MemoryWorld) -> None:
    """The status names the endpoints, the topics and the versions of aggregations."""
    status = apply(document, world)
    assert true_types(status) == ALL_CONDITIONS
    assert world.take_writes() == [
        f"create {EVENTS}",
        "create shop.orders.results",
        "create shop.orders.dead-letters",
        f"schema {SCHEMA}",
        "secrets of shop/orders",
        "run orders-processor",
        "run tidemill-ingest",
        "run tidemill-api",
    ]
    assert status["observedGeneration"] == 1
    assert status["schema"] == SCHEMA
    assert status["endpoints"] == {"ingest": "http://ingest.shop", "api": "http://api.shop"}
    assert status["topics"][0] == {
        "name": EVENTS,
        "id": "id-1",
        "partitions": 3,
        "replicationFactor": 1,
        "managed": True,
    }
    assert status["aggregations"] == [{"name": "by_country", "version": 1}]


def test_a_second_pass_writes_nothing(document: Document, world: MemoryWorld) -> None:
    """The status is equal, times included, although an hour has passed."""
    first = apply(document, world)
    world.take_writes()
    assert apply(document, world, first, LATER) == first
    assert world.take_writes() == []


def test_a_pass_does_not_change_its_arguments(document: Document, world: MemoryWorld) -> None:
    before = copy.deepcopy(document)
    first = apply(document, world)
    first_copy = copy.deepcopy(first)
    apply(edited(document, suspend=True), world, first)
    assert (document, first) == (before, first_copy)


EDITS: list[tuple[Callable[[Document], Document], set[str], str]] = [
    (
        lambda document: edited(document, processor={"replicas": 2}),
        {f"schema {SCHEMA}", "run orders-processor", "run tidemill-ingest", "run tidemill-api"},
        "more processors",
    ),
    (
        lambda document: with_topic(document, partitions=5),
        {f"grow {EVENTS}", f"schema {SCHEMA}", "run orders-processor", "run tidemill-ingest", "run tidemill-api"},
        "more partitions",
    ),
    (
        lambda document: with_topic(document, partitions=3, retention="1d"),
        {
            f"set retention.ms of {EVENTS}",
            f"schema {SCHEMA}",
            "run orders-processor",
            "run tidemill-ingest",
            "run tidemill-api",
        },
        "another retention",
    ),
    (
        lambda document: edited(document, ingest={"enabled": False}),
        {f"schema {SCHEMA}", "run orders-processor", "end tidemill-ingest", "run tidemill-api"},
        "ingest disabled",
    ),
]


@pytest.mark.parametrize(("edit", "writes", "name"), EDITS, ids=[row[2] for row in EDITS])
def test_an_edit_writes_only_the_parts_that_it_changes(
    document: Document, world: MemoryWorld, edit: Callable[[Document], Document], writes: set[str], name: str
) -> None:
    """The status is of the new generation. A further pass writes nothing."""
    first = apply(document, world)
    world.take_writes()
    second = apply(edit(document), world, first, LATER)
    assert set(world.take_writes()) == writes, name
    assert second["observedGeneration"] == 2
    assert {condition["observedGeneration"] for condition in second["conditions"]} == {2}
    assert {condition["lastTransitionTime"] for condition in second["conditions"]} == {"2026-03-01T12:00:00Z"}
    assert apply(edit(document), world, second, LATER) == second
    assert world.take_writes() == []


def test_positions_are_stored_before_partitions_are_added(document: Document, world: MemoryWorld) -> None:
    """While the schema cannot be changed, Kafka's topic does not grow."""
    first = apply(document, world)
    world.postgres.busy = True
    status = apply(with_topic(document, partitions=5), world, first)
    assert world.kafka.topics[EVENTS].partitions == 3
    assert conditions(status)["SchemaReady"] == ("False", "Waiting")
    assert message(status, "Reconciling") == "SchemaReady: a lock was not free"
    assert conditions(status)["TopicsReady"] == ("True", "Applied")


def test_starting_processes_are_waited_for(document: Document, world: MemoryWorld) -> None:
    world.runtime.starting = {"orders-processor"}
    status = apply(document, world)
    assert conditions(status)["ProcessorsReady"] == ("False", "Waiting")
    assert conditions(status)["Ready"] == ("False", "Waiting")
    assert message(status, "Reconciling") == "ProcessorsReady: orders-processor starts"
    world.runtime.starting = set()
    assert true_types(apply(document, world, status)) == ALL_CONDITIONS


def test_suspend_keeps_everything_but_the_processors(document: Document, world: MemoryWorld) -> None:
    first = apply(document, world)
    status = apply(edited(document, suspend=True), world, first)
    assert true_types(status) == {*ALL_CONDITIONS, "Suspended"}
    assert conditions(status)["Ready"] == ("True", "Suspended")
    assert world.runtime.running["shop", "orders"]["orders-processor"].replicas == 0
    assert set(world.kafka.topics) >= {EVENTS}
    resumed = edited(document)
    resumed["metadata"]["generation"] = 3
    assert true_types(apply(resumed, world, status)) == ALL_CONDITIONS
    assert world.runtime.running["shop", "orders"]["orders-processor"].replicas == 1


def test_a_paused_pipeline_is_observed_and_not_written(document: Document, world: MemoryWorld) -> None:
    """The status still follows the world. The edit is applied when the annotation is removed."""
    first = apply(document, world)
    world.take_writes()
    for part in (world.kafka, world.postgres, world.secrets, world.runtime):
        part.calls.clear()
    paused = edited(document, processor={"replicas": 2})
    paused["metadata"]["annotations"] = {"tidemill.dev/paused": "true"}
    status = apply(paused, world, first, LATER)
    assert true_types(status) == {*ALL_CONDITIONS, "ReconciliationPaused"}
    assert status["observedGeneration"] == 1
    calls = {call for part in (world.kafka, world.postgres, world.secrets, world.runtime) for call in part.calls}
    assert calls == {"observe", "broker_count"}
    assert world.take_writes() == []
    world.runtime.starting = {"orders-processor"}
    down = apply(paused, world, status, LATER)
    assert conditions(down)["Ready"] == conditions(down)["ProcessorsReady"] == ("False", "Waiting")
    world.kafka.make_unreachable("kafka")
    assert conditions(apply(paused, world, down, LATER))["TopicsReady"] == ("False", "Unreachable")
    world.kafka.failure, world.runtime.starting = None, set()
    assert apply(paused, world, status, LATER) == status
    del paused["metadata"]["annotations"]
    assert true_types(apply(paused, world, status, LATER)) == ALL_CONDITIONS
    assert "run orders-processor" in world.take_writes()


def test_a_foreign_schema_is_a_conflict_until_adopted(document: Document, world: MemoryWorld) -> None:
    """No topic and no workload is created while the schema belongs to another resource."""
    apply(document, world)
    stranger = copy.deepcopy(document)
    stranger["metadata"]["uid"] = "uid-2"
    world.take_writes()
    status = apply(stranger, world)
    assert true_types(status) == {"Stalled"}
    assert conditions(status)["SchemaReady"] == ("False", "ResourceConflict")
    assert "belongs to shop/orders (uid uid-1, cluster local)" in message(status, "Stalled")
    assert world.take_writes() == []
    stranger["metadata"]["annotations"] = {"tidemill.dev/adopt": "true"}
    assert true_types(apply(stranger, world, status)) == ALL_CONDITIONS
    assert world.postgres.schemas[SCHEMA].owner == Owner("shop", "orders", "uid-2", "local")


def test_an_unmanaged_topic_must_exist(document: Document, world: MemoryWorld) -> None:
    """The condition TopicsReady names the missing topic. A topic that appears is read, and never altered."""
    unmanaged = with_topic(document, managed=False, name="shop.legacy")
    status = apply(unmanaged, world)
    assert conditions(status)["TopicsReady"] == ("False", "InvalidSpec")
    assert message(status, "Stalled").startswith("spec.source.topic.name: topic shop.legacy does not exist")
    assert conditions(status)["ProcessorsReady"][0] == "Unknown"
    world.kafka.put("shop.legacy", 4, **{"retention.ms": "5"})
    assert true_types(apply(unmanaged, world, status)) == ALL_CONDITIONS
    assert world.kafka.configs["shop.legacy"] == {"retention.ms": "5"}


def test_the_status_says_until_when_windows_are_closed(document: Document, world: MemoryWorld) -> None:
    first = apply(document, world)
    live = world.postgres.schemas[SCHEMA]
    world.postgres.schemas[SCHEMA] = replace(live, closed_until={("by_country", 1): 1_772_366_400_000})
    status = apply(document, world, first)
    assert status["aggregations"] == [{"name": "by_country", "version": 1, "closedUntil": "2026-03-01T12:00:00Z"}]


def test_a_pipeline_is_ready_although_old_windows_cannot_be_deleted_now(
    document: Document, world: MemoryWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    def busy(_schema: object) -> None:
        raise TidemillError(Reason.WAITING, "a lock was not free")

    monkeypatch.setattr(world.postgres, "expire", busy)
    assert true_types(apply(document, world)) == ALL_CONDITIONS
