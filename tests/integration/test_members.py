"""Events as they come, on real servers: what ingest accepts, the processor counts, and the API answers from."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from typing import Any

import pytest

from bench import Bench, MakeBench
from tidemill_contract.resource.spec import PipelineSpec
from tidemill_contract.runtime import AggregationRef, PipelineConfig

pytestmark = pytest.mark.integration

BASE = 1_700_000_000_000 // 60_000 * 60_000


def config(name: str, fields: list[dict[str, Any]], **source: Any) -> PipelineConfig:
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


def ask(port: int, path: str, body: bytes | None = None, **headers: str) -> tuple[int, dict[str, Any]]:
    """Status and answer of a request, which is repeated until the service is there."""
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", body, headers)

    def answered() -> tuple[int, dict[str, Any]] | None:
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            return None if error.code == 503 else (error.code, json.load(error))
        except OSError:
            return None

    return Bench.eventually(answered, seconds=60, what=f"an answer of {path}")


def send(bench: Bench, port: int, events: list[Any], **headers: str) -> dict[str, Any]:
    """What ingest answers about events."""
    body = b"\n".join(json.dumps(event).encode() for event in events)
    path = f"/v1/pipelines/{bench.config.name}/events?results=all"
    return ask(port, path, body, **{"Content-Type": "application/x-ndjson", **headers})[1]


FIELDS = [
    {"name": "ts", "type": "timestamp", "path": "meta.createdAt"},
    {"name": "user_id", "type": "integer", "path": "user.id", "required": True},
    {"name": "plan", "type": "string", "path": "user.plan", "default": "free"},
    {"name": "amount", "type": "number", "path": "items[0].Amount"},
    {"name": "agent", "type": "string", "path": ["headers", "User-Agent"]},
]


def event(at: int, user: Any, **further: Any) -> dict[str, Any]:
    return {"meta": {"createdAt": BASE + at}, "user": user, **further}


NESTED: list[tuple[Any, tuple[str, str | None]]] = [
    (event(1, {"id": 1, "plan": "pro"}, items=[{"Amount": 2}], headers={"User-Agent": "curl"}), ("accepted", None)),
    (event(2, {"id": 2, "plan": "pro"}, items=[{"Amount": 0.5}, {"Amount": "x"}], headers=None), ("accepted", None)),
    (event(3, {"id": 3, "plan": None}, items=[], headers={"User-Agent": "curl"}), ("accepted", None)),
    (event(4, {"id": 4.0}, items=None), ("accepted", None)),
    (event(5, {"id": "5"}), ("mistyped", "user_id")),
    (event(6, None), ("missing_field", "user_id")),
    (event(7, {"id": 7}, items={"Amount": 1}), ("mistyped", "amount")),
]


def test_nested_events_count_as_they_are_accepted(make_bench: MakeBench) -> None:
    bench = make_bench(config("nested", FIELDS, key="user_id"))
    bench.start()
    bench.start(1, module="tidemill_ingest")
    bench.start(2, module="tidemill_api")
    _, ingest, api = bench.ports
    answer = send(bench, ingest, [members for members, _ in NESTED])
    found = [(row.get("code", row["status"]), row.get("field")) for row in answer["results"]]
    assert found == [verdict for _, verdict in NESTED]
    # Who writes to the topic gets the same verdicts.
    bench.produce([json.dumps(members).encode() for members, _ in NESTED])
    bench.await_consumed(2 * len(NESTED))
    expected = [verdict for _, verdict in NESTED if verdict[0] != "accepted"]
    letters = bench.query('SELECT reason, field, detail FROM {s}._dead_letters ORDER BY "offset"')
    assert [(reason, field) for reason, field, _ in letters] == expected * 2
    assert letters[0][2].endswith("it is read from user.id")
    path = f"/v1/pipelines/nested/aggregates/by_plan?from={BASE}&to={BASE + 60_000}"
    rows = ask(api, path)[1]["data"]
    assert [[row[name] for name in ("plan", "n", "total", "agents")] for row in rows] == [
        ["free", 4, None, 1], ["pro", 4, 5.0, 1],
    ]  # fmt: skip
    kept = ask(api, "/v1/pipelines/nested/events?user_id=3&limit=1")[1]["data"][0]["data"]
    assert kept == {"ts": BASE + 3, "user_id": 3, "plan": "free", "amount": None, "agent": "curl"}
    fields = ask(api, "/v1/pipelines/nested")[1]["fields"]
    assert [field["path"] for field in fields] == [
        "meta.createdAt", "user.id", "user.plan", "items[0].Amount", "headers.User-Agent",
    ]  # fmt: skip
