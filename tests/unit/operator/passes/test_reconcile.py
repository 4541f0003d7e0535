"""One pass over a resource, against a world in memory: what is done, what is told, what is left alone."""

from __future__ import annotations

import copy
import datetime as dt
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from tidemill_operator.errors import Reason, TidemillError
from tidemill_operator.outcome import Rank
from tidemill_operator.plan.live import Owner
from tidemill_operator.reconcile import reconcile, release
from tidemill_operator.settings import Platform
from tidemill_operator.testing import MemoryWorld

Document = dict[str, Any]
Status = dict[str, Any]
NOON = dt.datetime(2026, 3, 1, 12, tzinfo=dt.UTC)
LATER = NOON + dt.timedelta(hours=1)
PLATFORM = Platform()
EVENTS, SCHEMA = "shop.orders.events", "shop__orders"


def apply(document: Document, world: MemoryWorld, previous: Status | None = None, now: dt.datetime = NOON) -> Status:
    return reconcile(document, platform=PLATFORM, actuators=world.actuators, previous=previous, now=now)


def edited(document: Document, **spec: Any) -> Document:
    """The next generation, with these members of the spec."""
    found = copy.deepcopy(document)
    found["spec"] |= spec
    found["metadata"]["generation"] += 1
    return found


def with_topic(document: Document, **topic: Any) -> Document:
    return edited(document, source={**document["spec"]["source"], "topic": topic})


def conditions(told: Status) -> dict[str, tuple[str, str]]:
    return {condition["type"]: (condition["status"], condition["reason"]) for condition in told["conditions"]}


def message(told: Status, kind: str) -> str:
    return next(str(condition["message"]) for condition in told["conditions"] if condition["type"] == kind)


def true(told: Status) -> set[str]:
    return {kind for kind, (state, _) in conditions(told).items() if state == "True"}


ALL = {"Ready", "TopicsReady", "SchemaReady", "ProcessorsReady", "IngestReady", "APIReady"}


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
