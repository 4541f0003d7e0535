"""A running pipeline that tests edit and replay, its events, and the expected counts of these events."""

from __future__ import annotations

import copy
import json
import random
import threading
from collections import Counter
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from confluent_kafka import KafkaError, Message, Producer

from tidemill_operator.plan.replay import REPLAY, REPLAYING
from waiting import eventually

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
            # No event is late: the timestamps of all events span an hour.
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
    """Sends random events to all partitions until `finish`.

    Args:
        kafka: the brokers.
        topic: where events are sent.
        rate: events per second.

    Attributes:
        events: all events that were sent.
    """

    def __init__(self, kafka: str, topic: str, rate: int = 2_000) -> None:
        super().__init__(daemon=True)
        self._producer = Producer({"bootstrap.servers": kafka, "enable.idempotence": True, "linger.ms": 5})
        self._topic, self._random = topic, random.Random(7)
        self.rate = rate
        self._partitions = PARTITIONS
        self._stopping = threading.Event()
        self.events: list[dict[str, Any]] = []
        self._refused: list[str] = []

    def send(self, number: int) -> None:
        """Send `number` events at once."""
        for _ in range(number):
            event = {
                "ts": BASE + self._random.randrange(60 * MINUTE),
                "shop": self._random.choice("abcdefgh"),
                "amount": self._random.randrange(-5, 100),
            }
            while len(self._producer) > 50_000:
                self._producer.poll(0.05)
            partition = self._random.randrange(self._partitions)
            self._producer.produce(
                self._topic, json.dumps(event).encode(), partition=partition, on_delivery=self._delivered
            )
            self._producer.poll(0)
            self.events.append(event)

    def _delivered(self, error: KafkaError | None, record: Message) -> None:
        if error is not None:
            self._refused.append(f"partition {record.partition()}: {error}")

    def spread_over(self, partitions: int) -> None:
        """Wait until the topic has this many partitions, and send to all of them from now on."""

        def grown() -> bool:
            metadata = self._producer.list_topics(self._topic, timeout=10)
            return len(metadata.topics[self._topic].partitions) >= partitions

        eventually(grown, what=f"{self._topic} has {partitions} partitions", seconds=30)
        self._partitions = partitions

    def run(self) -> None:
        while not self._stopping.wait(0.05):
            self.send(self.rate // 20)

    def finish(self) -> None:
        """Stop, and wait until all events are acknowledged."""
        self._stopping.set()
        if self.ident is not None:
            self.join(10)
        self.flush()

    def flush(self) -> None:
        """Wait until all events are acknowledged."""
        assert self._producer.flush(30) == 0
        assert self._refused == []


def counted(
    events: list[dict[str, Any]], minutes: int, group: Callable[[dict[str, Any]], str] = lambda e: str(e["shop"])
) -> Expected:
    """Return number and sum of amounts of events by group and start of a window of `minutes`."""
    number: Counter[tuple[str, int]] = Counter()
    total: Counter[tuple[str, int]] = Counter()
    for event in events:
        key = group(event), event["ts"] // (minutes * MINUTE) * minutes * MINUTE
        number[key] += 1
        total[key] += event["amount"]
    return {key: (number[key], total[key]) for key in number}


class Evolving:
    """A pipeline under the local runtime, with functions to edit and replay it."""

    def __init__(self, local: Any) -> None:
        self.local = local

    def edit(self, change: Callable[[dict[str, Any]], Any]) -> None:
        document = copy.deepcopy(self.local.document)
        change(document["spec"])
        document["metadata"]["generation"] += 1
        self.local.document = document

    def ask(self, **request: Any) -> None:
        self.annotate(**{REPLAY: json.dumps(request)})

    def annotate(self, **annotations: str) -> None:
        """Replace all annotations by these."""
        document = copy.deepcopy(self.local.document)
        document["metadata"]["annotations"] = annotations
        self.local.document = document

    def replay(self) -> dict[str, Any]:
        """Run a pass and return the status of the replay."""
        self.local.reconcile()
        return dict(self.local.status["replay"])

    def replaying(self) -> bool:
        """Run a pass and return whether the replay is still under way."""
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
        """Return number and sum of amounts of a table by group and window start."""
        start = "(extract(epoch FROM window_start) * 1000)::bigint"
        rows = self.local.query(f"SELECT coalesce({group}, ''), {start}, _count, _sum_amount FROM {{s}}.{table}")
        return {(key, at): (number, int(total)) for key, at, number, total in rows}

    def await_events(self, load: Load) -> None:
        def all_counted() -> bool:
            query = "SELECT coalesce(sum(consumed), 0) FROM {s}._offsets WHERE reader = 'live'"
            return int(self.local.query(query)[0][0]) >= len(load.events)

        self.local.eventually(all_counted, seconds=90, what=f"{len(load.events)} events are counted")

    def answers(self, minutes: int) -> int:
        """Return the number of events in all windows of the API, which must have this size."""
        answer = httpx.get(
            f"{self.local.url('api')}/aggregates/by_shop", params={"limit": 1000}, timeout=30, trust_env=False
        )
        assert answer.status_code == 200, answer.text
        rows = answer.json()["data"]
        assert {row["window_start"][14:16] for row in rows} <= {f"{m:02}" for m in range(0, 60, minutes)}
        return sum(row["orders"] for row in rows)


@pytest.fixture
def evolving(make_local: Callable[..., Any]) -> Evolving:
    """Create the pipeline and wait until it is ready."""
    pipeline = Evolving(make_local(DOCUMENT))
    pipeline.local.settle()
    return pipeline


@pytest.fixture
def load(evolving: Evolving, servers: Any) -> Any:
    """Return the source of events, which the test starts and finishes."""
    events = Load(servers.kafka, "evolve.orders.events")
    yield events
    events.finish()


@pytest.fixture(name="counted", scope="session")
def _counted() -> Callable[..., Expected]:
    """Return the function that computes the expected windows."""
    return counted


@pytest.fixture(name="make_load", scope="session")
def _make_load() -> Callable[..., Load]:
    """Return the class of sources of events: `make_load(kafka, topic, rate)`."""
    return Load


@pytest.fixture(name="orders", scope="session")
def _orders() -> Callable[[], dict[str, Any]]:
    """Return a function that copies the pipeline's document."""
    return lambda: copy.deepcopy(DOCUMENT)


@pytest.fixture(name="make_evolving", scope="session")
def _make_evolving() -> Callable[..., Evolving]:
    """Return the class that edits and replays a pipeline: `make_evolving(local)`."""
    return Evolving
