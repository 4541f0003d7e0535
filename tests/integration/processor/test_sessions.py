"""Tests of session windows from Kafka to REST, WebSocket and the topic of results.

The tests run two real processors, of which one is killed, and a real API.
"""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from websockets.sync.client import ClientConnection, connect

from bench import Bench, MakeBench
from tidemill_contract.resource.spec import PipelineSpec
from tidemill_contract.runtime import AggregationRef, PipelineConfig
from tidemill_contract.times import rfc3339_ms

pytestmark = [pytest.mark.integration, pytest.mark.slow]

BASE = 1_700_000_000_000 // 3_600_000 * 3_600_000
GAP = 30_000
DOCUMENT: dict[str, Any] = {
    "source": {
        "topic": {"partitions": 2},
        "fields": [
            {"name": "ts", "type": "timestamp", "required": True},
            {"name": "user", "type": "string"},
            {"name": "page", "type": "string"},
            {"name": "spent", "type": "number"},
        ],
        "eventTime": {"field": "ts", "idleTimeout": "1h"},
    },
    "aggregations": [
        {
            "name": "visits",
            "groupBy": ["user"],
            "window": {"type": "session", "gap": "30s"},
            "metrics": [
                {"name": "pages", "function": "count"},
                {"name": "landing", "function": "first", "field": "page"},
                {"name": "exit", "function": "last", "field": "page"},
                {"name": "seen", "function": "distinct", "field": "page"},
                {"name": "spent", "function": "sum", "field": "spent"},
            ],
        }
    ],
    "anomalies": [
        {
            "name": "spree",
            "aggregation": "visits",
            "metric": "spent",
            "detector": {"type": "zscore", "threshold": 5, "warmup": 10},
        }
    ],
    "processor": {"flushInterval": "100ms"},
    "auth": {"required": False},
    "api": {"cacheTtl": "0s"},
}


class Site:
    """The pipeline with two processors and an API. Times are seconds after `BASE`."""

    def __init__(self, bench: Bench, client: httpx.Client, disorder_seconds: int) -> None:
        self.bench, self.client, self.disorder, self.sent = bench, client, disorder_seconds, 0
        bench.start(0)
        bench.start(1)
        bench.start(module="tidemill_api")
        self.at = f"127.0.0.1:{bench.ports[-1]}/v1/pipelines/site"
        bench.eventually(bench.health, what="the API answers")

    def view(self, *views: tuple[float, str | None, str, float]) -> None:
        """Send page views (second, user, page, spent), and wait until they are counted."""
        values = [
            json.dumps({"ts": BASE + round(second * 1000), "user": user, "page": page, "spent": spent}).encode()
            for second, user, page, spent in views
        ]
        self.bench.produce(values)
        self.sent += len(values)
        self.bench.await_consumed(self.sent)

    def pass_time(self, second: float) -> None:
        """Send an event with this time to both partitions, and wait until sessions are closed and published."""
        for partition in (0, 1):
            event = {"ts": BASE + round(second * 1000), "user": f"clock-{partition}"}
            self.bench.produce([json.dumps(event).encode()], partition=partition)
        self.sent += 2
        self.bench.await_consumed(self.sent)
        until = BASE + round((second - self.disorder) * 1000)
        self.bench.eventually(
            lambda: self.bench.query("SELECT closed_until, published_until FROM {s}._aggregations") == [(until,) * 2],
            what=f"sessions up to {second} s are closed and published",
        )

    def get(self, **parameters: Any) -> httpx.Response:
        return self.client.get(f"http://{self.at}/aggregates/visits", params=parameters)

    def sessions(self, user: str, **parameters: Any) -> list[tuple[Any, ...]]:
        return rows_of(self.get(user=user, **parameters).json()["data"])


def rows_of(rows: list[dict[str, Any]]) -> list[tuple[Any, ...]]:
    """Return sessions as tuples (start, end, pages, landing, exit, seen, spent) with times in seconds."""
    return sorted(
        (second_of(row["window_start"]), second_of(row["window_end"]), *(row[name] for name in METRICS)) for row in rows
    )


METRICS = ("pages", "landing", "exit", "seen", "spent")


def second_of(text: str) -> float:
    return TIMES[text]


TIMES = {rfc3339_ms(BASE + tenth * 100): tenth / 10 for tenth in range(-6_000, 100_000)}


class Live:
    """A listener that stores the latest row of each session from live messages."""

    def __init__(self, live: ClientConnection) -> None:
        self._live = live
        self.rows: dict[tuple[str, str], dict[str, Any]] = {}

    def until(self, check: Callable[[], bool]) -> None:
        """Read messages until the condition holds."""
        while not check():
            message = json.loads(self._live.recv(timeout=30))
            for row in message.get("rows", ()):
                self.rows[row["user"], row["window_start"]] = row

    def sessions(self, user: str) -> list[tuple[Any, ...]]:
        rows = [row for row in self.rows.values() if row["window_start"] != row["window_end"]]
        return rows_of([row for row in rows if row["user"] == user])


@pytest.fixture
def site(make_bench: MakeBench, request: pytest.FixtureRequest) -> Any:
    """Start the pipeline. The parameter is `maxDisorder` in seconds."""
    disorder = getattr(request, "param", 1)
    document = copy.deepcopy(DOCUMENT)
    document["source"]["eventTime"]["maxDisorder"] = f"{disorder}s"
    spec, refs = PipelineSpec.model_validate(document), (AggregationRef(name="visits"),)
    bench = make_bench(PipelineConfig(namespace="tests", name="site", generation=1, spec=spec, aggregations=refs))
    with httpx.Client(timeout=20) as client:
        yield Site(bench, client, disorder)


def test_sessions_are_extended_merged_closed_and_published(site: Site) -> None:
    """A live listener sees the same sessions as REST, also after two sessions were merged."""
    with connect(f"ws://{site.at}/live?aggregations=visits") as socket:
        live = Live(socket)
        site.view((0, "a", "home", 0.0), (10, "a", "shop", 1.5), (5, "b", "home", 0.0))
        site.view((60, "a", "cart", 2.0), (70, "a", "paid", 8.5))
        separate = [(0.0, 40.0, 2, "home", "shop", 2, 1.5), (60.0, 100.0, 2, "cart", "paid", 2, 10.5)]
        assert site.sessions("a") == separate
        live.until(lambda: live.sessions("a") == separate)
        # This event is 25 s after one session and 25 s before the other, which merges them.
        site.view((35, "a", "shop", 0.0))
        merged = [(0.0, 100.0, 5, "home", "paid", 4, 12.0)]
        assert site.sessions("a") == merged
        live.until(lambda: live.sessions("a") == merged)
        assert [row["closed"] for row in site.get().json()["data"]] == [False, False]

        site.pass_time(150)
        assert site.sessions("a", closed="true") == merged
        results = [r for r in site.bench.records("results") if r["group"]["user"] in ("a", "b")]
        assert rows_of([{**r, **r["metrics"]} for r in results]) == sorted([*merged, *site.sessions("b")])

        # Events within a closed session are late, and old events that no open session takes are late too.
        site.view((20, "a", "late", 0.0), (-20, "c", "late", 0.0))
        # An open session is extended by an old event.
        site.view((140, "d", "there", 1.0))
        site.view((115, "d", "before", 1.0))
        assert site.sessions("a") == merged
        assert site.sessions("c") == []
        assert site.sessions("d") == [(115.0, 170.0, 2, "before", "there", 2, 2.0)]
        letters = site.bench.query("SELECT reason, windows FROM {s}._dead_letters ORDER BY event_time")
        assert letters == [("late", [BASE - 20_000]), ("late", [BASE + 20_000])]


def test_roll_ups_of_sessions_are_refused(site: Site) -> None:
    """The error names the parameter. Ranges, filters and order are accepted."""
    site.view((0, "a", "x", 1.0), (100, "a", "y", 2.0), (200, "b", "z", 3.0))
    for parameters in ({"granularity": "1h"}, {"granularity": "all"}, {"group_by": ""}, {"fill": "zero"}):
        answer = site.get(**parameters)
        assert (answer.status_code, answer.json()["parameter"]) == (400, next(iter(parameters)))
        assert "session windows" in answer.json()["detail"]
    later = {"from": rfc3339_ms(BASE + 50_000), "order": "-window_end", "limit": "1"}
    assert rows_of(site.get(**later).json()["data"]) == [(200.0, 230.0, 1, "z", "z", 1, 3.0)]
    assert [row["user"] for row in site.get(spent__gte="2").json()["data"]] == ["a", "b"]


@pytest.mark.parametrize("site", [4_000], indirect=True)
def test_sessions_are_exact_while_processors_are_killed(site: Site) -> None:
    """The events of each user are in both partitions, in any order. Closed sessions are scanned for anomalies."""
    rnd = random.Random(7)
    users = [f"u{n}" for n in range(40)] + [None]
    views = [(rnd.randrange(0, 30_000) / 10, rnd.choice(users), "p", 1.0) for _ in range(3_000)]
    views.append((1_500.0, "u0", "p", 1_000_000.0))
    victim = 0
    for start in range(0, len(views), 300):
        site.view(*views[start : start + 300])
        if start % 600 == 0:
            site.bench.processes[victim].kill()
            site.bench.start(victim)
            victim = 1 - victim
    rows, parameters = [], {"limit": "97"}
    while True:
        page = site.get(**parameters).json()
        rows += page["data"]
        if page["next_cursor"] is None:
            break
        parameters = {"limit": "97", "cursor": page["next_cursor"]}
    sessions = sorted(
        (str(row["user"]), second_of(row["window_start"]), second_of(row["window_end"]), row["pages"]) for row in rows
    )
    expected = []
    for user in users:
        times = sorted(second for second, who, _, _ in views if who == user)
        while times:
            number = next((n for n in range(1, len(times)) if times[n] - times[n - 1] >= 30), len(times))
            expected.append((str(user), times[0], times[number - 1] + 30, number))
            times = times[number:]
    assert sessions == sorted(expected)
    site.pass_time(9_000)
    site.bench.eventually(
        lambda: site.bench.query("SELECT group_key ->> 'user' FROM {s}._anomalies WHERE value > 1000000") == [("u0",)],
        what="the spree is an anomaly",
    )
