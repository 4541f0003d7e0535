"""A release of a pipeline deletes or keeps its data by its reclaim policy, against a world in memory."""

from __future__ import annotations

import pytest

from passes.memory_pass import ALL, EVENTS, PLATFORM, SCHEMA, Document, apply, edited, true, with_topic
from tidemill_operator.errors import TidemillError
from tidemill_operator.outcome import Rank
from tidemill_operator.reconcile import release
from tidemill_operator.testing import MemoryWorld


def let_go(document: Document, world: MemoryWorld) -> list[tuple[Rank, str]]:
    outcomes = release(document, platform=PLATFORM, actuators=world.actuators)
    return [(outcome.rank, outcome.name) for outcome in outcomes]


def test_release_retains_by_default(document: Document, world: MemoryWorld) -> None:
    """Processes end; topics, schema and passwords stay for the next resource of that name."""
    apply(document, world)
    world.take_writes()
    let_go(document, world)
    assert world.take_writes() == []
    assert world.runtime.running == {}
    assert (set(world.postgres.schemas), EVENTS in world.kafka.topics) == ({SCHEMA}, True)
    assert set(world.secrets.files) == {("shop", "orders")}
    assert true(apply(document, world)) == ALL


def test_release_deletes_if_asked_to(document: Document, world: MemoryWorld) -> None:
    deleted = edited(document, reclaimPolicy="Delete")
    apply(deleted, world)
    let_go(deleted, world)
    assert (world.postgres.schemas, world.kafka.topics, world.secrets.files) == ({}, {}, {})
    assert let_go(deleted, world) == [(Rank.SKIPPED, SCHEMA)]


def test_release_never_deletes_an_unmanaged_topic(document: Document, world: MemoryWorld) -> None:
    world.kafka.put("shop.legacy", 4)
    deleted = edited(with_topic(document, managed=False, name="shop.legacy"), reclaimPolicy="Delete")
    apply(deleted, world)
    let_go(deleted, world)
    assert set(world.kafka.topics) == {"shop.legacy"}


def test_release_leaves_what_is_somebody_elses(document: Document, world: MemoryWorld) -> None:
    apply(document, world)
    stranger = edited(document, reclaimPolicy="Delete")
    stranger["metadata"]["uid"] = "uid-2"
    assert let_go(stranger, world) == [(Rank.SKIPPED, SCHEMA)]
    assert (set(world.postgres.schemas), EVENTS in world.kafka.topics) == ({SCHEMA}, True)


def test_release_of_a_refused_edit_lets_go_of_what_ran(document: Document, world: MemoryWorld) -> None:
    """The last policy counts, and the topics are those of the spec that ran."""
    first = apply(document, world)
    broken = edited(with_topic(document, partitions=2), reclaimPolicy="Delete")
    apply(broken, world, first)
    let_go(broken, world)
    assert (world.postgres.schemas, world.kafka.topics) == ({}, {})


def test_release_of_a_broken_resource_keeps_what_the_accepted_spec_kept(document: Document, world: MemoryWorld) -> None:
    first = apply(document, world)
    broken = edited(document, aggregations=[], reclaimPolicy="Delete")
    apply(broken, world, first)
    let_go(broken, world)
    assert (set(world.postgres.schemas), EVENTS in world.kafka.topics) == ({SCHEMA}, True)


def test_release_lets_go_of_topics_that_are_not_asked_for_any_more(document: Document, world: MemoryWorld) -> None:
    """A results topic that an earlier spec had goes too."""
    first = apply(document, world)
    assert "shop.orders.results" in world.kafka.topics
    quiet = edited(document, results={"publish": False}, reclaimPolicy="Delete")
    apply(quiet, world, first)
    let_go(quiet, world)
    assert world.kafka.topics == {}


def test_release_is_tried_again_while_postgres_is_busy(document: Document, world: MemoryWorld) -> None:
    """Passwords are only forgotten once the schema is gone."""
    deleted = edited(document, reclaimPolicy="Delete")
    apply(deleted, world)
    world.postgres.busy = True
    with pytest.raises(TidemillError, match="a lock was not free"):
        let_go(deleted, world)
    assert set(world.secrets.files) == {("shop", "orders")}
    world.postgres.busy = False
    let_go(deleted, world)
    assert (world.postgres.schemas, world.secrets.files) == ({}, {})


@pytest.mark.parametrize("part", ["postgres", "kafka"])
def test_release_is_tried_again_while_a_server_is_away(document: Document, world: MemoryWorld, part: str) -> None:
    deleted = edited(document, reclaimPolicy="Delete")
    apply(deleted, world)
    getattr(world, part).unreachable(part)
    with pytest.raises(TidemillError, match=f"{part} does not answer"):
        let_go(deleted, world)
    getattr(world, part).failure = None
    let_go(deleted, world)
    assert (world.postgres.schemas, world.kafka.topics) == ({}, {})
