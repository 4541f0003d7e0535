"""Tests of access to pipelines over the API: keys, allowed origins, and pipelines that change or are not set up.

Real servers: the session's Postgres, Redis and Kafka, and an API process for each test.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from bench import MakeBench
from pipelines.hourly_counts import PATH, get_beside_pipeline, hourly_counts, serving

pytestmark = pytest.mark.integration

KEY, OTHER = ("abc", "s3cret"), ("def", "0ther")


def test_a_key_with_the_query_scope_opens_every_answer_and_no_other_does(ready_bench: Callable[..., Any]) -> None:
    """Every route, cached or not, needs a key with the scope `query:read`."""
    bench = ready_bench("locked", auth=True, ttl="30s")
    keys = [
        {"id": KEY[0], "sha256": hashlib.sha256(KEY[1].encode()).hexdigest(), "scopes": ["query:read"]},
        {"id": OTHER[0], "sha256": hashlib.sha256(OTHER[1].encode()).hexdigest(), "scopes": ["events:append"]},
    ]
    file = bench.folder / "secrets" / "locked" / "api-keys.json"
    file.write_text(json.dumps({"keys": keys}))
    good = {"Authorization": f"Bearer tm_{KEY[0]}_{KEY[1]}"}
    with serving(bench) as client:
        for _ in range(2):  # the second answer comes from the cache
            allowed = client.get(PATH, headers=good)
            assert (allowed.status_code, allowed.headers["cache-control"].split(",")[0]) == (200, "private")
            refused = client.get(PATH)
            assert (refused.status_code, refused.json()["code"]) == (401, "unauthorized")
            assert refused.headers["www-authenticate"].startswith("Bearer")
            wrong = client.get(PATH, headers={"Authorization": f"Bearer tm_{KEY[0]}_nothing"})
            assert wrong.status_code == 401
            forbidden = client.get(PATH, headers={"Authorization": f"Bearer tm_{OTHER[0]}_{OTHER[1]}"})
            assert (forbidden.status_code, forbidden.json()["code"]) == (403, "forbidden")
        for path in ("/anomalies", "/dead-letters", "/events", f"{PATH}.csv"):
            assert client.get(path).status_code == 401, path
        assert client.post(f"{PATH}/query", json={}).status_code == 401
        pipelines = str(client.base_url.copy_with(path="/v1/pipelines"))
        assert httpx.get(pipelines).status_code == 401
        assert [p["name"] for p in httpx.get(pipelines, headers=good).json()["pipelines"]] == ["locked"]
        assert bench.health()["status"] == "healthy", "probes need no key"
        file.write_text(json.dumps({"keys": []}))
        bench.eventually(lambda: client.get(PATH, headers=good).status_code == 401, what="a revoked key is refused")


def test_origins_that_are_allowed_may_read(ready_bench: Callable[..., Any]) -> None:
    bench = ready_bench("crossing")
    with serving(bench, TIDEMILL_API_CORS_ORIGINS="https://a.example, https://b.example") as client:
        allowed = client.get(PATH, headers={"Origin": "https://b.example"})
        assert allowed.headers["access-control-allow-origin"] == "https://b.example"
        assert "etag" in allowed.headers["access-control-expose-headers"]
        assert "access-control-allow-origin" not in client.get(PATH, headers={"Origin": "https://c.example"}).headers


def test_a_dedicated_api_serves_its_pipeline_only(ready_bench: Callable[..., Any]) -> None:
    bench, _ = ready_bench("one"), ready_bench("two")
    with serving(bench) as client:
        assert get_beside_pipeline(client, "/v1/pipelines/two").status_code == 404
        assert get_beside_pipeline(client, "/v1/pipelines/one").status_code == 200
    with serving(bench, TIDEMILL_PIPELINE="") as client:
        listed = get_beside_pipeline(client, "/v1/pipelines").json()["pipelines"]
        assert [pipeline["name"] for pipeline in listed] == ["one", "two"]


def test_a_changed_or_removed_config_applies_without_a_restart(ready_bench: Callable[..., Any]) -> None:
    """Cached answers are not served after the pipeline requires a key or is removed."""
    bench = ready_bench("changing", ttl="30s")
    file = bench.folder / "changing.json"
    with serving(bench) as client:
        assert [client.get(PATH).status_code for _ in range(2)] == [200, 200]
        file.write_text(hourly_counts("changing", auth=True, ttl="30s").to_json())
        bench.eventually(lambda: client.get(PATH).status_code == 401, what="a request without a key is refused")
        file.unlink()
        bench.eventually(lambda: client.get(PATH).status_code == 404, what="the pipeline is not found")


def test_queries_of_a_pipeline_that_is_not_set_up_yet_are_503(make_bench: MakeBench) -> None:
    """Missing tables or logins of a pipeline leave /health at `healthy`."""
    bench = make_bench(hourly_counts("early"))
    with serving(bench) as client:
        bench.query("WITH deleted AS (DELETE FROM {s}._aggregations RETURNING 1) SELECT count(*) FROM deleted")
        answer = client.get(PATH)
        assert (answer.status_code, answer.json()["code"]) == (503, "pipeline_not_ready")
        for name in ("reader.json", "writer.json"):
            (bench.folder / "secrets" / "early" / name).unlink()
        for number in range(8):
            assert client.get(PATH, params={"limit": number + 1}).json()["code"] == "pipeline_not_ready"
        assert bench.health()["status"] == "healthy"
