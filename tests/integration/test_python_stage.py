"""A user's Python function between the topic and the processors: exact counts under kills, dead letters, edits."""

from __future__ import annotations

import itertools
import json
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
from confluent_kafka import Consumer, TopicPartition

from bench import Bench, MakeBench
from tidemill_contract import names
from tidemill_contract.resource.spec import PipelineSpec
from tidemill_contract.runtime import AggregationRef, PipelineConfig

pytestmark = pytest.mark.integration

BASE = 1_700_000_000_000 // 60_000 * 60_000
STAGE = "tidemill_processor.stage"
ENRICH = """
SHOPS = {0: "north", 1: "south"}


def enrich(event):
    number = event["number"]
    if number % 5 == 0:
        return None
    if number % 11 == 0:
        raise ValueError(f"no shop {number}")
    if number % 13 == 0:
        return number
    event["shop"] = SHOPS[number % 2]
    event["double"] = 2 * number
    return [event, {**event, "shop": "copy"}] if number % 7 == 0 else event
"""


def config(name: str, **source: Any) -> PipelineConfig:
    spec = PipelineSpec.model_validate(
        {
            "source": {
                "topic": {"partitions": 3},
                "fields": [
                    {"name": "ts", "type": "timestamp", "required": True},
                    {"name": "shop", "type": "string", "required": True},
                    {"name": "double", "type": "integer", "required": True},
                    {"name": "origin", "type": "string", "from": "header"},
                ],
                "eventTime": {"field": "ts", "idleTimeout": "10m", "maxDisorder": "1s"},
                **source,
            },
            "transform": {"python": {"configMap": "enrich", "file": "enrich.py", "function": "enrich"}},
            "aggregations": [
                {
                    "name": "by_shop",
                    "groupBy": ["shop"],
                    "window": {"type": "tumbling", "size": "1h"},
                    "metrics": [
                        {"name": "n", "function": "count"},
                        {"name": "total", "function": "sum", "field": "double"},
                        {"name": "known", "function": "count", "field": "origin"},
                    ],
                }
            ],
        }
    )
    refs = (AggregationRef(name="by_shop"),)
    return PipelineConfig(namespace="default", name=name, generation=1, spec=spec, aggregations=refs)


def record(number: int) -> bytes:
    return json.dumps({"ts": BASE + number % 50_000, "number": number}).encode()


def expected(numbers: Iterator[int] | range) -> tuple[dict[str, tuple[int, int]], Counter[str]]:
    """Counts and totals by shop, and dead letters by what their detail begins with."""
    shops: dict[str, tuple[int, int]] = {}
    dead: Counter[str] = Counter()

    def count(shop: str, double: int) -> None:
        n, total = shops.get(shop, (0, 0))
        shops[shop] = (n + 1, total + double)

    for number in numbers:
        if number % 5 == 0:
            continue
        if number % 11 == 0:
            dead["ValueError"] += 1
        elif number % 13 == 0:
            dead["enrich of enrich.py returned int"] += 1
        else:
            count(("north", "south")[number % 2], 2 * number)
            if number % 7 == 0:
                count("copy", 2 * number)
    return shops, dead


def start_stage(bench: Bench, text: str | None = ENRICH, **environment: str) -> subprocess.Popen[bytes]:
    folder = bench.folder / "stage"
    folder.mkdir(exist_ok=True)
    if text is not None:
        (folder / "enrich.py").write_text(text)
    return bench.start(module=STAGE, TIDEMILL_STAGE_DIR=str(folder), **environment)


def shops(bench: Bench) -> dict[str, tuple[int, int]]:
    rows = bench.query("SELECT shop, sum(_count)::bigint, sum(_sum_double)::bigint FROM {s}.by_shop_v1 GROUP BY shop")
    return {shop: (int(n), int(total)) for shop, n, total in rows}


def letters(bench: Bench) -> Counter[str]:
    rows = bench.query("SELECT reason, detail FROM {s}._dead_letters")
    return Counter(f"{reason}: {(detail or '').split(':')[0].split(';')[0]}" for reason, detail in rows)


def note(bench: Bench) -> str:
    """What the stage tells the operator."""
    group = names.consumer_group(bench.config.namespace, bench.config.name, "stage-state")
    consumer = Consumer({"bootstrap.servers": bench.servers.kafka, "group.id": group})
    try:
        return str(consumer.committed([TopicPartition(bench.config.events_topic, 0)], timeout=10)[0].metadata or "")
    finally:
        consumer.close()


def test_counts_are_exact_while_stage_and_processor_are_killed(make_bench: MakeBench) -> None:
    bench = make_bench(config("staged"))
    numbers = itertools.count(1)
    stage, processor = start_stage(bench), bench.start()
    sent = 0

    def send(many: int) -> None:
        nonlocal sent
        bench.produce([record(next(numbers)) for _ in range(many)], headers=[("origin", b"here")])
        sent += many

    send(2_000)
    bench.eventually(lambda: sum(n for n, _ in shops(bench).values()) > 100, seconds=60, what="the first events count")
    for round_ in range(3):
        send(3_000)
        time.sleep(0.4 * (round_ + 1))  # not a wait for a condition: kills come at different moments of a transaction
        stage.kill()
        stage.wait()
        send(500)
        processor.kill()
        processor.wait()
        stage, processor = start_stage(bench, None), bench.start()
    send(1_000)
    right, dead = expected(range(1, sent + 1))
    bench.eventually(lambda: shops(bench) == right, seconds=120, what=lambda: f"{shops(bench)} is {right}")
    bench.eventually(lambda: bench.health()["lag"] == 0, seconds=30, what="no lag")
    told = bench.health(-2)
    assert (told["status"], told["lag"]) == ("healthy", 0)
    assert letters(bench) == {f"transform_failed: {begin}": n for begin, n in dead.items()}
    assert bench.query("SELECT sum(_n_origin) = sum(_count) FROM {s}.by_shop_v1") == [(True,)]
