"""Tests of the release of a deleted resource, against a world in memory: the reclaim policy decides about its data."""

from __future__ import annotations

import pytest

from passes.memory_pass import ALL_CONDITIONS, EVENTS, PLATFORM, SCHEMA, Document, apply, edited, true_types, with_topic
from tidemill_operator.errors import TidemillError
from tidemill_operator.outcome import Rank
from tidemill_operator.reconcile import release
from tidemill_operator.testing import MemoryWorld


def released(document: Document, world: MemoryWorld) -> list[tuple[Rank, str]]:
    outcomes = release(document, platform=PLATFORM, actuators=world.actuators)
    return [(outcome.rank, outcome.name) for outcome in outcomes]


def test_release_retains_by_default(document: Document, world: MemoryWorld) -> None:
    """Processes end. Topics, schema and passwords are kept for the next resource of the same name."""
    apply(document, world)
    world.take_writes()
    released(document, world)
    assert world.take_writes() == []
    assert world.runtime.running == {}
    assert (set(world.postgres.schemas), EVENTS in world.kafka.topics) == ({SCHEMA}, True)
    assert set(world.secrets.files) == {("shop", "orders")}
    assert true_types(apply(document, world)) == ALL_CONDITIONS


def test_release_deletes_with_the_policy_delete(document: Document, world: MemoryWorld) -> None:
    deleted = edited(document, reclaimPolicy="Delete")
    apply(deleted, world)
    released(deleted, world)
    assert (world.postgres.schemas, world.kafka.topics, world.secrets.files) == ({}, {}, {})
    assert released(deleted, world) == [(Rank.SKIPPED, SCHEMA)]


def test_release_never_deletes_an_unmanaged_topic(document: Document, world: MemoryWorld) -> None:
    world.kafka.put("shop.legacy", 4)
    deleted = edited(with_topic(document, managed=False, name="shop.legacy"), reclaimPolicy="Delete")
    apply(deleted, world)
    released(deleted, world)
    assert set(world.kafka.topics) == {"shop.legacy"}


def test_release_keeps_the_data_of_another_resource(document: Document, world: MemoryWorld) -> None:
    apply(document, world)
    stranger = edited(document, reclaimPolicy="Delete")
    stranger["metadata"]["uid"] = "uid-2"
    assert released(stranger, world) == [(Rank.SKIPPED, SCHEMA)]
    assert (set(world.postgres.schemas), EVENTS in world.kafka.topics) == ({SCHEMA}, True)


def test_release_after_a_refused_edit_deletes_the_data_of_the_accepted_spec(
    document: Document, world: MemoryWorld
) -> None:
    """The policy of the last edit applies to the topics of the accepted spec."""
    first = apply(document, world)
    broken = edited(with_topic(document, partitions=2), reclaimPolicy="Delete")
    apply(broken, world, first)
    released(broken, world)
    assert (world.postgres.schemas, world.kafka.topics) == ({}, {})


def test_release_of_a_broken_resource_follows_the_accepted_policy(document: Document, world: MemoryWorld) -> None:
    first = apply(document, world)
    broken = edited(document, aggregations=[], reclaimPolicy="Delete")
    apply(broken, world, first)
    released(broken, world)
    assert (set(world.postgres.schemas), EVENTS in world.kafka.topics) == ({SCHEMA}, True)


def test_release_deletes_topics_of_earlier_specs(document: Document, world: MemoryWorld) -> None:
    """The results topic of an earlier spec is deleted too."""
    first = apply(document, world)
    assert "shop.orders.results" in world.kafka.topics
    quiet = edited(document, results={"publish": False}, reclaimPolicy="Delete")
    apply(quiet, world, first)
    released(quiet, world)
    assert world.kafka.topics == {}


def test_release_fails_while_postgres_is_busy_and_can_be_repeated(document: Document, world: MemoryWorld) -> None:
    """Passwords are deleted only after the schema."""
    deleted = edited(document, reclaimPolicy="Delete")
    apply(deleted, world)
    world.postgres.busy = True
    with pytest.raises(TidemillError, match="a lock was not free"):
        released(deleted, world)
    assert set(world.secrets.files) == {("shop", "orders")}
    world.postgres.busy = False
    released(deleted, world)
    assert (world.postgres.schemas, world.secrets.files) == ({}, {})


@pytest.mark.parametrize("part", ["postgres", "kafka"])
def test_release_fails_while_a_server_is_unreachable_and_can_be_repeated(
    document: Document, world: MemoryWorld, part: str
) -> None:
    deleted = edited(document, reclaimPolicy="Delete")
    apply(deleted, world)
    getattr(world, part).make_unreachable(part)
    with pytest.raises(TidemillError, match=f"{part} does not answer"):
        released(deleted, world)
    getattr(world, part).failure = None
    released(deleted, world)
    assert (world.postgres.schemas, world.kafka.topics) == ({}, {})
