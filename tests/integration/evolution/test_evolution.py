"""Aggregations of a pipeline that runs get another shape, or are filled from the topic, while events arrive.

What stands in a table is compared with what a plain count over all events sent says.
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
def test_another_window_under_load(evolving: Any, load: Any) -> None:
    """Every event is in exactly one of the two versions, and the API answers from the new one."""
    load.start()
    evolving.local.eventually(lambda: evolving.stored("by_shop_v1"), what="windows of version 1")
    evolving.edit(lambda spec: spec["aggregations"][0]["window"].update(size="20m"))
    evolving.local.settle()
    assert evolving.versions() == {"by_shop": 2}
    evolving.local.eventually(lambda: evolving.stored("by_shop_v2"), what="windows of version 2")
    load.finish()
    evolving.await_events(load)
    first, second = evolving.stored("by_shop_v1"), evolving.stored("by_shop_v2")
    both: Counter[str] = Counter()
    for (shop, _), (number, _) in [*first.items(), *second.items()]:
        both[shop] += number
    assert both == Counter(event["shop"] for event in load.events)
    assert evolving.answers(20) == sum(number for number, _ in second.values())


@pytest.mark.matrix
def test_a_replay_under_load(evolving: Any, load: Any, counted: Callable[..., Any]) -> None:
    """The version that a replay has filled has every event once, those that came while it ran as well."""
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
    # Asked once, done once.
    evolving.local.reconcile()
    assert evolving.versions() == {"by_shop": 3}


def test_a_replay_whose_processes_are_killed(evolving: Any, load: Any, counted: Callable[..., Any]) -> None:
    """Replay and live processors die at random moments, several times: no event is lost or counted twice."""
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


def test_a_replay_with_another_filter(evolving: Any, load: Any, counted: Callable[..., Any]) -> None:
    """A filter applies from its edit on; a replay applies it to all that the topic holds."""
    load.send(20_000)
    load.finish()
    evolving.await_events(load)
    evolving.edit(lambda spec: spec.update(transform={"filter": "amount >= 50"}))
    evolving.local.settle()
    assert evolving.versions() == {"by_shop": 1}
    evolving.ask()
    evolving.until_switched(2)
    assert evolving.stored("by_shop_v2") == counted([e for e in load.events if e["amount"] >= 50], 10)


def test_a_replay_that_is_given_up(evolving: Any, load: Any, counted: Callable[..., Any]) -> None:
    """Taken back, its version goes; an edit meanwhile begins it anew."""
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


@pytest.mark.parametrize("asked", [True, False], ids=["by the spec", "behind our back"])
def test_a_partition_that_comes_later_is_read_from_its_beginning(
    asked: bool, make_local: Callable[..., Any], orders: Callable[[], Any], make_load: Callable[..., Any],
    make_evolving: Callable[..., Any], servers: Any, counted: Callable[..., Any],
) -> None:  # fmt: skip
    """`startFrom: latest` is about what was there before the pipeline; no processor runs when the events come."""
    document = orders()
    document["spec"]["source"]["topic"]["startFrom"] = "latest"
    evolving = make_evolving(make_local(document))
    evolving.local.settle()
    begun = "SELECT count(next_offset) FROM {s}._offsets"
    evolving.local.eventually(lambda: evolving.local.query(begun) == [(3,)], what="all partitions are begun")
    evolving.edit(lambda spec: spec.update(suspend=True))
    evolving.local.settle()
    topic = "evolve.orders.events"
    if asked:
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
