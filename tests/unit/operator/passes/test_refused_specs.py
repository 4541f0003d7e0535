"""A refused spec leaves the accepted spec running, and a broken resource is refused with a status."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

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
from tidemill_operator.testing import MemoryWorld

REFUSED: list[tuple[Callable[[Document], Document], str, str, str]] = [
    (
        lambda document: with_topic(document, partitions=2),
        "NotSupported",
        "spec.source.topic.partitions: 2 is less than the 3 partitions",
        "fewer partitions",
    ),
    (
        lambda document: with_topic(document, partitions=3, replicationFactor=2),
        "InvalidSpec",
        "spec.source.topic.replicationFactor: 2 needs 2 brokers, but only 1 is available",
        "more replicas than brokers",
    ),
    (
        lambda document: edited(document, source={**document["spec"]["source"], "key": "amount"}),
        "NotSupported",
        "spec.source.key: changed from country to amount",
        "another key",
    ),
    (
        lambda document: with_topic(document, partitions=3, name="bank.events"),
        "InvalidSpec",
        "spec.source.topic.name: the topic belongs to another namespace",
        "another namespace's topic",
    ),
    (
        lambda document: edited(document, processor={"replicas": 4}),
        "InvalidSpec",
        "spec.processor.replicas: is more than the topic's 3 partitions",
        "more replicas than partitions",
    ),
    (
        lambda document: with_topic(document, partitions=3, config={"min.insync.replicas": "2"}),
        "InvalidSpec",
        "spec.source.topic.config.min.insync.replicas: 2 is more than the replication factor 1",
        "is more than the number of replicas",
    ),
    (
        lambda document: edited(document, aggregations=[]),
        "InvalidSpec",
        "spec.aggregations: is empty",
        "what is not even a pipeline",
    ),
]


@pytest.mark.parametrize(("edit", "reason", "text", "what"), REFUSED, ids=[row[3] for row in REFUSED])
def test_a_refused_edit_leaves_the_accepted_spec_running(
    document: Document, world: MemoryWorld, edit: Callable[[Document], Document], reason: str, text: str, what: str
) -> None:
    """Ready stays true, Stalled says why, nothing is written, and drift of what runs is still repaired."""
    first = apply(document, world)
    world.take_writes()
    told = apply(edit(document), world, first, LATER)
    assert true(told) == {*ALL, "Stalled"}, what
    assert conditions(told)["Stalled"] == ("True", reason)
    assert message(told, "Stalled").startswith(text)
    assert message(told, "Stalled").endswith("; the accepted spec stays in force")
    assert told["observedGeneration"] == 2
    assert world.take_writes() == []
    world.kafka.configs[EVENTS]["retention.ms"] = "1"
    assert apply(edit(document), world, told, LATER) == told
    assert world.take_writes() == [f"set retention.ms of {EVENTS}"]


@pytest.mark.parametrize(("edit", "reason", "text", "what"), REFUSED[3:], ids=[row[3] for row in REFUSED[3:]])
def test_a_first_spec_that_is_refused_makes_nothing(
    document: Document, world: MemoryWorld, edit: Callable[[Document], Document], reason: str, text: str, what: str
) -> None:
    told = apply(edit(document), world)
    assert world.take_writes() == [], what
    assert true(told) == {"Stalled"}
    assert conditions(told)["Ready"] == ("False", reason)
    assert message(told, "Ready").startswith(text)


def test_an_edit_that_takes_the_refusal_back(document: Document, world: MemoryWorld) -> None:
    """What runs is again the newest spec, and no process noticed anything."""
    first = apply(document, world)
    world.take_writes()
    refused = apply(with_topic(document, partitions=2), world, first)
    back = with_topic(document, partitions=3)
    back["metadata"]["generation"] = 3
    told = apply(back, world, refused)
    assert true(told) == ALL
    assert told["observedGeneration"] == 3
    assert world.postgres.schemas[SCHEMA].generation == 1
    assert world.take_writes() == []


def test_more_replicas_than_brokers_are_refused_until_there_are_enough(document: Document, world: MemoryWorld) -> None:
    told = apply(with_topic(document, partitions=3, replicationFactor=3), world)
    assert message(told, "Ready").startswith("spec.source.topic.replicationFactor: 3 needs 3 brokers")
    assert world.take_writes() == []
    world.kafka.nodes = 3
    assert true(apply(with_topic(document, partitions=3, replicationFactor=3), world, told)) == ALL


DOCUMENTS: list[tuple[Any, str]] = [
    ({}, "nothing at all"),
    ({"metadata": {"name": "orders"}}, "no spec"),
    ({"metadata": {"name": 5}, "spec": []}, "wrong types"),
    ({"metadata": {}, "spec": {"source": {"fields": "x"}}}, "no name"),
]


@pytest.mark.parametrize(("broken", "what"), DOCUMENTS, ids=[what for _, what in DOCUMENTS])
def test_a_broken_document_is_a_status_too(world: MemoryWorld, broken: Any, what: str) -> None:
    """No resource makes reconcile raise."""
    told = apply(broken, world)
    assert conditions(told)["Ready"] == ("False", "InvalidSpec"), what
    assert world.take_writes() == []
