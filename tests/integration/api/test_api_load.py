"""Limits of an API process: concurrent and slow requests, slow readers and large answers.

Real servers: Postgres, Redis and Kafka of the session, and one API process per test.
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


def test_many_ask_the_same_and_it_is_computed_once(ready_bench: Callable[..., Any]) -> None:
    """A hundred callers of one query that is not cached cost one query of the database."""
    bench = ready_bench("stampede", ttl="10s")
    with serving(bench) as client:

        async def all_at_once() -> list[httpx.Response]:
            limits = httpx.Limits(max_connections=100)
            async with httpx.AsyncClient(base_url=client.base_url, timeout=30, limits=limits) as many:
                return await asyncio.gather(*(many.get(PATH, params={"limit": 3}) for _ in range(100)))

        answers = asyncio.run(all_at_once())
        assert {answer.status_code for answer in answers} == {200}
        assert len({answer.content for answer in answers}) == 1
        text = bench.metrics()
        assert 'cache_misses_total{operation="aggregates"} 1.0' in text


def test_who_does_not_read_an_export_loses_its_place(ready_bench: Callable[..., Any]) -> None:
    """Exports have places of their own: pages are answered as ever, another export once an unread one is ended."""
    bench = ready_bench("streams")
    bench.query(
        "INSERT INTO {s}.by_k_v1 (k, window_start, _rev, _count)"
        " SELECT repeat('x', 900) || g, to_timestamp(%s / 1000.0), 1, g FROM generate_series(1, 60000) AS g"
        " RETURNING 1",
        (BASE,),
    )
    with serving(bench) as client:
        with client.stream("GET", f"{PATH}.ndjson") as one, client.stream("GET", f"{PATH}.csv") as two:
            assert (one.status_code, two.status_code) == (200, 200)
            for number in range(1, 9):
                assert client.get(PATH, params={"limit": number}).status_code == 200
            assert client.get(f"{PATH}.csv", params={"limit": 1}).status_code == 200
            bench.eventually(lambda: "tidemill_slow_readers_total 2.0" in bench.metrics(), what="both are ended")
            with pytest.raises(httpx.RemoteProtocolError):
                one.read()
        whole = client.get(f"{PATH}.ndjson").text.splitlines()
        assert len(whole) == 60_020


@contextlib.contextmanager
def windows_locked(bench: Bench) -> Iterator[None]:
    """Nobody can read the windows meanwhile."""
    at = bench.servers.postgres
    with psycopg.connect(
        host=at.host, port=at.port, dbname=at.database, user=at.user, password=at.password
    ) as connection:
        connection.execute(f"LOCK TABLE {bench.schema}.by_k_v1 IN ACCESS EXCLUSIVE MODE")
        yield
        connection.rollback()


def test_an_answer_that_takes_too_long_is_ended(ready_bench: Callable[..., Any]) -> None:
    """The request's time is over before the database's: 503 or 504, and the connection serves on."""
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
        bench.eventually(lambda: client.get(PATH).status_code == 200, what="an answer afterwards")


def test_one_pipelines_load_is_not_anothers(ready_bench: Callable[..., Any]) -> None:
    """Queries that take too long are told so, one after another; others are answered, and so is the pipeline then."""
    bench, _ = ready_bench("heavy"), ready_bench("light")
    with serving(bench, TIDEMILL_PIPELINE="", TIDEMILL_RESILIENCE__TIMEOUTS__DATABASE_QUERY_SECONDS="5") as client:
        light = str(client.base_url.copy_with(path=f"/v1/pipelines/light{PATH}"))
        with windows_locked(bench):

            async def in_vain() -> list[httpx.Response]:
                async with httpx.AsyncClient(base_url=client.base_url, timeout=30) as many:
                    pages = [many.get(PATH, params={"limit": number}) for number in range(1, 7)]
                    return await asyncio.gather(*pages, many.get(f"{PATH}.csv"))

            for answer in asyncio.run(in_vain()):
                assert (answer.status_code, answer.json()["code"]) == (504, "query_timeout")
            assert httpx.get(light).status_code == 200
            assert dependency(bench, "postgres")["breaker"] == "closed"
        assert client.get(PATH).status_code == 200, "its breaker is closed as well"
        metrics = bench.metrics()
        assert 'tidemill_retries_total{name="database/heavy"} 0.0' in metrics, "nothing was asked twice"


def test_a_fill_is_bounded_by_its_groups_too(ready_bench: Callable[..., Any]) -> None:
    """It names what it counted, and what to do; a page, a stream and fewer groups alike are judged before any row."""
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
