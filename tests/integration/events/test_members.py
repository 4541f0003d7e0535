"""Tests of source fields that are read from nested members, headers, keys and formatted times.

A real ingest, processor and API give the same outcome on each event.
"""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from bench import Bench, MakeBench
from tidemill_contract.resource.spec import PipelineSpec
from tidemill_contract.runtime import AggregationRef, PipelineConfig

pytestmark = pytest.mark.integration

BASE = 1_700_000_000_000 // 60_000 * 60_000


def config(name: str, fields: list[dict[str, Any]], *metrics: dict[str, Any], **source: Any) -> PipelineConfig:
    spec = PipelineSpec.model_validate(
        {
            "source": {
                "topic": {"partitions": 1},
                "fields": fields,
                "eventTime": {"field": "ts", "idleTimeout": "10m", "maxDisorder": "1s"},
                **source,
            },
            "aggregations": [
                {
                    "name": "by_plan",
                    "groupBy": ["plan"],
                    "window": {"type": "tumbling", "size": "1m"},
                    "metrics": [
                        {"name": "n", "function": "count"},
                        {"name": "total", "function": "sum", "field": "amount"},
                        {"name": "agents", "function": "distinct", "field": "agent"},
                        *metrics,
                    ],
                }
            ],
            "events": {"store": True},
            "processor": {"flushInterval": "100ms"},
            "auth": {"required": False},
        }
    )
    aggregations = tuple(AggregationRef(name=a.name) for a in spec.aggregations)
    return PipelineConfig(namespace="tests", name=name, generation=1, spec=spec, aggregations=aggregations)


def ask(port: int, path: str, body: bytes | None = None, **headers: str) -> dict[str, Any]:
    """Return the answer to a request. Repeat the request until the service answers."""

    def answered() -> dict[str, Any] | None:
        try:
            how = "GET" if body is None else "POST"
            answer = httpx.request(how, f"http://127.0.0.1:{port}{path}", content=body, headers=headers, timeout=10)
        except httpx.TransportError:
            return None
        return None if answer.status_code == httpx.codes.SERVICE_UNAVAILABLE else dict(answer.json())

    return Bench.eventually(answered, seconds=60, what=f"an answer of {path}")


def send(bench: Bench, port: int, events: list[Any], **headers: str) -> dict[str, Any]:
    """Post events to ingest, and return the answer."""
    body = b"\n".join(json.dumps(event).encode() for event in events)
    path = f"/v1/pipelines/{bench.config.name}/events?results=all"
    return ask(port, path, body, **{"Content-Type": "application/x-ndjson", **headers})


FIELDS = [
    {"name": "ts", "type": "timestamp", "path": "meta.createdAt"},
    {"name": "user_id", "type": "integer", "path": "user.id", "required": True},
    {"name": "plan", "type": "string", "path": "user.plan", "default": "free"},
    {"name": "amount", "type": "number", "path": "items[0].Amount"},
    {"name": "agent", "type": "string", "path": ["headers", "User-Agent"]},
    {"name": "tags", "type": "strings"},
]
TOP_TAGS = {"name": "top_tags", "function": "topk", "field": "tags", "k": 2}


def event(at: int, user: Any, **further: Any) -> dict[str, Any]:
    return {"meta": {"createdAt": BASE + at}, "user": user, **further}


CURL = {"User-Agent": "curl"}
NESTED: list[tuple[Any, tuple[str, str | None]]] = [
    (
        event(1, {"id": 1, "plan": "pro"}, items=[{"Amount": 2}], headers={"User-Agent": "curl"}, tags=["a", "b"]),
        ("accepted", None),
    ),
    (event(2, {"id": 2, "plan": "pro"}, items=[{"Amount": 0.5}, {"Amount": "x"}], headers=None), ("accepted", None)),
    (event(3, {"id": 3, "plan": None}, items=[], headers=CURL), ("accepted", None)),
    (event(4, {"id": 4.0}, items=None, tags=["a", "c", "c"]), ("accepted", None)),
    (event(4, {"id": 4}, tags="a"), ("mistyped", "tags")),
    (event(5, {"id": "5"}), ("mistyped", "user_id")),
    (event(6, None), ("missing_field", "user_id")),
    (event(7, {"id": 7}, items={"Amount": 1}), ("mistyped", "amount")),
]


def test_the_processor_counts_the_nested_events_that_ingest_accepts(make_bench: MakeBench) -> None:
    bench = make_bench(config("nested", FIELDS, TOP_TAGS, key="user_id"))
    bench.start()
    bench.start(1, module="tidemill_ingest")
    bench.start(2, module="tidemill_api")
    _, ingest, api = bench.ports
    answer = send(bench, ingest, [members for members, _ in NESTED])
    outcomes = [(row.get("code", row["status"]), row.get("field")) for row in answer["results"]]
    assert outcomes == [outcome for _, outcome in NESTED]
    # Events that are written directly to the topic get the same outcomes.
    bench.produce([json.dumps(members).encode() for members, _ in NESTED])
    bench.await_consumed(2 * len(NESTED))
    expected = [outcome for _, outcome in NESTED if outcome[0] != "accepted"]
    letters = bench.query('SELECT reason, field, detail FROM {s}._dead_letters ORDER BY "offset"')
    assert [(reason, field) for reason, field, _ in letters] == expected * 2
    assert letters[1][2].endswith("the field is read from user.id")
    path = f"/v1/pipelines/nested/aggregates/by_plan?from={BASE}&to={BASE + 60_000}"
    rows = ask(api, path)["data"]
    assert [[row[name] for name in ("plan", "n", "total", "agents")] for row in rows] == [
        ["free", 4, None, 1], ["pro", 4, 5.0, 1],
    ]  # fmt: skip
    assert [[(top["value"], top["count"]) for top in row["top_tags"]] for row in rows] == [
        [("c", 4), ("a", 2)], [("a", 2), ("b", 2)],
    ]  # fmt: skip
    stored = ask(api, "/v1/pipelines/nested/events?user_id=3&limit=1")["data"][0]["data"]
    assert stored == {"ts": BASE + 3, "user_id": 3, "plan": "free", "amount": None, "agent": "curl", "tags": None}
    fields = ask(api, "/v1/pipelines/nested")["fields"]
    assert [field["path"] for field in fields] == [
        "meta.createdAt", "user.id", "user.plan", "items[0].Amount", "headers.User-Agent", "tags",
    ]  # fmt: skip


ELSEWHERE = [
    {"name": "ts", "type": "timestamp", "format": "%d.%m.%Y %H:%M:%S", "zone": "Europe/Berlin", "path": "Zeit"},
    {"name": "seen", "type": "timestamp", "format": "s"},
    {"name": "plan", "type": "string", "from": "header", "path": "X-Plan", "required": True},
    {"name": "amount", "type": "integer", "from": "header", "path": "amount", "default": 1},
    {"name": "agent", "type": "string", "from": "key"},
    {"name": "at", "type": "integer", "from": "offset"},
    {"name": "shop", "type": "string"},
    {"name": "details", "type": "json", "path": "more.details"},
    {"name": "size", "type": "integer", "path": "more.details.size"},
]


def test_the_processor_counts_the_times_and_headers_that_ingest_accepts(make_bench: MakeBench) -> None:
    """The headers of a request become the headers of its events. 23:13 in Berlin is 22:13 in UTC in November."""
    bench = make_bench(config("elsewhere", ELSEWHERE, key="shop"))
    bench.start()
    bench.start(1, module="tidemill_ingest")
    bench.start(2, module="tidemill_api")
    _, ingest, api = bench.ports
    events = [
        {
            "Zeit": "14.11.2023 23:13:20",
            "shop": "a",
            "seen": 1_700_000_000.5,
            "more": {"details": {"size": 3, "x": [1]}},
        },
        {"Zeit": "14.11.2023 23:13:21", "shop": "b", "seen": "1700000000"},
        {"Zeit": "2023-11-14T23:13:20", "shop": "c"},
    ]
    accepted = send(bench, ingest, events, **{"X-Plan": "pro", "Amount": "5"})
    assert [row.get("code", row["status"]) for row in accepted["results"]] == ["accepted", "accepted", "mistyped"]
    refused = send(bench, ingest, events[:1])
    assert [(row["code"], row["field"]) for row in refused["results"]] == [("missing_field", "plan")]
    refused = send(bench, ingest, events[:1], **{"X-Plan": "pro", "Amount": "five"})
    assert [(row["code"], row["field"]) for row in refused["results"]] == [("mistyped", "amount")]
    headers = {"X-Plan": "pro", "Idempotency-Key": "k1"}
    assert send(bench, ingest, events[2:], **headers)["quarantined"] == 1
    assert send(bench, ingest, events[2:], **{**headers, "X-Plan": "free"})["code"] == "idempotency_key_reused"
    bench.produce([json.dumps(events[0]).encode()], headers=[("X-Plan", b"pro"), ("x-plan", b"free")])
    bench.await_consumed(7)
    letters = bench.query('SELECT reason, field FROM {s}._dead_letters ORDER BY "offset"')
    assert letters == [("mistyped", "ts"), ("missing_field", "plan"), ("mistyped", "amount"), ("mistyped", "ts")]
    start = 1_700_000_000_000 // 60_000 * 60_000
    path = f"/v1/pipelines/elsewhere/aggregates/by_plan?from={start}&to={start + 60_000}"
    rows = ask(api, path)["data"]
    assert [[row[name] for name in ("plan", "n", "total", "agents")] for row in rows] == [["pro", 3, 11, 2]]
    stored = ask(api, "/v1/pipelines/elsewhere/events?shop=a&order=offset")["data"]
    assert [row["data"] for row in stored] == [
        {
            "ts": 1_700_000_000_000, "seen": 1_700_000_000_500, "plan": "pro", "amount": amount, "agent": key,
            "at": offset, "shop": "a", "details": {"size": 3, "x": [1]}, "size": 3,
        }
        for amount, key, offset in ((5, "a", 0), (1, None, 6))
    ]  # fmt: skip
