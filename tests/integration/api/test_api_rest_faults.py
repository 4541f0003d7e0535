"""Tests of the API while Postgres or Redis fail: stale answers, /health without traffic, and recovery.

Real servers: Kafka, Postgres and Redis that the module kills, those of the session, and an API process for each test.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest

from bench import Bench
from pipelines.hourly_counts import BASE, PATH, dependency, get_beside_pipeline, serving
from running.hanging import BlackHole, frozen

pytestmark = pytest.mark.integration

LONG_PAUSES = {
    "TIDEMILL_RESILIENCE__BREAKERS__DATABASE__OPEN_SECONDS": "60",
    "TIDEMILL_RESILIENCE__BREAKERS__DATABASE__FIRST_PAUSE_SECONDS": "60",
    "TIDEMILL_RESILIENCE__BREAKERS__REDIS__OPEN_SECONDS": "60",
    "TIDEMILL_RESILIENCE__BREAKERS__REDIS__FIRST_PAUSE_SECONDS": "60",
}
"""Circuit breakers that wait long. Only probes in the background notice a recovery before the pauses end."""
IN_TIME_SECONDS = 3.0
SOON_SECONDS = 20.0
"""Much shorter than the pauses above."""


def await_health(bench: Bench, status: str, *, seconds: float) -> None:
    """Wait until /health reports a status, without other requests to the API."""
    bench.eventually(lambda: bench.health()["status"] == status, seconds=seconds, what=f"/health is {status}")


@pytest.fixture(scope="module")
def fragile(own_servers: Callable[..., Any]) -> Any:
    """Return servers that tests may kill. Each test starts again the servers that it killed."""
    return own_servers(durable=True)


def test_without_postgres_cached_answers_are_served_as_stale(fragile: Any, ready_bench: Callable[..., Any]) -> None:
    """An answer that is not cached is a 503 with Retry-After. Once Postgres is back, answers are fresh."""
    bench = ready_bench("no-postgres", at=fragile)
    with serving(bench) as client:
        fresh = client.get(PATH)
        assert "stale" not in fresh.json()
        fragile.handles["postgres"].kill()
        await_health(bench, "unhealthy", seconds=30)
        postgres = dependency(bench, "postgres")
        assert (postgres["status"], postgres["required"]) == ("down", True)
        assert get_beside_pipeline(client, "/readyz").status_code == 200, "the API stays ready to serve stale answers"
        stale = client.get(PATH, headers={"If-None-Match": fresh.headers["etag"]})
        assert (stale.status_code, stale.json()["stale"], stale.json()["data"]) == (200, True, fresh.json()["data"])
        assert (stale.headers["warning"], stale.headers["cache-control"]) == ('110 - "Response is Stale"', "no-store")
        assert int(stale.headers["age"]) >= 0
        unknown = client.get(PATH, params={"limit": 7})
        assert (unknown.status_code, unknown.json()["code"]) == (503, "database_unavailable")
        assert int(unknown.headers["retry-after"]) >= 1
        assert client.get(f"{PATH}.csv").status_code == 503
        assert client.get("/dead-letters").status_code == 503
        bench.eventually(
            lambda: dependency(bench, "postgres")["breaker"] == "open",
            seconds=40,
            what="the breaker opens without traffic",
        )
        started = time.monotonic()
        assert client.get(PATH).json()["stale"] is True
        assert time.monotonic() - started < IN_TIME_SECONDS, "an open breaker must not delay the answer"
        fragile.handles["postgres"].start()
        await_health(bench, "healthy", seconds=60)
        again = client.get(PATH)
        assert "stale" not in again.json()
        assert again.json()["data"] == fresh.json()["data"]
        assert client.get(f"{PATH}.csv").status_code == 200
        assert "tidemill_stale_answers_total 2" in bench.metrics()


def test_a_frozen_postgres_delays_an_answer_by_one_attempt(fragile: Any, ready_bench: Callable[..., Any]) -> None:
    """Postgres accepts connections and answers nothing: a cached answer is served as stale, another is a 503."""
    bench = ready_bench("frozen", at=fragile)
    with serving(bench, **LONG_PAUSES, TIDEMILL_RESILIENCE__TIMEOUTS__DATABASE_QUERY_SECONDS="4") as client:
        client.get(PATH)
        with frozen(fragile.handles["postgres"]):
            for path in (PATH, f"{PATH}.csv"):
                started = time.monotonic()
                unknown = client.get(path, params={"limit": 7})
                assert (unknown.status_code, int(unknown.headers["retry-after"]) >= 1) == (503, True)
                assert time.monotonic() - started < 4 + IN_TIME_SECONDS, "a query may be attempted only once"
            bench.eventually(lambda: client.get(PATH).json().get("stale"), what="a stale answer")
            await_health(bench, "unhealthy", seconds=30)
            bench.eventually(lambda: dependency(bench, "postgres")["breaker"] == "open", what="the breaker opens")
            assert get_beside_pipeline(client, "/livez").status_code == 200
        await_health(bench, "healthy", seconds=SOON_SECONDS)
        assert "stale" not in client.get(PATH).json()


def test_a_frozen_redis_delays_only_the_first_query(fragile: Any, ready_bench: Callable[..., Any]) -> None:
    """Later queries skip Redis, even while its breaker is closed. Redis is used again soon after it recovers."""
    bench = ready_bench("frozen-redis", at=fragile)
    with serving(bench, **LONG_PAUSES) as client:
        with frozen(fragile.handles["redis"]):
            for number in range(1, 12):
                started = time.monotonic()
                assert client.get(PATH, params={"limit": number}).status_code == 200
                taken = time.monotonic() - started
                assert taken < (5 + IN_TIME_SECONDS if number == 1 else IN_TIME_SECONDS), number
            bench.eventually(lambda: dependency(bench, "redis")["breaker"] == "open", what="the breaker opens")
            assert bench.health()["status"] == "degraded"
        await_health(bench, "healthy", seconds=SOON_SECONDS)


@pytest.mark.slow
def test_a_black_hole_before_postgres_delays_an_answer_by_a_bounded_time(
    servers: Any, ready_bench: Callable[..., Any]
) -> None:
    """The black hole drops all packets, of open and of new connections."""
    bench = ready_bench("swallowed")
    with (
        BlackHole(servers.postgres.port) as hole,
        serving(bench, **LONG_PAUSES, TIDEMILL_POSTGRES_PORT=str(hole.port)) as client,
    ):
        client.get(PATH)
        with hole.open():
            started = time.monotonic()
            assert client.get(PATH, params={"limit": 7}).status_code == 503
            assert time.monotonic() - started < 10 + IN_TIME_SECONDS
            assert client.get(PATH).json()["stale"] is True
            await_health(bench, "unhealthy", seconds=30)
        await_health(bench, "healthy", seconds=SOON_SECONDS)
        assert client.get(PATH, params={"limit": 7}).status_code == 200


def test_without_redis_queries_are_answered_and_health_is_degraded(
    fragile: Any, ready_bench: Callable[..., Any]
) -> None:
    """Answers come from memory and Postgres. /health reports the outage and the recovery without traffic."""
    bench = ready_bench("no-redis", at=fragile)
    with serving(bench) as client:
        before = client.get(PATH).json()["data"]
        fragile.handles["redis"].kill()
        await_health(bench, "degraded", seconds=30)
        assert dependency(bench, "redis")["required"] is False
        for number in range(1, 8):
            answer = client.get(PATH, params={"limit": number})
            assert (answer.status_code, answer.json()["data"]) == (200, before[:number])
        fragile.handles["redis"].start()
        await_health(bench, "healthy", seconds=60)


def test_a_restarted_api_serves_earlier_answers_from_redis(fragile: Any, ready_bench: Callable[..., Any]) -> None:
    """It does so while Postgres is down, with and without a cache in memory, unless stale results are off."""
    bench = ready_bench("restarted", at=fragile)
    with serving(bench) as client:
        data = client.get(PATH).json()["data"]
    for enabled in ("true", "false"):
        with serving(bench, TIDEMILL_RESILIENCE__FALLBACKS__MEMORY_CACHE__ENABLED=enabled) as client:
            fragile.handles["postgres"].kill()
            answer = client.get(PATH)
            assert (answer.status_code, answer.json().get("stale"), answer.json()["data"]) == (200, True, data)
            fragile.handles["postgres"].start()
    with serving(bench, TIDEMILL_RESILIENCE__FALLBACKS__STALE_RESULTS__ENABLED="false") as client:
        fragile.handles["postgres"].kill()
        assert client.get(PATH).status_code == 503
        fragile.handles["postgres"].start()


def test_a_recreated_schema_is_not_answered_from_the_cache(ready_bench: Callable[..., Any]) -> None:
    """An answer in Redis, also of closed windows, is valid only for the tables from which it was read."""
    bench = ready_bench("anew")
    until = BASE + 86_400_000
    query = {"from": BASE, "to": BASE + 3_600_000}
    bench.query("UPDATE {s}._aggregations SET closed_until = %s RETURNING 1", (until,))
    with serving(bench) as client:
        first = client.get(PATH, params=query)
        assert "max-age=60" in first.headers["cache-control"]
        bench.query("DELETE FROM {s}.by_k_v1 RETURNING 1")
        bench.query("UPDATE {s}._aggregations SET created_at = created_at + interval '1 second' RETURNING 1")
        bench.eventually(lambda: client.get(PATH, params=query).json()["data"] == [], what="an empty answer")
