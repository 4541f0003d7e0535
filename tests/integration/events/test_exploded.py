"""Tests of exploded arrays on a real Kafka and Postgres: each element of the array counts once, as one event."""

from __future__ import annotations

import json
import random
from collections import defaultdict
from typing import Any

import httpx
import pytest

from bench import Bench, MakeBench
from tidemill_contract.resource.spec import PipelineSpec
from tidemill_contract.runtime import AggregationRef, PipelineConfig

pytestmark = pytest.mark.integration

BASE = 1_700_000_000_000 // 60_000 * 60_000
PARTITIONS = 2
SPEC = PipelineSpec.model_validate(
    {
        "source": {
            "topic": {"partitions": PARTITIONS},
            "fields": [
                {"name": "id", "type": "integer", "required": True},
                {"name": "ts", "type": "timestamp", "required": True},
                {"name": "sku", "type": "string", "path": "items[].sku", "default": "none"},
                {"name": "price", "type": "integer", "path": "items[].price.amount"},
            ],
            "eventTime": {"field": "ts", "idleTimeout": "10m", "maxDisorder": "1m"},
        },
        "transform": {"filter": "price IS NULL OR price <> 13"},
        "aggregations": [
            {
                "name": "by_sku",
                "groupBy": ["sku"],
                "window": {"type": "tumbling", "size": "1m"},
                "metrics": [
                    {"name": "n", "function": "count"},
                    {"name": "orders", "function": "distinct", "field": "id"},
                    *({"name": name, "function": name, "field": "price"} for name in ("sum", "first", "last")),
                ],
            }
        ],
        "anomalies": [
            {
                "name": "odd",
                "field": "price",
                "detector": {"type": "zscore", "threshold": 2, "warmup": 3, "cooldown": "0s"},
            }
        ],
        "events": {"store": True},
        "processor": {"flushInterval": "50ms"},
        "auth": {"required": False},
    }
)
CONFIG = PipelineConfig(
    namespace="tests", name="exploded", generation=1, spec=SPEC,
    aggregations=tuple(AggregationRef(name=a.name) for a in SPEC.aggregations),
)  # fmt: skip

Place = tuple[int, int, int]


class Sent:
    """Random orders that were produced, and the windows and dead letters that are expected of them."""

    def __init__(self, bench: Bench, seed: int) -> None:
        self._bench, self._rnd = bench, random.Random(seed)
        self.logs: dict[int, list[dict[str, Any]]] = {p: [] for p in range(PARTITIONS)}

    def produce(self, number: int) -> None:
        for p, log in self.logs.items():
            new = [self._order(len(log) + n) for n in range(number)]
            log += new
            self._bench.produce([json.dumps(order).encode() for order in new], partition=p)

    def _order(self, number: int) -> dict[str, Any]:
        rnd = self._rnd
        items: list[Any] = [self._item() for _ in range(rnd.choice([0, 1, 2, 5]))]
        # Many orders have equal times. The place in the topic and in the array then decides `first` and `last`.
        order = {"id": number, "ts": BASE + rnd.randrange(3), "items": items, "note": "unread"}
        return {**order, "items": rnd.choice([None, [], "none"])} if rnd.random() < 0.05 else order

    def _item(self) -> Any:
        rnd = self._rnd
        price = rnd.choice([rnd.randint(1, 9), rnd.randint(1, 9), 13, None, 500 if rnd.random() < 0.2 else 5])
        item = {"sku": rnd.choice("ab"), "price": {"amount": price, "currency": "NOK"}}
        return rnd.choice([item] * 12 + [{"sku": 5}, None, 7])

    @property
    def number(self) -> int:
        return sum(map(len, self.logs.values()))

    def elements(self) -> dict[Place, tuple[dict[str, Any], Any]]:
        """Return all elements with their orders, by partition, offset and index in the array."""
        return {
            (p, o, place): (order, item)
            for p, log in self.logs.items()
            for o, order in enumerate(log)
            if isinstance(order["items"], list)
            for place, item in enumerate(order["items"])
        }

    def refused(self) -> set[tuple[int, int, int | None]]:
        """Return the partitions, offsets and indexes of the expected dead letters. A whole record has no index."""
        bad = {place for place, (_, item) in self.elements().items() if item in (7, {"sku": 5})}
        return bad | {(p, o, None) for p, log in self.logs.items() for o, r in enumerate(log) if r["items"] == "none"}

    def counted(self) -> dict[Place, dict[str, Any]]:
        """Return the valid events that pass the filter."""
        events = {}
        for place, (order, item) in self.elements().items():
            if place in self.refused():
                continue
            members = item or {}
            price = members.get("price", {}).get("amount")
            if price != 13:
                event = {"id": order["id"], "ts": order["ts"], "sku": members.get("sku", "none"), "price": price}
                events[place] = event
        return events

    def windows(self) -> dict[str, list[Any]]:
        groups = defaultdict(list)
        for place, event in sorted(self.counted().items(), key=lambda pair: (pair[1]["ts"], pair[0])):
            groups[event["sku"]].append((place, event))
        return {sku: self._metrics(events) for sku, events in groups.items()}

    def _metrics(self, events: list[Any]) -> list[Any]:
        prices = [event["price"] for _, event in events if event["price"] is not None]
        ids = len({event["id"] for _, event in events})
        of_price = [sum(prices), prices[0], prices[-1]] if prices else [None, None, None]
        return [len(events), ids, *of_price]


def get(port: int, path: str) -> dict[str, Any]:
    """Return the answer of the API about this pipeline. Repeat the request until the API answers."""

    def answered() -> dict[str, Any] | None:
        try:
            answer = httpx.get(f"http://127.0.0.1:{port}/v1/pipelines/{CONFIG.name}/{path}", timeout=10)
        except httpx.TransportError:
            return None
        return dict(answer.json()) if answer.status_code == httpx.codes.OK else None

    return Bench.eventually(answered, seconds=60, what=f"an answer of {path}")


def published(bench: Bench, number: int) -> set[tuple[int, int, int | None]]:
    """Return the places of the dead letters that were published to Kafka. Each dead letter has a unique id."""
    places: dict[str, tuple[int, int, int | None]] = {}
    with bench.reading("dead-letters") as consumer:

        def read() -> bool:
            for message in consumer.consume(500, 1.0):
                headers = {name: value.decode() for name, value in message.headers()}
                element = int(headers["element"]) if "element" in headers else None
                places[headers["id"]] = int(headers["partition"]), int(headers["offset"]), element
            return len(places) >= number

        Bench.eventually(read, seconds=60, what=f"{number} dead letters are published")
    assert len(set(places.values())) == len(places)
    return set(places.values())


def test_elements_count_once_although_a_processor_is_killed(make_bench: MakeBench) -> None:
    bench = make_bench(CONFIG)
    sent = Sent(bench, seed=3)
    victim = bench.start(0)
    sent.produce(60)
    bench.eventually(lambda: bench.consumed() >= 20, seconds=60, what="20 records are consumed")
    sent.produce(60)
    victim.kill()
    victim.wait()
    sent.produce(30)
    bench.start(1)
    bench.start(2, module="tidemill_api")
    bench.await_consumed(sent.number, seconds=90)

    # The API answers the expected windows.
    api = bench.ports[-1]
    rows = get(api, f"aggregates/by_sku?from={BASE}&to={BASE + 60_000}")["data"]
    metrics = {row["sku"]: [row[name] for name in ("n", "orders", "sum", "first", "last")] for row in rows}
    assert metrics == sent.windows()

    # Each element is stored as one event.
    counted = sent.counted()
    stored = get(api, "events?order=partition,offset,element&limit=1000")["data"]
    assert {(row["partition"], row["offset"], row["element"]): row["data"] for row in stored} == counted
    assert len(stored) == len(counted)
    third = get(api, "events?element=2&sku=a&limit=1000")["data"]
    assert len(third) == sum(place[2] == 2 and event["sku"] == "a" for place, event in counted.items())

    # Each invalid element and each invalid record is a dead letter.
    refused = sent.refused()
    letters = get(api, "dead-letters?order=partition,offset,element&limit=1000")["data"]
    assert {(row["partition"], row["offset"], row["element"]) for row in letters} == refused
    assert len(letters) == len(refused)
    assert {row["value"] for row in letters if row["element"] is not None} <= {'{"sku": 5}', "7"}
    assert published(bench, len(refused)) == refused

    # A detector judges single elements.
    odd = bench.query('SELECT partition, "offset", element, value FROM {s}._anomalies')
    assert odd
    assert len({row[:3] for row in odd}) == len(odd)
    assert all(counted[p, o, element]["price"] == value for p, o, element, value in odd)
    totals = bench.query("SELECT sum(consumed), sum(filtered), sum(invalid) FROM {s}._offsets")
    valid = len(sent.elements()) - sum(place[2] is not None for place in refused)
    assert totals == [(sent.number, valid - len(counted), len(refused))]


def test_huge_arrays_do_not_stop_the_processor(make_bench: MakeBench) -> None:
    """A record with 10,000 elements, the limit, is counted. A record with 500,000 elements becomes one dead letter."""
    bench = make_bench(CONFIG.model_copy(update={"name": "exploded-huge"}))
    tiny = b'{"id": %d, "ts": %d, "items": [%b]}'
    whole = [tiny % (n, BASE, b",".join([b"{}"] * 10_000)) for n in range(6)]
    beyond = tiny % (99, BASE, b",".join([b"0"] * 500_000))
    bench.produce([*whole, beyond, tiny % (100, BASE, b'{"sku":"z"}')], partition=0)
    bench.start()
    bench.await_consumed(8, seconds=90)
    counts = bench.query("SELECT sku, _count FROM {s}.by_sku_v1 ORDER BY sku")
    assert counts == [("none", 60_000), ("z", 1)]
    letters = bench.query('SELECT "offset", element, reason, value_bytes FROM {s}._dead_letters')
    assert letters == [(6, -1, "too_large", len(beyond))]
