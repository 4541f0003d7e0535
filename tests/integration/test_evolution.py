"""Aggregations of a pipeline that runs get another shape, or are filled from the topic, while events arrive.

What stands in a table is compared with what a plain count over all events sent says.
"""

from __future__ import annotations

import copy
import json
import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from confluent_kafka import Producer

from tidemill_operator.plan.replay import REPLAY, REPLAYING

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.exhaustive]

MINUTE = 60_000
BASE = 1_700_000_000_000 // (60 * MINUTE) * 60 * MINUTE
PARTITIONS = 3
DOCUMENT: dict[str, Any] = {
    "apiVersion": "tidemill.dev/v1alpha1",
    "kind": "AnalyticsPipeline",
    "metadata": {"name": "orders", "namespace": "evolve", "uid": "uid-1", "generation": 1},
    "spec": {
        "source": {
            "topic": {"partitions": PARTITIONS},
            "fields": [
                {"name": "ts", "type": "timestamp", "required": True},
                {"name": "shop", "type": "string"},
                {"name": "amount", "type": "integer"},
            ],
            # Whatever comes is in time: all the load spans an hour.
            "eventTime": {"field": "ts", "maxDisorder": "2h"},
        },
        "aggregations": [
            {
                "name": "by_shop",
                "groupBy": ["shop"],
                "window": {"type": "tumbling", "size": "10m"},
                "metrics": [
                    {"name": "orders", "function": "count"},
                    {"name": "sales", "function": "sum", "field": "amount"},
                ],
            }
        ],
        "processor": {"flushInterval": "200ms"},
        "api": {"cacheTtl": "0s"},
        "auth": {"required": False},
    },
}
Expected = dict[tuple[str, int], tuple[int, int]]


class Load(threading.Thread):
    """Events into all partitions until told to stop; all that were acknowledged are remembered.

    Args:
        kafka: brokers.
        rate: events a second.
    """

    def __init__(self, kafka: str, topic: str, rate: int = 2_000) -> None:
        super().__init__(daemon=True)
        self._producer = Producer({"bootstrap.servers": kafka, "enable.idempotence": True, "linger.ms": 5})
        self._topic, self._rate, self._random = topic, rate, random.Random(7)
        self._stopping = threading.Event()
        self.events: list[dict[str, Any]] = []

    def send(self, number: int) -> None:
        """So many events at once."""
        for _ in range(number):
            event = {
                "ts": BASE + self._random.randrange(60 * MINUTE),
                "shop": self._random.choice("abcdefgh"),
                "amount": self._random.randrange(-5, 100),
            }
            while len(self._producer) > 50_000:
                self._producer.poll(0.05)
            self._producer.produce(
                self._topic, json.dumps(event).encode(), partition=self._random.randrange(PARTITIONS)
            )
            self._producer.poll(0)
            self.events.append(event)

    def run(self) -> None:
        while not self._stopping.wait(0.05):
            self.send(self._rate // 20)

    def finish(self) -> None:
        """Stop, and wait until all is acknowledged."""
        self._stopping.set()
        if self.ident is not None:
            self.join(10)
        assert self._producer.flush(30) == 0


def counted(
    events: list[dict[str, Any]], minutes: int, group: Callable[[dict[str, Any]], str] = lambda e: str(e["shop"])
) -> Expected:
    """Events and their sum by group and window start."""
    number: Counter[tuple[str, int]] = Counter()
    total: Counter[tuple[str, int]] = Counter()
    for event in events:
        key = group(event), event["ts"] // (minutes * MINUTE) * minutes * MINUTE
        number[key] += 1
        total[key] += event["amount"]
    return {key: (number[key], total[key]) for key in number}


class Evolving:
    """A pipeline under the local runtime that is edited and replayed."""

    def __init__(self, local: Any) -> None:
        self.local = local

    def edit(self, change: Callable[[dict[str, Any]], Any]) -> None:
        document = copy.deepcopy(self.local.document)
        change(document["spec"])
        document["metadata"]["generation"] += 1
        self.local.document = document

    def ask(self, **request: Any) -> None:
        document = copy.deepcopy(self.local.document)
        document["metadata"]["annotations"] = {REPLAY: json.dumps(request)}
        self.local.document = document

    def replay(self) -> dict[str, Any]:
        """How far the replay is, after another pass."""
        self.local.reconcile()
        return dict(self.local.status["replay"])

    def replaying(self) -> bool:
        """Whether it is not done, after another pass."""
        return bool(self.replay()["phase"] == REPLAYING)

    def versions(self) -> dict[str, int]:
        return {item["name"]: item["version"] for item in self.local.status["aggregations"]}

    def until_switched(self, version: int, *, seconds: float = 90.0) -> None:
        def switched() -> bool:
            self.local.reconcile()
            return self.versions() == {"by_shop": version}

        self.local.eventually(switched, seconds=seconds, what=f"version {version} is in force")
        self.local.settle()

    def stored(self, table: str, *, group: str = "shop") -> Expected:
        """What a table holds."""
        start = "(extract(epoch FROM window_start) * 1000)::bigint"
        rows = self.local.query(f"SELECT coalesce({group}, ''), {start}, _count, _sum_amount FROM {{s}}.{table}")
        return {(key, at): (number, int(total)) for key, at, number, total in rows}

    def await_events(self, load: Load) -> None:
        def all_counted() -> bool:
            query = "SELECT coalesce(sum(consumed), 0) FROM {s}._offsets WHERE reader = 'live'"
            return int(self.local.query(query)[0][0]) >= len(load.events)

        self.local.eventually(all_counted, seconds=90, what=f"{len(load.events)} events are counted")

    def answers(self, minutes: int) -> int:
        """Events that the API's windows of this size add up to."""
        answer = httpx.get(
            f"{self.local.url('api')}/aggregates/by_shop", params={"limit": 1000}, timeout=30, trust_env=False
        )
        assert answer.status_code == 200, answer.text
        rows = answer.json()["data"]
        assert {row["window_start"][14:16] for row in rows} <= {f"{m:02}" for m in range(0, 60, minutes)}
        return sum(row["orders"] for row in rows)


@pytest.fixture
def evolving(make_local: Callable[..., Any]) -> Evolving:
    """A pipeline that is ready."""
    found = Evolving(make_local(DOCUMENT))
    found.local.settle()
    return found


@pytest.fixture
def load(evolving: Evolving, servers: Any) -> Any:
    """Events; the test starts and finishes the stream."""
    made = Load(servers.kafka, "evolve.orders.events")
    yield made
    made.finish()


def test_another_window_under_load(evolving: Evolving, load: Load) -> None:
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


def test_a_replay_under_load(evolving: Evolving, load: Load) -> None:
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


def test_a_replay_whose_processes_are_killed(evolving: Evolving, load: Load) -> None:
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


def test_a_replay_with_another_filter(evolving: Evolving, load: Load) -> None:
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


def test_a_replay_that_is_given_up(evolving: Evolving, load: Load) -> None:
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
    document = copy.deepcopy(evolving.local.document)
    del document["metadata"]["annotations"]
    evolving.local.document = document
    evolving.local.settle()
    assert evolving.versions() == {"by_shop": 1}
    assert evolving.local.query("SELECT reader FROM {s}._readers") == [("live",)]
    assert evolving.local.query("SELECT version FROM {s}._aggregations") == [(1,)]
    assert "replay-0" not in evolving.local.pids()
    evolving.ask(**{"from": "earliest"})
    evolving.until_switched(2)
    assert evolving.stored("by_shop_v2") == counted(load.events, 10)
