"""A pipeline of a shop, its events, and the expected answers of the API, recomputed from the events."""

from __future__ import annotations

import datetime as dt
import math
import random
import statistics
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx

from bench import Bench
from tidemill_contract.resource.spec import PipelineSpec
from tidemill_contract.runtime import AggregationRef, PipelineConfig
from tidemill_contract.times import rfc3339

# In Europe/Berlin, the day 2026-03-29 has 23 hours, because clocks are put forward.
START = int(dt.datetime(2026, 3, 27, tzinfo=dt.UTC).timestamp() * 1000)
HOUR, DAY = 3_600_000, 86_400_000
DAYS = 5
COUNTRIES = ["NO", "SE", "", 'a,b\n"c"', "Å", None]
BROKEN = [b"\xde\xad\xbe\xef", b"{", b'{"ts": 1774569600000, "amount": "?"}', "ü".encode() * 3_000]
METRICS: list[dict[str, Any]] = [
    {"name": "n", "function": "count"},
    {"name": "amounts", "function": "count", "field": "amount"},
    {"name": "revenue", "function": "sum", "field": "amount"},
    {"name": "items", "function": "sum", "field": "qty"},
    {"name": "mean", "function": "avg", "field": "amount"},
    {"name": "low", "function": "min", "field": "amount"},
    {"name": "high", "function": "max", "field": "qty"},
    {"name": "opening", "function": "first", "field": "qty"},
    {"name": "closing", "function": "last", "field": "qty"},
    {"name": "spread", "function": "variance", "field": "amount"},
    {"name": "sd", "function": "stddev", "field": "amount"},
    {"name": "share", "function": "avg", "field": "vip"},
    {"name": "latest", "function": "max", "field": "ts"},
    {"name": "p90", "function": "quantile", "field": "amount", "q": 0.9},
    {"name": "sizes", "function": "distinct", "field": "qty"},
    {"name": "places", "function": "distinct", "field": "country"},
    {"name": "common", "function": "topk", "field": "country", "k": 3},
    {"name": "often", "function": "topk", "field": "qty"},
]
HOP_METRICS = [*METRICS[:4], *METRICS[-5:]]


def config() -> PipelineConfig:
    """Return the pipeline `shop`."""
    spec = PipelineSpec.model_validate(
        {
            "source": {
                "topic": {"partitions": 2},
                "fields": [
                    {"name": "ts", "type": "timestamp", "required": True},
                    {"name": "country", "type": "string"},
                    {"name": "store", "type": "integer"},
                    {"name": "amount", "type": "number"},
                    {"name": "qty", "type": "integer"},
                    {"name": "vip", "type": "boolean"},
                ],
                "eventTime": {"field": "ts", "idleTimeout": "1s", "maxDisorder": "30d", "maxAdvance": "365d"},
            },
            "aggregations": [
                {
                    "name": "by_store",
                    "groupBy": ["country", "store"],
                    "window": {"type": "tumbling", "size": "1h"},
                    "metrics": METRICS,
                },
                {
                    "name": "hops",
                    "groupBy": ["country"],
                    "window": {"type": "hopping", "size": "3h", "hop": "1h"},
                    "metrics": HOP_METRICS,
                },
                {"name": "total", "window": {"type": "tumbling", "size": "15m"}, "metrics": METRICS[:3]},
            ],
            "events": {"store": True, "retention": "3000d"},
            "api": {"cacheTtl": "200ms"},
            "auth": {"required": False},
            "processor": {"flushInterval": "100ms"},
        }
    )
    return PipelineConfig(
        namespace="tests",
        name="shop",
        generation=1,
        spec=spec,
        aggregations=tuple(AggregationRef(name=a.name) for a in spec.aggregations),
    )


def make_events() -> list[dict[str, Any]]:
    """Return random events by event time; no two have the same time."""
    rnd = random.Random(7)
    events: list[dict[str, Any]] = []
    for t in sorted(rnd.sample(range(DAYS * DAY // 1000), 4_000)):
        events.append({
            "ts": START + t * 1000,
            "country": rnd.choice(COUNTRIES),
            "store": rnd.choice([1, 2, 3, None]),
            "amount": None if rnd.random() < 0.1 else round(rnd.uniform(-5, 500), 2),
            "qty": None if rnd.random() < 0.1 else rnd.randrange(-3, rnd.choice([3, 2**40])),
            "vip": rnd.choice([True, False, None]),
        })  # fmt: skip
    return events


EVENTS = make_events()


@dataclass
class Api:
    """The API process under test, and a client of it."""

    bench: Bench
    client: httpx.Client

    def get(self, path: str, **parameters: Any) -> httpx.Response:
        """Return the answer to a path below the pipeline's."""
        return self.client.get(f"/v1/pipelines/shop{path}", params=parameters)

    def rows(self, aggregation: str, **parameters: Any) -> list[dict[str, Any]]:
        """Read all pages of a query, and return their rows."""
        rows: list[dict[str, Any]] = []
        while True:
            answer = self.get(f"/aggregates/{aggregation}", **parameters)
            assert answer.status_code == 200, answer.text
            page = answer.json()
            rows += page["data"]
            assert page["truncated"] == (page["next_cursor"] is not None)
            if page["next_cursor"] is None:
                return rows
            parameters["cursor"] = page["next_cursor"]


@contextmanager
def api_of(bench: Bench) -> Iterator[Api]:
    """Start an API process over the pipeline, and end it after the block."""
    process = bench.start(module="tidemill_api")
    with httpx.Client(base_url=f"http://127.0.0.1:{bench.ports[-1]}", timeout=30) as client:
        bench.eventually(lambda: bench.health().get("status") == "healthy", what="the API is healthy")
        yield Api(bench, client)
    process.terminate()
    assert process.wait(20) == 0, "the API exits with status 0 on SIGTERM"


def moment(ms: int) -> str:
    """Return epoch milliseconds as the API writes times."""
    return dt.datetime.fromtimestamp(ms / 1000, dt.UTC).isoformat().replace("+00:00", "Z")


@dataclass(frozen=True)
class Sketched:
    """An expected answer of a sketch.

    A few values must be exact. Beyond them, quantiles may be off by 1 % of ranks, and counts by 2 %.
    """

    values: tuple[Any, ...]
    metric: dict[str, Any]

    def holds(self, actual: Any) -> bool:
        """Return True if an answer is exact enough."""
        if self.metric["function"] == "topk":
            return self._lists(actual, self.metric.get("k", 10))
        if self.metric["function"] == "distinct":
            count = len(set(self.values))
            return bool(abs(actual - count) <= (0.02 * count if count > 100 else 0))
        q: float = self.metric["q"]
        if len(self.values) <= 400:
            return bool(actual == sorted(self.values)[math.ceil(q * len(self.values)) - 1])
        return bool(abs(sum(v <= actual for v in self.values) / len(self.values) - q) <= 0.01)

    def _lists(self, actual: list[dict[str, Any]], k: int) -> bool:
        """Return True if a list of frequent values is right: exact for up to 384 values, else within 0.7 %."""
        counts = Counter(self.values)
        if len(counts) <= 384:
            ranked = sorted((-count, value) for value, count in counts.items())[:k]
            return actual == [{"value": value, "count": -count, "error": 0} for count, value in ranked]
        listed = {item["value"] for item in actual}
        return (
            all(item["count"] - item["error"] <= counts[item["value"]] <= item["count"] for item in actual)
            and all(item["error"] <= 3.5 / 512 * len(self.values) for item in actual)
            and all(count <= actual[-1]["count"] for value, count in counts.items() if value not in listed)
            and len(actual) == k
        )


def summarised(events: list[dict[str, Any]], metrics: Iterable[dict[str, Any]] = METRICS) -> dict[str, Any]:
    """Return the metrics of events, which must be in the order of their times."""
    answer: dict[str, Any] = {}
    for metric in metrics:
        values: list[Any] = list(events)
        if "field" in metric:
            values = [e[metric["field"]] for e in events if e[metric["field"]] is not None]
        function = metric["function"]
        if function == "count":
            answer[metric["name"]] = len(values)
        elif not values:
            answer[metric["name"]] = None
        elif function in ("quantile", "distinct", "topk"):
            answer[metric["name"]] = Sketched(tuple(values), metric)
        elif metric.get("field") == "ts":
            answer[metric["name"]] = moment(max(values))
        else:
            answer[metric["name"]] = {
                "sum": math.fsum if isinstance(values[0], float) else sum,
                "avg": lambda v: math.fsum(v) / len(v), "min": min, "max": max,
                "first": lambda v: v[0], "last": lambda v: v[-1],
                "variance": statistics.pvariance, "stddev": statistics.pstdev,
            }[function](values)  # fmt: skip
    return answer


def grouped(key: Callable[[dict[str, Any]], Iterable[tuple[Any, ...]]]) -> dict[tuple[Any, ...], list[dict[str, Any]]]:
    """Return the events of each key. `key` gives the keys of an event: its groups and a window start."""
    events: dict[tuple[Any, ...], list[dict[str, Any]]] = defaultdict(list)
    for event in EVENTS:
        for group in key(event):
            events[group].append(event)
    return events


def same(expected: Any, actual: Any) -> bool:
    """Return True if a value is the expected one; floats may differ in the last digits."""
    if isinstance(expected, Sketched):
        return actual is not None and expected.holds(actual)
    if isinstance(expected, float):
        return actual is not None and math.isclose(expected, actual, rel_tol=1e-9, abs_tol=1e-7)
    return bool(expected == actual)


def assert_rows(
    rows: list[dict[str, Any]],
    expected: dict[tuple[Any, ...], list[dict[str, Any]]],
    groups: list[str],
    metrics: list[dict[str, Any]] = METRICS,
) -> None:
    """Assert that rows have each expected key once, with the recomputed metrics."""
    keys = [(*(row[name] for name in groups), row["window_start"]) for row in rows]
    assert len(set(keys)) == len(keys)
    assert set(keys) == set(expected)
    for key, row in zip(keys, rows, strict=True):
        wanted = summarised(expected[key], metrics)
        different = {n: (v, row[n]) for n, v in wanted.items() if not same(v, row[n])}
        assert different == {}, key


def hour_of(event: dict[str, Any]) -> str:
    """Return the start of an event's hour, as the API writes it."""
    return moment(event["ts"] // HOUR * HOUR)


def as_json(value: Any) -> Any:
    """Return a value that pyarrow or polars read, in the form of a JSON answer."""
    match value:
        case dt.datetime():
            return rfc3339(value)
        case list():
            return [as_json(item) for item in value]
        case dict():
            return {name: as_json(item) for name, item in value.items()}
    return value
