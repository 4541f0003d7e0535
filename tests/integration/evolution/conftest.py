"""A pipeline that runs, is edited and replayed, events for it, and what a plain count over them says."""

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
        self._topic, self._random = topic, random.Random(7)
        self.rate = rate
        self._partitions = PARTITIONS
        self._stopping = threading.Event()
        self.events: list[dict[str, Any]] = []
        self._refused: list[str] = []

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
        """Send to so many partitions, once they can be sent to."""

        def there() -> bool:
            metadata = self._producer.list_topics(self._topic, timeout=10)
            return len(metadata.topics[self._topic].partitions) >= partitions

        eventually(there, what=f"{self._topic} has {partitions} partitions", seconds=30)
        self._partitions = partitions

    def run(self) -> None:
        while not self._stopping.wait(0.05):
            self.send(self.rate // 20)

    def finish(self) -> None:
        """Stop, and wait until all is acknowledged."""
        self._stopping.set()
        if self.ident is not None:
            self.join(10)
        self.flush()

    def flush(self) -> None:
        """Wait until all that was sent is acknowledged."""
        assert self._producer.flush(30) == 0
        assert self._refused == []


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
        self.annotate(**{REPLAY: json.dumps(request)})

    def annotate(self, **annotations: str) -> None:
        """These annotations in place of those it has."""
        document = copy.deepcopy(self.local.document)
        document["metadata"]["annotations"] = annotations
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


@pytest.fixture(name="counted", scope="session")
def _counted() -> Callable[..., Expected]:
    """The plain count."""
    return counted


@pytest.fixture(name="make_load", scope="session")
def _make_load() -> Callable[..., Load]:
    """Makes loads of events."""
    return Load


@pytest.fixture(name="orders", scope="session")
def _orders() -> Callable[[], dict[str, Any]]:
    """The pipeline's document, to be edited."""
    return lambda: copy.deepcopy(DOCUMENT)


@pytest.fixture(name="make_evolving", scope="session")
def _make_evolving() -> Callable[..., Evolving]:
    """Edits and replays another pipeline: `make_evolving(local)`."""
    return Evolving
