"""Tests of metrics that are added, removed and edited while processors and API run on real servers."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import httpx
import psycopg
import pytest
from websockets.sync.client import connect

from bench import Bench, MakeBench
from tidemill_contract.resource.spec import PipelineSpec
from tidemill_contract.runtime import AggregationRef, PipelineConfig, PostgresCredentials
from tidemill_contract.times import rfc3339_ms
from tidemill_operator.actuators.base import PipelineSecrets
from tidemill_operator.actuators.postgres.schema import PostgresSchemas
from tidemill_operator.outcome import Rank
from tidemill_operator.plan.live import Owner
from tidemill_operator.plan.postgres.schema import desired_schema

pytestmark = pytest.mark.integration

MINUTE = 60_000
BASE = 1_700_000_000_000 // (6 * MINUTE) * 6 * MINUTE
TOTAL = {"name": "total", "function": "sum", "field": "i"}
TOP = {"name": "top", "function": "max", "field": "i"}
N = {"name": "n", "function": "count"}
OFTEN = {"name": "often", "function": "topk", "field": "k", "k": 1}
OF_A = {"name": "of_a", "function": "count", "where": "k = 'a'"}


def config(generation: int, by_k: list[dict[str, Any]], hops: list[dict[str, Any]], *watched: str) -> PipelineConfig:
    spec = PipelineSpec.model_validate(
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
                {"name": "by_k", "groupBy": ["k"], "window": {"type": "tumbling", "size": "1m"}, "metrics": [N, *by_k]},
                {"name": "hops", "window": {"type": "hopping", "size": "3m", "hop": "1m"}, "metrics": [N, *hops]},
            ],
            "anomalies": [{"name": metric, "aggregation": "hops", "metric": metric} for metric in watched],
            "processor": {"flushInterval": "100ms"},
            "auth": {"required": False},
            "api": {"cacheTtl": "0s"},
        }
    )
    refs = tuple(AggregationRef(name=a.name) for a in spec.aggregations)
    return PipelineConfig(namespace="tests", name="added", generation=generation, spec=spec, aggregations=refs)


class Rollout:
    """The pipeline, its edits and its answers; a window's key is the minute of its start."""

    def __init__(self, bench: Bench, client: httpx.Client) -> None:
        self.bench, self.client, self.sent = bench, client, 0
        self._ensure(bench.config)
        bench.start()
        bench.start(module="tidemill_api")
        self.at = f"127.0.0.1:{bench.ports[-1]}/v1/pipelines/added"
        bench.eventually(bench.health, what="the API answers")

    def _ensure(self, wanted: PipelineConfig) -> None:
        schema = desired_schema(wanted)
        logins = PipelineSecrets(
            PostgresCredentials(user=schema.writer, password="w"), PostgresCredentials(user=schema.reader, password="r")
        )
        owner = Owner("tests", "added", "uid-1", "local")
        (outcome,) = PostgresSchemas(self.bench.servers.postgres).ensure(schema, owner=owner, secrets=logins)
        assert outcome.rank == Rank.DONE, outcome

    def apply(self, wanted: PipelineConfig) -> None:
        """Apply a config as the operator does: change the schema, write the config, and replace the processor."""
        self._ensure(wanted)
        (self.bench.folder / "added.json").write_text(wanted.to_json())
        old = next(p for p in reversed(self.bench.processes) if "tidemill_processor" in p.args)
        self.bench.start(wanted.generation)
        self.bench.eventually(self.bench.health, what="the new processor answers")
        old.terminate()
        assert old.wait(20) == 0
        self.bench.eventually(
            lambda: self._get("").json()["generation"] == wanted.generation, what="the API has the new config"
        )

    def produce(self, *minutes: tuple[int, str]) -> None:
        """Send one event to each partition for each of these minutes and groups; wait until they are counted."""
        events = [
            {"ts": BASE + minute * MINUTE + 2_000 + n, "k": group, "i": 10} for minute, group in minutes for n in (1, 2)
        ]
        self.bench.produce([json.dumps(event).encode() for event in events])
        self.sent += len(events)
        self.bench.await_consumed(self.sent)

    def await_closed(self, minute: int) -> None:
        """Wait until windows that end at this minute are closed and published."""
        self.bench.eventually(
            lambda: (
                self.bench.query("SELECT min(published_until) FROM {s}._aggregations")[0][0] == BASE + minute * MINUTE
            ),
            what=f"windows up to minute {minute} published",
        )

    def rows(self, aggregation: str, **parameters: Any) -> list[dict[str, Any]]:
        return list(self._get(f"/aggregates/{aggregation}", **parameters).json()["data"])

    def csv(self, aggregation: str, **parameters: Any) -> list[str]:
        """Return the lines of the CSV answer."""
        return self._get(f"/aggregates/{aggregation}.csv", **parameters).text.split()

    def _get(self, path: str, **parameters: Any) -> httpx.Response:
        answer = self.client.get(f"http://{self.at}{path}", params=parameters)
        assert answer.status_code == 200, answer.text
        return answer

    def answers(self, aggregation: str, metric: str, **parameters: Any) -> dict[Any, Any]:
        """Return a metric as REST answers it, by group (if the rows have one) and minute."""
        return by_minute(self.rows(aggregation, **parameters), metric)

    def snapshot(self, aggregation: str, metric: str) -> dict[Any, Any]:
        """Return a metric in the snapshot of a WebSocket."""
        with connect(f"ws://{self.at}/live?aggregations={aggregation}") as live:
            while True:
                message = json.loads(live.recv(timeout=20))
                if message["type"] == "snapshot":
                    return by_minute(message["rows"], metric)

    def results(self, number: int) -> dict[tuple[Any, ...], dict[str, Any]]:
        """Read this number of different records of the results topic: metrics by aggregation, group and minute."""
        records: dict[tuple[Any, ...], dict[str, Any]] = {}
        deadline = time.monotonic() + 30
        with self.bench.reading("results") as consumer:
            while len(records) < number and time.monotonic() < deadline:
                for message in consumer.consume(100, 0.5):
                    record = json.loads(message.value())
                    minute = MINUTES[record["window_start"]]
                    records[record["aggregation"], *record["group"].values(), minute] = record["metrics"]
        return records


MINUTES = {rfc3339_ms(BASE + minute * MINUTE): minute for minute in range(-5, 20)}


def by_minute(rows: list[dict[str, Any]], metric: str) -> dict[Any, Any]:
    return {
        (row["k"], MINUTES[row["window_start"]]) if "k" in row else MINUTES[row["window_start"]]: row[metric]
        for row in rows
    }


@pytest.fixture
def rollout(make_bench: MakeBench, admin: psycopg.Connection[Any]) -> Iterator[Rollout]:
    bench = make_bench(config(1, [], []))
    admin.execute(f"DROP SCHEMA {bench.schema} CASCADE".encode())
    with httpx.Client(timeout=20) as client:
        yield Rollout(bench, client)


def test_added_metrics_are_exact_or_null_while_the_pipeline_runs(rollout: Rollout) -> None:
    """No window answers a partial value, and unchanged metrics stay exact throughout."""
    rollout.produce((0, "a"), (0, "a"), (1, "a"))
    rollout.await_closed(1)

    rollout.apply(config(2, [TOTAL], [TOP]))
    assert rollout.answers("by_k", "total") == {("a", 0): None, ("a", 1): None}
    rollout.produce((1, "a"), (1, "b"), (2, "a"), (3, "a"))
    rollout.await_closed(3)
    whole = {("a", 0): None, ("a", 1): None, ("b", 1): 20, ("a", 2): 20, ("a", 3): 20}
    assert rollout.answers("by_k", "n") == {("a", 0): 4, ("a", 1): 4, ("b", 1): 2, ("a", 2): 2, ("a", 3): 2}
    assert rollout.answers("by_k", "total") == whole
    assert rollout.snapshot("by_k", "total") == whole
    assert rollout.answers("by_k", "total", group_by="") == {0: None, 1: None, 2: 20, 3: 20}
    assert rollout.answers("by_k", "total", granularity="2m") == {("a", 0): None, ("b", 0): 20, ("a", 2): 40}
    assert rollout.answers("by_k", "n", total__gte=0, metrics="n") == {("b", 1): 2, ("a", 2): 2, ("a", 3): 2}
    lines = rollout.csv("by_k", metrics="total", group_by="")
    assert [line.rpartition(",")[2] for line in lines] == ["total", "", "", "20", "20"]
    tops = {-2: None, -1: None, 0: None, 1: None, 2: 10, 3: 10}
    assert rollout.answers("hops", "top") == tops
    assert rollout.snapshot("hops", "top") == tops

    rollout.apply(config(3, [], [TOP]))
    rollout.produce((3, "a"))
    rollout.apply(config(4, [TOTAL], [TOP]))
    rollout.produce((3, "a"), (4, "a"), (5, "a"), (6, "a"))
    rollout.await_closed(6)
    again = {("a", 0): None, ("a", 1): None, ("b", 1): 20, ("a", 2): 20, ("a", 3): None}
    assert rollout.answers("by_k", "total") == again | {("a", 4): 20, ("a", 5): 20, ("a", 6): 20}
    assert rollout.answers("by_k", "n", group_by="") == {0: 4, 1: 6, 2: 2, 3: 6, 4: 2, 5: 2, 6: 2}
    assert rollout.answers("hops", "top") == tops | {4: 10, 5: 10, 6: 10}

    # The windows of six minutes by group, and the hopping windows that end by then.
    published = rollout.results(7 + 6)
    assert {key[1:]: metrics for key, metrics in published.items() if key[0] == "by_k"} == {
        ("a", 0): {"n": 4},
        ("a", 1): {"n": 4, "total": None},
        ("b", 1): {"n": 2, "total": 20},
        ("a", 2): {"n": 2, "total": 20},
        ("a", 3): {"n": 6, "total": None},
        ("a", 4): {"n": 2, "total": 20},
        ("a", 5): {"n": 2, "total": 20},
    }
    assert {key[1]: metrics.get("top") for key, metrics in published.items() if key[0] == "hops"} == {
        -2: None, -1: None, 0: None, 1: None, 2: 10, 3: 10,
    }  # fmt: skip


def test_an_added_list_is_null_in_windows_with_events_and_can_grow_at_once(rollout: Rollout) -> None:
    """A larger `k` uses the stored values, so that it holds for all windows."""

    def listed(*counts: tuple[str, int]) -> list[dict[str, Any]]:
        return [{"value": value, "count": count, "error": 0} for value, count in counts]

    rollout.produce((0, "a"), (1, "a"))
    rollout.apply(config(2, [], [OFTEN]))
    rollout.produce((2, "a"), (2, "b"), (2, "b"), (3, "b"))
    short = {-2: None, -1: None, 0: None, 1: None, 2: listed(("b", 6)), 3: listed(("b", 2))}
    assert rollout.answers("hops", "often") == rollout.snapshot("hops", "often") == short

    rollout.apply(config(3, [], [{**OFTEN, "k": 2}]))
    assert rollout.answers("hops", "often") == {**short, 2: listed(("b", 6), ("a", 2))}
    rollout.produce((4, "c"))
    longer = {**short, 2: listed(("b", 6), ("a", 2)), 3: listed(("b", 2), ("c", 2)), 4: listed(("c", 2))}
    assert rollout.answers("hops", "often") == rollout.snapshot("hops", "often") == longer
    assert rollout.answers("hops", "often", granularity="4m") == {0: None, 4: listed(("c", 2))}

    rollout.produce((8, "d"))
    rollout.await_closed(8)
    published = rollout.results(6 + 7)
    assert {key[1]: metrics["often"] for key, metrics in published.items() if key[0] == "hops"} == longer


def test_a_metric_with_an_edited_condition_is_null_in_windows_with_events(rollout: Rollout) -> None:
    """The former condition counted the events of these windows. An edit of only blanks and brackets changes nothing."""
    rollout.produce((0, "a"), (1, "b"))
    rollout.apply(config(2, [], [OF_A]))
    rollout.produce((2, "a"), (2, "b"), (3, "b"))
    expected = {-2: None, -1: None, 0: None, 1: None, 2: 2, 3: 0}
    assert rollout.answers("hops", "of_a") == rollout.snapshot("hops", "of_a") == expected
    assert rollout.answers("hops", "of_a", of_a__gte=1) == {2: 2}

    rollout.apply(config(3, [], [{**OF_A, "where": "(K='a')"}]))
    assert rollout.answers("hops", "of_a") == expected
    rollout.apply(config(4, [], [{**OF_A, "where": "k <> 'a'"}]))
    rollout.produce((4, "a"), (5, "b"), (5, "c"))
    edited = dict.fromkeys(range(-2, 4)) | {4: 4, 5: 4}
    assert rollout.answers("hops", "of_a") == rollout.snapshot("hops", "of_a") == edited
    assert rollout.answers("hops", "of_a", granularity="4m") == {0: None, 4: 4}

    rollout.produce((9, "d"))
    rollout.await_closed(9)
    published = rollout.results(6 + 8)
    assert {key[1]: metrics["of_a"] for key, metrics in published.items() if key[0] == "hops"} == edited


def test_an_expression_is_computed_from_merged_windows(rollout: Rollout) -> None:
    """It is right in hopping windows, roll-ups, snapshots and results. An edit applies to all windows at once."""
    each, share = {"name": "each", "expression": "total / n"}, {"name": "share", "expression": "of_a / n"}
    rollout.apply(config(2, [each, TOTAL], [share, OF_A], "share"))
    rollout.produce((0, "a"), (1, "a"), (1, "b"), (2, "b"))
    shares = {-2: 1.0, -1: 4 / 6, 0: 0.5, 1: 2 / 6, 2: 0.0}
    assert rollout.answers("hops", "share") == rollout.snapshot("hops", "share") == shares
    assert rollout.answers("hops", "share", granularity="2m") == {0: 4 / 6, 2: 0.0}
    assert rollout.answers("hops", "share", share__gt=0.6, metrics="share") == {-2: 1.0, -1: 4 / 6}
    assert [row["share"] for row in rollout.rows("hops", order="-share")] == sorted(shares.values(), reverse=True)
    assert set(rollout.answers("by_k", "each", group_by="").values()) == {10.0}
    span = {"from": BASE + 5 * MINUTE, "to": BASE + 6 * MINUTE}
    (empty,) = rollout.rows("hops", granularity="1m", fill="zero", **span)
    assert (empty["n"], empty["of_a"], empty["share"]) == (0, 0, None)
    rollout.await_closed(2)

    rollout.apply(config(3, [each, TOTAL], [{**share, "expression": "1 - of_a / n"}, OF_A], "share"))
    edited = {minute: 1 - value for minute, value in shares.items()}
    assert rollout.answers("hops", "share") == rollout.snapshot("hops", "share") == edited
    rollout.produce((6, "c"))
    rollout.await_closed(6)
    published = rollout.results(4 + 5)
    assert {key[1]: metrics["share"] for key, metrics in published.items() if key[0] == "hops"} == {
        **edited, -2: 1.0, -1: 4 / 6,  # published before the edit
    }  # fmt: skip
    states = "SELECT state FROM {s}._detectors WHERE anomaly = 'share'"
    rollout.bench.eventually(lambda: rollout.bench.query(states) != [], what="a rule has judged the expression")
    assert rollout.bench.query("SELECT * FROM {s}._skipped") == []
    assert {metrics["each"] for key, metrics in published.items() if key[0] == "by_k"} == {10.0}
