"""Tests of long lists of frequent values on real servers: their rows have a bounded size, and they are published."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import psycopg
import pytest

from bench import MakeBench
from kafka_records import KafkaRecord
from tidemill_contract.functions import sketches
from tidemill_contract.functions.partials import Partial
from tidemill_contract.resource.spec import PipelineSpec
from tidemill_contract.runtime import AggregationRef, PipelineConfig
from tidemill_processor.batches.reader import BatchReader
from tidemill_processor.database import Database
from tidemill_processor.transaction import Committer, Position
from tidemill_processor.windows.reader import WindowReader

pytestmark = pytest.mark.integration

BASE = 1_700_000_000_000 // 60_000 * 60_000
METRICS = [{"name": "n", "function": "count"}, {"name": "pages", "function": "topk", "field": "page"}]
SPEC = PipelineSpec.model_validate(
    {
        "source": {
            "topic": {"partitions": 1},
            "fields": [{"name": "ts", "type": "timestamp", "required": True}, {"name": "page", "type": "string"}],
            "eventTime": {"field": "ts"},
        },
        "aggregations": [
            {"name": "minutes", "window": {"type": "tumbling", "size": "1m"}, "metrics": METRICS},
            {"name": "visits", "window": {"type": "session", "gap": "10s"}, "metrics": METRICS},
        ],
    }
)
CONFIG = PipelineConfig(
    namespace="tests", name="frequent", generation=1, spec=SPEC,
    aggregations=tuple(AggregationRef(name=a.name) for a in SPEC.aggregations),
)  # fmt: skip
BATCHES, EVENTS = 24, 1_000
HOT = ["/cart", "/search", "/", "/help"]


@dataclass(frozen=True)
class Record(KafkaRecord):
    """A record of the pipeline's only partition."""

    p = 0
    o: int
    page: str | None

    def value(self) -> bytes:
        return json.dumps({"ts": BASE + self.o % 1_000, "page": self.page}).encode()


def batches_of_pages() -> list[list[Record]]:
    """Return batches with a few frequent pages, each three times as frequent as the next.

    Each other page has a long name and occurs once.
    """
    rnd = random.Random(3)
    weights = [3.0**-place for place in range(len(HOT))]

    def page(number: int) -> str | None:
        chance = rnd.random()
        if chance < 0.3:
            return rnd.choices(HOT, weights)[0]
        return None if chance < 0.35 else f"/{number}/".ljust(400, "x")

    records = [Record(number, page(number)) for number in range(BATCHES * EVENTS)]
    return [records[start : start + EVENTS] for start in range(0, len(records), EVENTS)]


@pytest.fixture
def compactions(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Return a counter of the compactions of each column."""
    counts: Counter[str] = Counter()
    compact = sketches.compact

    def counted(partial: Partial, stored: bytes) -> bytes:
        counts[partial.column] += 1
        return compact(partial, stored)

    monkeypatch.setattr(sketches, "compact", counted)
    return counts


def test_rows_are_bounded_and_frequent_values_are_found(
    make_schema: Callable[[PipelineConfig], tuple[psycopg.Connection[Any], Database]], compactions: Counter[str]
) -> None:
    connection, database = make_schema(CONFIG)
    stores = database.aggregations(connection)
    committer, reader = Committer(connection, database, stores, CONFIG), BatchReader(SPEC)
    positions = {0: Position(0, 0)}
    batches, longest = batches_of_pages(), 0
    for batch in batches:
        committed = committer.commit(reader.read(batch, BASE + 86_400_000), positions)
        positions.update(committed.positions)
        for name in ("minutes", "visits"):
            query = f"SELECT max(octet_length(_frequent_page)) FROM {database.schema}.{name}_v1"
            (length,) = connection.execute(query).fetchone() or (0,)
            longest = max(longest, length)
    whole = 384 * (12 + sketches.VALUE_BYTES) + 100
    assert longest <= 3 * whole, "a row is at most two sketches and the sketch of a batch"
    assert compactions["_frequent_page"] <= 0.75 * BATCHES * len(stores), "not every batch compacts its rows"
    true = Counter(record.page for batch in batches for record in batch if record.page is not None)
    for store in stores:
        with connection.transaction():
            (row,) = WindowReader(database, store).read(connection, BASE, BASE)
        assert row["n"] == BATCHES * EVENTS
        assert [item["value"] for item in row["pages"]][: len(HOT)] == HOT
        for item in row["pages"][: len(HOT)]:
            assert item["count"] - item["error"] <= true[item["value"]] <= item["count"]
            assert item["error"] <= 3.5 / 512 * true.total()


def test_results_of_more_than_a_megabyte_are_published(make_bench: MakeBench) -> None:
    """Kafka's clients refuse such records by default; the processor sets the limit of the topics."""
    fields = [f"f{number}" for number in range(8)]
    metrics = [{"name": f"top_{field}", "function": "topk", "field": field, "k": 100} for field in fields]
    spec = PipelineSpec.model_validate(
        {
            "source": {
                "topic": {"partitions": 1},
                "fields": [
                    {"name": "ts", "type": "timestamp", "required": True},
                    *({"name": field, "type": "string"} for field in fields),
                ],
                "eventTime": {"field": "ts", "maxDisorder": "0s"},
            },
            "aggregations": [{"name": "all", "window": {"type": "tumbling", "size": "1m"}, "metrics": metrics}],
            "processor": {"flushInterval": "100ms"},
        }
    )
    config = PipelineConfig(
        namespace="tests", name="longlists", generation=1, spec=spec, aggregations=(AggregationRef(name="all"),)
    )
    bench = make_bench(config)
    bench.start()
    values = [f"{number:03}".ljust(256, "\x01") for number in range(100)]  # each \x01 is six characters of JSON
    events = [{"ts": BASE, **dict.fromkeys(fields, value)} for value in values]
    bench.produce([json.dumps(event).encode() for event in [*events, {"ts": BASE + 60_000}]])
    published: list[bytes] = []
    with bench.reading("results") as consumer:

        def read() -> bool:
            published.extend(message.value() for message in consumer.consume(1, 1.0) if message.error() is None)
            return bool(published)

        bench.eventually(read, what="a result is published")
    assert len(published[0]) > 1_200_000
    listed = json.loads(published[0])["metrics"]
    assert listed == {f"top_{field}": [{"value": v, "count": 1, "error": 0} for v in values] for field in fields}
