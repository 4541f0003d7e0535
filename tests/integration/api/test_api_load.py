"""Tests of the API under load: concurrent and slow requests, slow readers and large answers.

Real servers: the session's Postgres, Redis and Kafka, and an API process for each test.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import psycopg
import pytest

from bench import Bench
from pipelines.hourly_counts import BASE, PATH, dependency, serving

pytestmark = pytest.mark.integration


def test_concurrent_requests_for_the_same_answer_cost_one_query(ready_bench: Callable[..., Any]) -> None:
    """A hundred requests for an answer that is not cached cost one query of the database."""
    bench = ready_bench("stampede", ttl="10s")
    with serving(bench) as client:

        async def all_at_once() -> list[httpx.Response]:
            limits = httpx.Limits(max_connections=100)
            async with httpx.AsyncClient(base_url=client.base_url, timeout=30, limits=limits) as http:
                return await asyncio.gather(*(http.get(PATH, params={"limit": 3}) for _ in range(100)))

        answers = asyncio.run(all_at_once())
        assert {answer.status_code for answer in answers} == {200}
        assert len({answer.content for answer in answers}) == 1
        text = bench.metrics()
        assert 'cache_misses_total{operation="aggregates"} 1.0' in text


def test_an_export_whose_client_does_not_read_is_ended(ready_bench: Callable[..., Any]) -> None:
    """Exports that nobody reads delay no page. Another export starts as soon as one of them is ended."""
    bench = ready_bench("streams")
    bench.query(
        "INSERT INTO {s}.by_k_v1 (k, window_start, _rev, _count)"
        " SELECT repeat('x', 900) || g, to_timestamp(%s / 1000.0), 1, g FROM generate_series(1, 60000) AS g"
        " RETURNING 1",
        (BASE,),
    )
    with serving(bench) as client:
        with client.stream("GET", f"{PATH}.ndjson") as lines, client.stream("GET", f"{PATH}.csv") as table:
            assert (lines.status_code, table.status_code) == (200, 200)
            for number in range(1, 9):
                assert client.get(PATH, params={"limit": number}).status_code == 200
            assert client.get(f"{PATH}.csv", params={"limit": 1}).status_code == 200
            bench.eventually(lambda: "tidemill_slow_readers_total 2.0" in bench.metrics(), what="both are ended")
            with pytest.raises(httpx.RemoteProtocolError):
                lines.read()
        whole = client.get(f"{PATH}.ndjson").text.splitlines()
        assert len(whole) == 60_020


@contextlib.contextmanager
def windows_locked(bench: Bench) -> Iterator[None]:
    """Lock the table of windows during the block, so that queries of it wait."""
    at = bench.servers.postgres
    with psycopg.connect(
        host=at.host, port=at.port, dbname=at.database, user=at.user, password=at.password
    ) as connection:
        connection.execute(f"LOCK TABLE {bench.schema}.by_k_v1 IN ACCESS EXCLUSIVE MODE")
        yield
        connection.rollback()


def test_a_request_that_takes_too_long_is_refused(ready_bench: Callable[..., Any]) -> None:
    """The limit of the request is below that of the database. Later requests are answered again."""
    bench = ready_bench("slow")
    limits = {
        "TIDEMILL_RESILIENCE__TIMEOUTS__API_REQUEST_SECONDS": "1",
        "TIDEMILL_RESILIENCE__TIMEOUTS__DATABASE_QUERY_SECONDS": "20",
    }
    with serving(bench, **limits) as client:
        with windows_locked(bench):
            answer = client.get(PATH)
            assert answer.status_code in (503, 504)
            assert answer.json()["code"] in ("database_unavailable", "request_timeout")
        bench.eventually(lambda: client.get(PATH).status_code == 200, what="an answer after the lock is released")


def test_slow_queries_of_a_pipeline_delay_no_other_pipeline(ready_bench: Callable[..., Any]) -> None:
    """Queries that time out are 504, open no circuit breaker, and are not retried."""
    bench, _ = ready_bench("heavy"), ready_bench("light")
    with serving(bench, TIDEMILL_PIPELINE="", TIDEMILL_RESILIENCE__TIMEOUTS__DATABASE_QUERY_SECONDS="5") as client:
        light = str(client.base_url.copy_with(path=f"/v1/pipelines/light{PATH}"))
        with windows_locked(bench):

            async def slow_queries() -> list[httpx.Response]:
                async with httpx.AsyncClient(base_url=client.base_url, timeout=30) as http:
                    pages = [http.get(PATH, params={"limit": number}) for number in range(1, 7)]
                    return await asyncio.gather(*pages, http.get(f"{PATH}.csv"))

            for answer in asyncio.run(slow_queries()):
                assert (answer.status_code, answer.json()["code"]) == (504, "query_timeout")
            assert httpx.get(light).status_code == 200
            assert dependency(bench, "postgres")["breaker"] == "closed"
        assert client.get(PATH).status_code == 200, "the breaker of the slow pipeline must be closed too"
        metrics = bench.metrics()
        assert 'tidemill_retries_total{name="database/heavy"} 0.0' in metrics, "no query may be retried"


def test_a_fill_with_too_many_groups_and_windows_is_refused(ready_bench: Callable[..., Any]) -> None:
    """Pages and exports are refused alike. A filter or `group_by` that leaves fewer groups is accepted."""
    bench = ready_bench("filled")
    hours = {"from": "2020-01-01T00:00:00Z", "to": "2025-12-31T00:00:00Z", "fill": "zero", "limit": "5"}
    with serving(bench) as client:
        for path in (PATH, f"{PATH}.csv", f"{PATH}.ndjson"):
            refused = client.get(path, params=hours)
            assert (refused.status_code, refused.json()["parameter"]) == (400, "fill"), refused.text
            assert refused.json()["detail"].startswith(
                "fill: 20 groups and 52584 windows between from and to make 1051680 rows; at most 1000000 are allowed"
            )
        assert client.get(PATH, params={**hours, "group_by": ""}).status_code == 200
        assert len(client.get(PATH, params={**hours, "k__in": "k1,k2"}).json()["data"]) == 5
        assert client.get(PATH, params={**hours, "k": "nobody"}).json()["data"] == []
