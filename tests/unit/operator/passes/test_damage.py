"""Tests of deleted tables, columns and rows of a pipeline's schema: reported, and created again only on request."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from tidemill_operator.plan.live import LiveSchema
from tidemill_operator.reconcile import reconcile
from tidemill_operator.settings import Platform
from tidemill_operator.testing import MemoryWorld

NOON = dt.datetime(2026, 3, 1, 12, tzinfo=dt.UTC)
SCHEMA = "shop__orders"
REMEDY = (
    "; restore the data from a backup, or set the annotation tidemill.dev/recreate-topics: 'true' to start"
    " without the data"
)


def apply(
    document: dict[str, Any], world: MemoryWorld, previous: dict[str, Any] | None = None, **more: Any
) -> dict[str, Any]:
    return reconcile(document, platform=Platform(**more), actuators=world.actuators, previous=previous, now=NOON)


def conditions(status: dict[str, Any]) -> dict[str, tuple[str, str, str]]:
    return {c["type"]: (c["status"], c["reason"], c["message"]) for c in status["conditions"]}


def without(table: str, *columns: str) -> Callable[[LiveSchema], LiveSchema]:
    def harm(live: LiveSchema) -> LiveSchema:
        remaining = {name: dict(kinds) for name, kinds in live.columns.items()}
        for column in columns:
            del remaining[table][column]
        if not columns:
            del remaining[table]
        return replace(live, columns=remaining)

    return harm


HARM: list[tuple[Callable[[LiveSchema], LiveSchema], str]] = [
    (
        without("by_country_v1"),
        "table by_country_v1 is gone, and with it the windows of aggregation by_country" + REMEDY
        + ", or count the windows again from the topic with `tidemill replay`",
    ),
    (
        without("by_country_v1", "_count", "country"),
        "table by_country_v1 has lost its columns country, _count, and with it values of aggregation by_country"
        + REMEDY
        + ", or count the windows again from the topic with `tidemill replay`",
    ),
    (
        lambda live: replace(live, emptied=frozenset({("by_country", 1)})),
        "table by_country_v1 was emptied, and the windows of aggregation by_country are gone" + REMEDY
        + ", or count the windows again from the topic with `tidemill replay`",
    ),
    (
        without("_offsets"),
        "table _offsets is gone, and with it the positions up to which events are counted"
        + REMEDY
        + "; afterwards run `tidemill replay`, because events that are still in the topic are counted twice",
    ),
    (without("_aggregations"), "table _aggregations is gone, and with it the versions of aggregations"),
    (
        lambda live: replace(live, missing_positions=(0, 2)),
        "rows of table _offsets are gone (partitions 0, 2), and with them the positions up to which events are"
        " counted" + REMEDY,
    ),
    (lambda live: replace(live, shapes={}), "rows of table _aggregations are gone, and with them the versions"),
    (without("_anomalies"), "table _anomalies is gone, and with it the anomalies" + REMEDY),
]  # fmt: skip


@pytest.mark.parametrize(("harm", "text"), HARM, ids=[text[:40] for _, text in HARM])
def test_lost_data_are_reported_and_created_again_only_on_request(
    document: dict[str, Any], world: MemoryWorld, harm: Callable[[LiveSchema], LiveSchema], text: str
) -> None:
    """The pipeline is not ready and stalled, and processors keep running.

    A paused pipeline reports the loss as well.
    """
    before = apply(document, world)
    world.postgres.schemas[SCHEMA] = harmed = harm(world.postgres.schemas[SCHEMA])
    world.take_writes()
    status = apply(document, world, before, recreate_topics=True)
    assert conditions(status)["SchemaReady"][:2] == ("False", "DataLoss")
    assert conditions(status)["SchemaReady"][2].startswith(f"schema {SCHEMA}: {text}")
    assert conditions(status)["Ready"][:2] == ("False", "DataLoss")
    assert conditions(status)["Stalled"][:2] == ("True", "DataLoss")
    assert conditions(status)["ProcessorsReady"][0] == "True"
    assert (world.take_writes(), world.postgres.schemas[SCHEMA]) == ([], harmed)
    document["metadata"]["annotations"] = {"tidemill.dev/paused": "true"}
    assert conditions(apply(document, world, before))["SchemaReady"][:2] == ("False", "DataLoss")
    document["metadata"]["annotations"] = {"tidemill.dev/recreate-topics": "true"}
    assert conditions(apply(document, world, status))["Ready"][:2] == ("True", "Applied")
    assert world.postgres.schemas[SCHEMA].columns.keys() >= {"by_country_v1", "_offsets", "_aggregations"}


def test_a_replay_creates_a_lost_table_again(document: dict[str, Any], world: MemoryWorld) -> None:
    """The replay fills the next version. The deleted table is created again, because it is filled meanwhile."""
    before = apply(document, world)
    world.postgres.schemas[SCHEMA] = without("by_country_v1")(world.postgres.schemas[SCHEMA])
    document["metadata"]["annotations"] = {"tidemill.dev/replay": json.dumps({"aggregations": ["by_country"]})}
    status = apply(document, world, before)
    assert "Stalled" not in conditions(status)
    assert status["replay"]["versions"] == {"by_country": 2}
    assert {"by_country_v1", "by_country_v2"} <= world.postgres.schemas[SCHEMA].columns.keys()


def test_a_table_that_never_existed_is_no_loss(document: dict[str, Any], world: MemoryWorld) -> None:
    """A table is not missing before the first accepted spec. Tables of newer versions are not missing either."""
    before = apply(document, world)
    schema = world.postgres.schemas[SCHEMA]
    older = without("by_country_v1", "_since")(without("_kept")(without("_held_up")(schema)))
    world.postgres.schemas[SCHEMA] = older
    assert conditions(apply(document, world, before))["Ready"][0] == "True"
    world.postgres.schemas[SCHEMA] = LiveSchema(owner=schema.owner)
    assert conditions(apply(document, world, None))["Ready"][0] == "True"


def test_deleted_slots_are_reported_until_they_are_created_again(document: dict[str, Any], world: MemoryWorld) -> None:
    topics = ["shop.a", "shop.b"]
    document["spec"]["source"] |= {"topic": {"managed": False}, "topics": topics}
    document["spec"].pop("ingest", None)
    for topic in topics:
        world.kafka.put(topic, 1)
    before = apply(document, world)
    assert conditions(before)["Ready"][0] == "True"
    live = world.postgres.schemas[SCHEMA]
    world.postgres.schemas[SCHEMA] = replace(live, slots=live.slots[:1])
    status = apply(document, world, before)
    assert "rows of table _slots are gone (slots 1)" in conditions(status)["SchemaReady"][2]
    document["metadata"]["annotations"] = {"tidemill.dev/recreate-topics": "true"}
    status = apply(document, world, status)
    del document["metadata"]["annotations"]
    assert conditions(apply(document, world, status))["Ready"][:2] == ("True", "Applied")
    # The former position keeps its number, and the partition is read with a new one.
    slots = world.postgres.schemas[SCHEMA].slots
    assert {slot.number: (slot.topic, slot.reading) for slot in slots} == {
        0: ("shop.a", True),
        1: ("", False),
        2: ("shop.b", True),
    }
