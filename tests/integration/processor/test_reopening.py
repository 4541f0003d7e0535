"""Tests of `latePolicy: reopen` with real processors and a real API, on a real Kafka and Postgres.

Late events change closed windows. Changed windows and anomalies are published again with a higher revision.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

from bench import Bench, MakeBench, Output
from tidemill_contract.resource.spec import PipelineSpec
from tidemill_contract.runtime import AggregationRef, PipelineConfig
from tidemill_contract.times import rfc3339_ms

pytestmark = [pytest.mark.integration, pytest.mark.slow]

MINUTE = 60_000
BASE = 1_700_000_000_000 // (60 * MINUTE) * 60 * MINUTE
METRICS = [{"name": "n", "function": "count"}, {"name": "total", "function": "sum", "field": "i"}]
REOPEN: dict[str, Any] = {"latePolicy": "reopen", "retention": "2d", "metrics": METRICS}
SPEC = PipelineSpec.model_validate(
    {
        "source": {
            "topic": {"partitions": 2},
            "fields": [
                {"name": "ts", "type": "timestamp", "required": True},
                {"name": "k", "type": "string"},
                {"name": "i", "type": "integer"},
            ],
            "eventTime": {"field": "ts", "idleTimeout": "1h", "maxDisorder": "1s"},
        },
        "aggregations": [
            {"name": "minutes", "groupBy": ["k"], "window": {"type": "tumbling", "size": "1m"}, **REOPEN},
            {"name": "hops", "window": {"type": "hopping", "size": "3m", "hop": "1m"}, **REOPEN},
            {"name": "visits", "groupBy": ["k"], "window": {"type": "session", "gap": "20s"}, **REOPEN},
        ],
        "anomalies": [
            {
                "name": "spike",
                "aggregation": "minutes",
                "metric": "total",
                "detector": {"type": "zscore", "threshold": 6, "warmup": 5, "cooldown": "1s"},
            }
        ],
        "processor": {"flushInterval": "100ms"},
        "auth": {"required": False},
        "api": {"cacheTtl": "0s"},
    }
)


class Stand:
    """The pipeline with two processors and an API."""

    def __init__(self, bench: Bench, client: httpx.Client, documented: Callable[..., None]) -> None:
        self.bench, self.client, self.documented, self.sent = bench, client, documented, 0
        bench.start(0)
        bench.start(1)
        bench.start(module="tidemill_api")
        self.at = f"http://127.0.0.1:{bench.ports[-1]}/v1/pipelines/stand"
        bench.eventually(bench.health, what="the API answers")

    def sell(self, *sales: tuple[float, str, int]) -> None:
        """Send sales (second, k, i), and wait until they are counted."""
        self.bench.produce(
            [json.dumps({"ts": BASE + round(second * 1000), "k": k, "i": i}).encode() for second, k, i in sales]
        )
        self.sent += len(sales)
        self.bench.await_consumed(self.sent)

    def settle(self) -> None:
        """Wait until windows and corrections up to the watermark are closed, published and judged."""
        behind = (
            "SELECT count(*) FROM {s}._aggregations AS a, {s}._readers AS r,"
            " (SELECT min(max_event_time) - 1000 AS watermark FROM {s}._offsets) AS o"
            " WHERE r.watermark IS DISTINCT FROM o.watermark"
            " OR a.closed_until IS DISTINCT FROM CASE a.name WHEN 'visits' THEN o.watermark / 1000 * 1000"
            " ELSE o.watermark / 60000 * 60000 END OR a.closed_until IS DISTINCT FROM a.published_until"
            " OR (a.name = 'minutes' AND a.closed_until IS DISTINCT FROM a.scanned_until)"
        )
        self.bench.eventually(
            lambda: (
                self.bench.query(behind) == [(0,)]
                and self.bench.query("SELECT count(*) FROM {s}._corrections") == [(0,)]
            ),
            what="all windows up to the watermark are published and judged",
        )

    def closed(self, aggregation: str) -> dict[tuple[str, str, str], dict[str, Any]]:
        """Return the metrics of closed windows from the REST API, by group, start and end."""
        answer = self.client.get(
            f"{self.at}/aggregates/{aggregation}", params={"closed": "true", "limit": "10000"}
        ).json()
        assert answer["next_cursor"] is None
        return {
            (str(row.get("k")), row["window_start"], row["window_end"]): {"n": row["n"], "total": row["total"]}
            for row in answer["data"]
        }

    def anomalies(self) -> list[tuple[str, str, float]]:
        rows = self.client.get(f"{self.at}/anomalies").json()["data"]
        return [(row["group"]["k"], row["window_start"], row["value"]) for row in rows]

    def topic(self, kind: Output) -> list[dict[str, Any]]:
        """Return the records of an output topic, each id once."""
        records = self.bench.records(kind)
        for record in records:
            self.documented(kind, record)
        return records

    def published(self) -> dict[str, dict[tuple[str, str, str], dict[str, Any]]]:
        """Return the windows with the highest revision in the topic of results, by aggregation."""
        newest: dict[tuple[str, str, str], dict[str, Any]] = {}
        for record in self.topic("results"):
            key = (record["aggregation"], str(record["group"].get("k")), record["window_start"])
            if record["revision"] >= newest.get(key, record)["revision"]:
                newest[key] = record
        windows: dict[str, dict[tuple[str, str, str], dict[str, Any]]] = {a.name: {} for a in SPEC.aggregations}
        for (aggregation, k, start), record in newest.items():
            if start != record["window_end"]:
                windows[aggregation][k, start, record["window_end"]] = record["metrics"]
        return windows


@pytest.fixture
def stand(make_bench: MakeBench, documented: Callable[..., None]) -> Iterator[Stand]:
    refs = tuple(AggregationRef(name=a.name) for a in SPEC.aggregations)
    bench = make_bench(PipelineConfig(namespace="tests", name="stand", generation=1, spec=SPEC, aggregations=refs))
    with httpx.Client(timeout=20) as client:
        yield Stand(bench, client, documented)


def steady(minutes: range) -> list[tuple[float, str, int]]:
    """Return two sales for each minute and group, with values that differ a little."""
    return [
        (minute * 60 + second, k, 10 + (minute + second) % 3) for minute in minutes for second in (3, 33) for k in "ab"
    ]


def test_each_changed_window_is_published_again(stand: Stand) -> None:
    """The highest revisions equal the answers of REST, after late events in any order and kills of processors."""
    stand.sell(*steady(range(40)), (2_400, "end", 0), (2_400, "end", 0))
    stand.settle()
    before = {name: stand.closed(name) for name in ("minutes", "hops", "visits")}
    assert stand.published() == before
    rnd = random.Random(11)
    for turn in range(6):
        stand.sell(*((rnd.randrange(0, 24_000) / 10, rnd.choice("abc"), rnd.randrange(5)) for _ in range(30)))
        if turn % 2:
            stand.bench.processes[turn // 2 % 2].kill()
            stand.bench.start(turn // 2 % 2)
        # These events are on time.
        stand.sell((2_400 + turn * 7, "a", 1), (2_400 + turn * 7, "end", 1))
    stand.settle()
    published = stand.published()
    for name, windows in before.items():
        after = stand.closed(name)
        assert sum(row["n"] for row in after.values()) > sum(row["n"] for row in windows.values()), name
        assert published[name] == after, name
    assert stand.bench.query("SELECT count(*) FROM {s}._dead_letters") == [(0,)]


def test_a_late_event_adds_or_clears_an_anomaly(stand: Stand) -> None:
    """A late event causes an anomaly, and another late event clears it. The states of detectors do not change."""
    stand.sell(*steady(range(40)), (2_400, "end", 0), (2_400, "end", 0))
    stand.settle()
    assert stand.anomalies() == []
    states = 'SELECT state FROM {s}._detectors WHERE group_key = $${"k": "a"}$$'
    before = stand.bench.query(states)
    at = rfc3339_ms(BASE + 30 * MINUTE)
    (ordinary,) = [row["total"] for (k, start, _), row in stand.closed("minutes").items() if (k, start) == ("a", at)]
    stand.sell((30 * 60 + 40, "a", 5_000))
    stand.settle()
    assert stand.anomalies() == [("a", at, ordinary + 5_000.0)]
    stand.sell((30 * 60 + 41, "a", -5_000))
    stand.settle()
    assert stand.anomalies() == []
    records = stand.topic("anomalies")
    assert [(r["revision"], r["severity"], r["value"]) for r in sorted(records, key=lambda r: r["revision"])] == [
        (1, "critical", ordinary + 5_000.0),
        (2, "cleared", float(ordinary)),
    ]
    assert stand.bench.query(states) == before
    # The history of the detector no longer includes this window, which changes without an anomaly.
    stand.sell((5 * 60 + 40, "a", 5_000))
    stand.settle()
    assert stand.anomalies() == []
    assert ("a", rfc3339_ms(BASE + 5 * MINUTE)) in {key[:2] for key in stand.published()["minutes"]}
