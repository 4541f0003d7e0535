"""Tests of edits and replays of a running pipeline while events arrive, on real servers.

Each test compares tables with a plain count over all events that it has sent.
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from kafka_admin import KafkaAdmin

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.exhaustive]


@pytest.mark.matrix
def test_events_during_a_change_of_the_window_count_in_one_version(evolving: Any, load: Any) -> None:
    """Each event is in exactly one of the two versions. The API answers from the new version."""
    load.start()
    evolving.local.eventually(lambda: evolving.stored("by_shop_v1"), what="version 1 has windows")
    evolving.edit(lambda spec: spec["aggregations"][0]["window"].update(size="20m"))
    evolving.local.settle()
    assert evolving.versions() == {"by_shop": 2}
    evolving.local.eventually(lambda: evolving.stored("by_shop_v2"), what="version 2 has windows")
    load.finish()
    evolving.await_events(load)
    first, second = evolving.stored("by_shop_v1"), evolving.stored("by_shop_v2")
    both: Counter[str] = Counter()
    for (shop, _), (number, _) in [*first.items(), *second.items()]:
        both[shop] += number
    assert both == Counter(event["shop"] for event in load.events)
    assert evolving.answers(20) == sum(number for number, _ in second.values())


@pytest.mark.matrix
def test_a_replay_under_load_counts_every_event_once(evolving: Any, load: Any, counted: Callable[..., Any]) -> None:
    """The new version also has the events that arrived during the replay."""
    load.send(100_000)
    load.start()
    evolving.edit(lambda spec: spec["aggregations"][0].update(groupBy=[]))
    evolving.local.settle()
    evolving.ask(aggregations=["by_shop"])
    before = evolving.local.pids()
    assert evolving.replay()["versions"] == {"by_shop": 3}
    assert {name: pid for name, pid in evolving.local.pids().items() if name in before} == before
    evolving.until_switched(3)
    load.finish()
    evolving.await_events(load)
    whole = counted(load.events, 10, lambda _: "")
    assert evolving.stored("by_shop_v3", group="NULL::text") == whole
    assert evolving.answers(10) == len(load.events)
    assert "replay-0" not in evolving.local.pids()
    # One request causes one replay.
    evolving.local.reconcile()
    assert evolving.versions() == {"by_shop": 3}


def test_a_replay_with_killed_processes_counts_every_event_once(
    evolving: Any, load: Any, counted: Callable[..., Any]
) -> None:
    """Processes of the replay and live processors are killed several times, at random moments."""
    load.send(150_000)
    load.start()
    chance = random.Random(11)
    evolving.edit(lambda spec: spec["processor"].update(replicas=2))
    evolving.local.settle()
    evolving.ask(rate=60_000)
    evolving.replay()
    deadline = time.monotonic() + 120
    killed: Counter[str] = Counter()
    while evolving.replaying() and time.monotonic() < deadline:
        victims = {name: pid for name, pid in evolving.local.pids().items() if pid and not name.startswith("tidemill")}
        names = [name for name in victims if name.startswith(("replay", "processor"))]
        if names and killed.total() < 8:
            name = chance.choice(names)
            os.kill(victims[name], signal.SIGKILL)
            killed[name.partition("-")[0]] += 1
        time.sleep(chance.uniform(0.3, 2.0))
    evolving.until_switched(2)
    load.finish()
    evolving.await_events(load)
    assert set(killed) == {"replay", "processor"}, killed
    assert evolving.stored("by_shop_v2") == counted(load.events, 10)
    assert evolving.stored("by_shop_v1").keys() == counted(load.events, 10).keys()


def test_a_replay_applies_a_new_filter_to_all_events_of_the_topic(
    evolving: Any, load: Any, counted: Callable[..., Any]
) -> None:
    """Without a replay, a filter applies only to events after its edit."""
    load.send(20_000)
    load.finish()
    evolving.await_events(load)
    evolving.edit(lambda spec: spec.update(transform={"filter": "amount >= 50"}))
    evolving.local.settle()
    assert evolving.versions() == {"by_shop": 1}
    evolving.ask()
    evolving.until_switched(2)
    assert evolving.stored("by_shop_v2") == counted([e for e in load.events if e["amount"] >= 50], 10)


def test_a_cancelled_replay_leaves_no_version_and_an_edit_restarts_a_replay(
    evolving: Any, load: Any, counted: Callable[..., Any]
) -> None:
    load.send(30_000)
    load.finish()
    evolving.await_events(load)
    evolving.ask(rate=1_000)
    first = evolving.replay()
    evolving.local.eventually(lambda: evolving.replay()["processed"] > 0, seconds=60, what="the replay has begun")
    evolving.edit(
        lambda spec: spec["aggregations"][0]["metrics"].append({"name": "top", "function": "max", "field": "amount"})
    )
    second = evolving.replay()
    assert (first["reader"] != second["reader"], second["versions"]) == (True, {"by_shop": 3})
    evolving.annotate()
    evolving.local.settle()
    assert evolving.versions() == {"by_shop": 1}
    assert evolving.local.query("SELECT reader FROM {s}._readers") == [("live",)]
    assert evolving.local.query("SELECT version FROM {s}._aggregations") == [(1,)]
    assert "replay-0" not in evolving.local.pids()
    evolving.ask(**{"from": "earliest"})
    evolving.until_switched(2)
    assert evolving.stored("by_shop_v2") == counted(load.events, 10)


@pytest.mark.parametrize("by_spec", [True, False], ids=["by the spec", "in Kafka"])
def test_a_partition_that_is_added_later_is_read_from_its_beginning(
    by_spec: bool, make_local: Callable[..., Any], orders: Callable[[], Any], make_load: Callable[..., Any],
    make_evolving: Callable[..., Any], servers: Any, counted: Callable[..., Any],
) -> None:  # fmt: skip
    """`startFrom: latest` skips only events before the pipeline. No processor runs when the events arrive."""
    document = orders()
    document["spec"]["source"]["topic"]["startFrom"] = "latest"
    evolving = make_evolving(make_local(document))
    evolving.local.settle()
    begun = "SELECT count(next_offset) FROM {s}._offsets"
    evolving.local.eventually(lambda: evolving.local.query(begun) == [(3,)], what="all partitions have a position")
    evolving.edit(lambda spec: spec.update(suspend=True))
    evolving.local.settle()
    topic = "evolve.orders.events"
    if by_spec:
        evolving.edit(lambda spec: spec["source"]["topic"].update(partitions=5))
        evolving.local.settle()
    else:
        KafkaAdmin(servers.kafka).grow(topic, 5)
    load = make_load(servers.kafka, topic)
    load.spread_over(5)
    load.send(1_000)
    load.finish()
    evolving.edit(lambda spec: spec.update(suspend=False))
    evolving.local.settle()
    evolving.await_events(load)
    assert evolving.stored("by_shop_v1") == counted(load.events, 10)
