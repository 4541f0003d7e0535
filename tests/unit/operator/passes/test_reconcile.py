"""One pass over a resource, against a world in memory: what it writes, and the status that it returns."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace

import pytest

from passes.memory_pass import (
    ALL,
    EVENTS,
    LATER,
    SCHEMA,
    Document,
    apply,
    conditions,
    edited,
    message,
    true,
    with_topic,
)
from tidemill_operator.errors import Reason, TidemillError
from tidemill_operator.plan.live import Owner
from tidemill_operator.testing import MemoryWorld


def test_everything_is_made_in_order(document: Document, world: MemoryWorld) -> None:
    """Topics, schema, secrets and processes are there, and the status tells where."""
    told = apply(document, world)
    assert true(told) == ALL
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
    assert told["observedGeneration"] == 1
    assert told["schema"] == SCHEMA
    assert told["endpoints"] == {"ingest": "http://ingest.shop", "api": "http://api.shop"}
    assert told["topics"][0] == {
        "name": EVENTS,
        "id": "id-1",
        "partitions": 3,
        "replicationFactor": 1,
        "managed": True,
    }
    assert told["aggregations"] == [{"name": "by_country", "version": 1}]


def test_a_second_pass_writes_nothing(document: Document, world: MemoryWorld) -> None:
    """The status is equal too, times included, although an hour has passed."""
    first = apply(document, world)
    world.take_writes()
    assert apply(document, world, first, LATER) == first
    assert world.take_writes() == []


def test_the_input_is_left_alone(document: Document, world: MemoryWorld) -> None:
    before = copy.deepcopy(document)
    first = apply(document, world)
    kept = copy.deepcopy(first)
    apply(edited(document, suspend=True), world, first)
    assert (document, first) == (before, kept)


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
        "no ingest",
    ),
]


@pytest.mark.parametrize(("edit", "writes", "what"), EDITS, ids=[row[2] for row in EDITS])
def test_an_edit_writes_what_it_is_about(
    document: Document, world: MemoryWorld, edit: Callable[[Document], Document], writes: set[str], what: str
) -> None:
    """Nothing else is touched, the status is about the new generation, and a further pass has nothing to do."""
    first = apply(document, world)
    world.take_writes()
    second = apply(edit(document), world, first, LATER)
    assert set(world.take_writes()) == writes, what
    assert second["observedGeneration"] == 2
    assert {condition["observedGeneration"] for condition in second["conditions"]} == {2}
    assert {condition["lastTransitionTime"] for condition in second["conditions"]} == {"2026-03-01T12:00:00Z"}
    assert apply(edit(document), world, second, LATER) == second
    assert world.take_writes() == []


def test_positions_come_before_partitions(document: Document, world: MemoryWorld) -> None:
    """If the schema cannot be changed now, Kafka's topic does not grow either."""
    first = apply(document, world)
    world.postgres.busy = True
    told = apply(with_topic(document, partitions=5), world, first)
    assert world.kafka.topics[EVENTS].partitions == 3
    assert conditions(told)["SchemaReady"] == ("False", "Waiting")
    assert message(told, "Reconciling") == "SchemaReady: a lock was not free"
    assert conditions(told)["TopicsReady"] == ("True", "Applied")


def test_starting_processes_are_waited_for(document: Document, world: MemoryWorld) -> None:
    world.runtime.starting = {"orders-processor"}
    told = apply(document, world)
    assert conditions(told)["ProcessorsReady"] == ("False", "Waiting")
    assert conditions(told)["Ready"] == ("False", "Waiting")
    assert message(told, "Reconciling") == "ProcessorsReady: orders-processor starts"
    world.runtime.starting = set()
    assert true(apply(document, world, told)) == ALL


def test_suspend_keeps_everything_but_the_processors(document: Document, world: MemoryWorld) -> None:
    first = apply(document, world)
    told = apply(edited(document, suspend=True), world, first)
    assert true(told) == {*ALL, "Suspended"}
    assert conditions(told)["Ready"] == ("True", "Suspended")
    assert world.runtime.running["shop", "orders"]["orders-processor"].replicas == 0
    assert set(world.kafka.topics) >= {EVENTS}
    resumed = edited(document)
    resumed["metadata"]["generation"] = 3
    assert true(apply(resumed, world, told)) == ALL
    assert world.runtime.running["shop", "orders"]["orders-processor"].replicas == 1


def test_paused_means_hands_off(document: Document, world: MemoryWorld) -> None:
    """Nothing is written, and what is seen is told all the same; the edit is applied when the annotation goes."""
    first = apply(document, world)
    world.take_writes()
    for part in (world.kafka, world.postgres, world.secrets, world.runtime):
        part.calls.clear()
    paused = edited(document, processor={"replicas": 2})
    paused["metadata"]["annotations"] = {"tidemill.dev/paused": "true"}
    told = apply(paused, world, first, LATER)
    assert true(told) == {*ALL, "ReconciliationPaused"}
    assert told["observedGeneration"] == 1
    calls = {call for part in (world.kafka, world.postgres, world.secrets, world.runtime) for call in part.calls}
    assert calls == {"observe", "brokers"}
    assert world.take_writes() == []
    world.runtime.starting = {"orders-processor"}
    down = apply(paused, world, told, LATER)
    assert conditions(down)["Ready"] == conditions(down)["ProcessorsReady"] == ("False", "Waiting")
    world.kafka.unreachable("kafka")
    assert conditions(apply(paused, world, down, LATER))["TopicsReady"] == ("False", "Unreachable")
    world.kafka.failure, world.runtime.starting = None, set()
    assert apply(paused, world, told, LATER) == told
    del paused["metadata"]["annotations"]
    assert true(apply(paused, world, told, LATER)) == ALL
    assert "run orders-processor" in world.take_writes()


def test_a_foreign_schema_is_a_conflict_until_adopted(document: Document, world: MemoryWorld) -> None:
    """Nothing is made beside somebody else's schema."""
    apply(document, world)
    stranger = copy.deepcopy(document)
    stranger["metadata"]["uid"] = "uid-2"
    world.take_writes()
    told = apply(stranger, world)
    assert true(told) == {"Stalled"}
    assert conditions(told)["SchemaReady"] == ("False", "ResourceConflict")
    assert "belongs to shop/orders (uid uid-1, cluster local)" in message(told, "Stalled")
    assert world.take_writes() == []
    stranger["metadata"]["annotations"] = {"tidemill.dev/adopt": "true"}
    assert true(apply(stranger, world, told)) == ALL
    assert world.postgres.schemas[SCHEMA].owner == Owner("shop", "orders", "uid-2", "local")


def test_an_unmanaged_topic_has_to_be_there(document: Document, world: MemoryWorld) -> None:
    """Told as the topic's fault; it is taken up when somebody makes it, and is never altered."""
    unmanaged = with_topic(document, managed=False, name="shop.legacy")
    told = apply(unmanaged, world)
    assert conditions(told)["TopicsReady"] == ("False", "InvalidSpec")
    assert message(told, "Stalled").startswith("spec.source.topic.name: topic shop.legacy does not exist")
    assert conditions(told)["ProcessorsReady"][0] == "Unknown"
    world.kafka.put("shop.legacy", 4, **{"retention.ms": "5"})
    assert true(apply(unmanaged, world, told)) == ALL
    assert world.kafka.configs["shop.legacy"] == {"retention.ms": "5"}


def test_closed_windows_are_told(document: Document, world: MemoryWorld) -> None:
    first = apply(document, world)
    live = world.postgres.schemas[SCHEMA]
    world.postgres.schemas[SCHEMA] = replace(live, closed_until={("by_country", 1): 1_772_366_400_000})
    told = apply(document, world, first)
    assert told["aggregations"] == [{"name": "by_country", "version": 1, "closedUntil": "2026-03-01T12:00:00Z"}]


def test_old_windows_that_cannot_go_now_are_no_reason_to_be_unready(
    document: Document, world: MemoryWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    def busy(_schema: object) -> None:
        raise TidemillError(Reason.WAITING, "a lock was not free")

    monkeypatch.setattr(world.postgres, "expire", busy)
    assert true(apply(document, world)) == ALL
