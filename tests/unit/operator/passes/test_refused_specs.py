"""Tests of passes with a refused spec, against a world in memory: the accepted spec stays in force."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

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
        "more replicas in sync than there are",
    ),
    (
        lambda document: edited(document, aggregations=[]),
        "InvalidSpec",
        "spec.aggregations: is empty",
        "no aggregations",
    ),
]


@pytest.mark.parametrize(("edit", "reason", "text", "name"), REFUSED, ids=[row[3] for row in REFUSED])
def test_a_refused_edit_leaves_the_accepted_spec_running(
    document: Document, world: MemoryWorld, edit: Callable[[Document], Document], reason: str, text: str, name: str
) -> None:
    """Ready is still true, and Stalled has the reason. Drift of the running pipeline is still repaired."""
    first = apply(document, world)
    world.take_writes()
    status = apply(edit(document), world, first, LATER)
    assert true_types(status) == {*ALL_CONDITIONS, "Stalled"}, name
    assert conditions(status)["Stalled"] == ("True", reason)
    assert message(status, "Stalled").startswith(text)
    assert message(status, "Stalled").endswith("; the accepted spec stays in force")
    assert status["observedGeneration"] == 2
    assert world.take_writes() == []
    world.kafka.configs[EVENTS]["retention.ms"] = "1"
    assert apply(edit(document), world, status, LATER) == status
    assert world.take_writes() == [f"set retention.ms of {EVENTS}"]


@pytest.mark.parametrize(("edit", "reason", "text", "name"), REFUSED[3:], ids=[row[3] for row in REFUSED[3:]])
def test_a_first_spec_that_is_refused_creates_nothing(
    document: Document, world: MemoryWorld, edit: Callable[[Document], Document], reason: str, text: str, name: str
) -> None:
    status = apply(edit(document), world)
    assert world.take_writes() == [], name
    assert true_types(status) == {"Stalled"}
    assert conditions(status)["Ready"] == ("False", reason)
    assert message(status, "Ready").startswith(text)


def test_an_edit_back_to_the_accepted_spec_ends_the_refusal(document: Document, world: MemoryWorld) -> None:
    """The newest spec equals the accepted one, and no process restarts."""
    first = apply(document, world)
    world.take_writes()
    refused = apply(with_topic(document, partitions=2), world, first)
    back = with_topic(document, partitions=3)
    back["metadata"]["generation"] = 3
    status = apply(back, world, refused)
    assert true_types(status) == ALL_CONDITIONS
    assert status["observedGeneration"] == 3
    assert world.postgres.schemas[SCHEMA].generation == 1
    assert world.take_writes() == []


def test_more_replicas_than_brokers_are_refused_until_there_are_enough(document: Document, world: MemoryWorld) -> None:
    status = apply(with_topic(document, partitions=3, replicationFactor=3), world)
    assert message(status, "Ready").startswith("spec.source.topic.replicationFactor: 3 needs 3 brokers")
    assert world.take_writes() == []
    world.kafka.nodes = 3
    assert true_types(apply(with_topic(document, partitions=3, replicationFactor=3), world, status)) == ALL_CONDITIONS


DOCUMENTS: list[tuple[Any, str]] = [
    ({}, "nothing at all"),
    ({"metadata": {"name": "orders"}}, "no spec"),
    ({"metadata": {"name": 5}, "spec": []}, "wrong types"),
    ({"metadata": {}, "spec": {"source": {"fields": "x"}}}, "no name"),
]


@pytest.mark.parametrize(("broken", "name"), DOCUMENTS, ids=[name for _, name in DOCUMENTS])
def test_a_broken_document_gets_a_status(world: MemoryWorld, broken: Any, name: str) -> None:
    """A pass raises no error for a broken resource."""
    status = apply(broken, world)
    assert conditions(status)["Ready"] == ("False", "InvalidSpec"), name
    assert world.take_writes() == []
