"""Tests of requests that the REST API refuses, of its metrics and of its OpenAPI document.

Real servers: the session's Postgres, Redis and Kafka, and one API process over a pipeline without events.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from bench import MakeBench
from shop_recomputed import Api, api_of, config

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def api(make_shared_bench: MakeBench) -> Iterator[Api]:
    bench = make_shared_bench(config())
    with api_of(bench) as api:
        yield api


REFUSED: list[tuple[str, int, str]] = [
    ("/v1/pipelines/none", 404, "pipeline_not_found"),
    ("/v1/pipelines/shop/aggregates/none", 404, "aggregation_not_found"),
    ("/v1/pipelines/shop/aggregates/total.xml", 404, "aggregation_not_found"),
    ("/v1/pipelines/shop/nothing", 404, "path_not_found"),
    ("/v1/pipelines/shop/aggregates/total?limit=0", 400, "invalid_parameter"),
    ("/v1/pipelines/shop/aggregates/total?limit=10001", 400, "invalid_parameter"),
    ("/v1/pipelines/shop/aggregates/total?limit=1&limit=2", 400, "invalid_parameter"),
    ("/v1/pipelines/shop/aggregates/total?limt=1", 400, "unknown_parameter"),
    ("/v1/pipelines/shop/aggregates/total?country=NO", 400, "unknown_parameter"),
    ("/v1/pipelines/shop/aggregates/total?from=yesterday", 400, "invalid_parameter"),
    ("/v1/pipelines/shop/aggregates/total?from=2&to=1", 400, "invalid_parameter"),
    ("/v1/pipelines/shop/aggregates/total?to=99999999999999999", 400, "invalid_parameter"),
    ("/v1/pipelines/shop/aggregates/total?granularity=7m", 400, "invalid_parameter"),
    ("/v1/pipelines/shop/aggregates/total?granularity=1d&tz=Mars/Olympus", 400, "invalid_parameter"),
    ("/v1/pipelines/shop/aggregates/total?granularity=1d&tz=Europe/Berlin'--", 400, "invalid_parameter"),
    ("/v1/pipelines/shop/aggregates/by_store?granularity=1d&tz=Asia/Kathmandu", 400, "invalid_parameter"),
    ("/v1/pipelines/shop/aggregates/total?fill=zero", 400, "invalid_parameter"),
    ("/v1/pipelines/shop/aggregates/total?fill=zero&from=0&to=1000000000000", 400, "invalid_parameter"),
    ("/v1/pipelines/shop/aggregates/total?order=n,n", 400, "invalid_parameter"),
    ("/v1/pipelines/shop/aggregates/by_store?order=p90", 400, "invalid_parameter"),
    ("/v1/pipelines/shop/aggregates/by_store?sizes__gt=5", 400, "invalid_parameter"),
    ("/v1/pipelines/shop/aggregates/by_store?order=common", 400, "invalid_parameter"),
    ("/v1/pipelines/shop/aggregates/by_store?common=NO", 400, "invalid_parameter"),
    ("/v1/pipelines/shop/aggregates/total?order=%22;DROP", 400, "invalid_parameter"),
    ("/v1/pipelines/shop/aggregates/total?metrics=nothing", 400, "invalid_parameter"),
    ("/v1/pipelines/shop/aggregates/total?n__gte=x", 400, "invalid_parameter"),
    ("/v1/pipelines/shop/aggregates/by_store?country=%00", 400, "invalid_parameter"),
    ("/v1/pipelines/shop/aggregates/by_store?country=%ff", 400, "invalid_query_string"),
    ("/v1/pipelines/shop/aggregates/by_store?group_by=mood", 400, "invalid_parameter"),
    ("/v1/pipelines/shop/aggregates/total?cursor=abc", 400, "bad_cursor"),
    ("/v1/pipelines/shop/dead-letters?value=x", 400, "invalid_parameter"),
    ("/v1/pipelines/shop/events?data=x", 400, "invalid_parameter"),
    ("/v1/pipelines?x=1", 400, "unknown_parameter"),
]  # fmt: skip


@pytest.mark.parametrize(("path", "status", "code"), REFUSED)
def test_a_refused_request_is_answered_with_a_problem_and_a_code(api: Api, path: str, status: int, code: str) -> None:
    answer = api.client.get(path)
    body = answer.json()
    assert (answer.status_code, body["code"], body["status"]) == (status, code, status), body
    assert answer.headers["content-type"] == "application/problem+json"
    assert body["detail"]


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 400), (b"[]", 400), (b"{", 400), (b'{"limit": null}', 400), (b'{"limit": 1.5}', 400),
        (b'{"n": {"a": 1}}', 400), (b'{"limit": 1e999}', 400), (b'{"' + b"x" * 70_000 + b'": 1}', 413),
        (b'{"closed": false, "group_by": []}', 200), (b"[" * 20_000, 400), (b'{"\xff": 1}', 400),
    ],
)  # fmt: skip
def test_the_body_of_a_query_must_be_an_object_of_parameters(api: Api, body: bytes, status: int) -> None:
    answer = api.client.post("/v1/pipelines/shop/aggregates/total/query", content=body)
    assert answer.status_code == status, answer.text


def test_a_method_that_a_path_lacks_is_405_and_names_the_allowed_methods(api: Api) -> None:
    answer = api.client.delete("/v1/pipelines/shop/aggregates/total")
    assert (answer.status_code, answer.json()["code"]) == (405, "method_not_allowed")
    assert "GET" in answer.headers["allow"]


def test_metrics_count_requests_by_route_and_hits_of_the_cache(api: Api) -> None:
    for _ in range(3):
        api.get("/aggregates/total", limit=3)
    api.get("/dead-letters")
    text = api.bench.metrics()
    template = 'endpoint="/v1/pipelines/{pipeline}/aggregates/{aggregation}"'
    assert f'http_requests_total{{{template},method="GET",status_code="200"}}' in text
    assert f"http_request_duration_seconds_bucket{{{template}" in text
    for name in (
        'cache_hits_total{operation="aggregates"}', 'cache_misses_total{operation="aggregates"}', "db_connections ",
        'events_queried_total{event_type="aggregates"}', 'events_queried_total{event_type="dead_letters"}',
    ):  # fmt: skip
        assert name in text
    assert "/v1/pipelines/shop" not in text, "labels have the route, not the requested path"


def test_the_openapi_document_has_all_routes(api: Api) -> None:
    """The page that shows the document loads nothing from other hosts."""
    document = api.client.get("/openapi.json").json()
    assert {
        "/v1/pipelines", "/v1/pipelines/{pipeline}", "/v1/pipelines/{pipeline}/aggregates/{aggregation}",
        "/v1/pipelines/{pipeline}/aggregates/{aggregation}.csv",
        "/v1/pipelines/{pipeline}/aggregates/{aggregation}/query", "/v1/pipelines/{pipeline}/anomalies",
        "/v1/pipelines/{pipeline}/dead-letters", "/v1/pipelines/{pipeline}/events", "/v1/pipelines/{pipeline}/live",
        "/health", "/livez", "/readyz",
    } <= set(document["paths"])  # fmt: skip
    page = api.client.get("/docs")
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert "http://" not in page.text
    assert "https://" not in page.text
    for name in ("reference.css", "reference.js"):
        assert f"/docs/{name}" in page.text
        assert api.client.get(f"/docs/{name}").status_code == 200


def test_pages_of_other_origins_may_not_read_answers(api: Api) -> None:
    answer = api.client.get("/v1/pipelines", headers={"Origin": "http://elsewhere.example"})
    assert "access-control-allow-origin" not in answer.headers
