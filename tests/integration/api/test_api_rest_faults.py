"""The API while Postgres or Redis fail: stale answers, /health without traffic, and recovery.

Real servers that the module starts and kills, Postgres and Redis of the session, and one API process per test.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest

from pipelines.hourly_counts import BASE, PATH, dependency, get_beside_pipeline, serving
from running.hanging import BlackHole, frozen

pytestmark = pytest.mark.integration

LONG_PAUSES = {
    "TIDEMILL_RESILIENCE__BREAKERS__DATABASE__OPEN_SECONDS": "60",
    "TIDEMILL_RESILIENCE__BREAKERS__DATABASE__FIRST_PAUSE_SECONDS": "60",
    "TIDEMILL_RESILIENCE__BREAKERS__REDIS__OPEN_SECONDS": "60",
    "TIDEMILL_RESILIENCE__BREAKERS__REDIS__FIRST_PAUSE_SECONDS": "60",
}
"""An outage longer than the first pauses: only who looks in the background ends it soon."""
IN_TIME_SECONDS = 3.0
SOON_SECONDS = 20.0
"""Long before any of these pauses is over."""


@pytest.fixture(scope="module")
def fragile(own_servers: Callable[..., Any]) -> Any:
    """Servers that tests may kill, if they start them again."""
    return own_servers(durable=True)


def test_postgres_goes_and_comes_back(fragile: Any, ready_bench: Callable[..., Any]) -> None:
    """What was asked before is answered, marked stale; what was not is a 503 with Retry-After; then all recovers."""
    bench = ready_bench("no-postgres", at=fragile)
    with serving(bench) as client:
        fresh = client.get(PATH)
        assert "stale" not in fresh.json()
        fragile.handles["postgres"].kill()
        bench.eventually(
            lambda: bench.health()["status"] == "unhealthy", seconds=30, what="/health tells without traffic"
        )
        told = dependency(bench, "postgres")
        assert (told["status"], told["required"]) == ("down", True)
        assert get_beside_pipeline(client, "/readyz").status_code == 200, "stale answers need callers"
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
        assert time.monotonic() - started < IN_TIME_SECONDS, "an open breaker is not waited for"
        fragile.handles["postgres"].start()
        bench.eventually(lambda: bench.health()["status"] == "healthy", seconds=60, what="/health recovers by itself")
        again = client.get(PATH)
        assert "stale" not in again.json()
        assert again.json()["data"] == fresh.json()["data"]
        assert client.get(f"{PATH}.csv").status_code == 200
        assert "tidemill_stale_answers_total 2" in bench.metrics()


def test_a_frozen_postgres_keeps_nobody_waiting_long(fragile: Any, ready_bench: Callable[..., Any]) -> None:
    """A database that neither answers nor refuses: an earlier answer is given after a moment, or a 503 in time."""
    bench = ready_bench("frozen", at=fragile)
    with serving(bench, **LONG_PAUSES, TIDEMILL_RESILIENCE__TIMEOUTS__DATABASE_QUERY_SECONDS="4") as client:
        client.get(PATH)
        with frozen(fragile.handles["postgres"]):
            for path in (PATH, f"{PATH}.csv"):
                started = time.monotonic()
                unknown = client.get(path, params={"limit": 7})
                assert (unknown.status_code, int(unknown.headers["retry-after"]) >= 1) == (503, True)
                assert time.monotonic() - started < 4 + IN_TIME_SECONDS, "its one attempt, and no more"
            bench.eventually(lambda: client.get(PATH).json().get("stale"), what="a stale answer")
            bench.eventually(lambda: bench.health()["status"] == "unhealthy", seconds=30, what="/health tells")
            bench.eventually(lambda: dependency(bench, "postgres")["breaker"] == "open", what="the breaker opens")
            assert get_beside_pipeline(client, "/livez").status_code == 200
        bench.eventually(lambda: bench.health()["status"] == "healthy", seconds=SOON_SECONDS, what="/health recovers")
        assert "stale" not in client.get(PATH).json(), "answers are fresh again"


def test_a_frozen_redis_is_waited_for_once(fragile: Any, ready_bench: Callable[..., Any]) -> None:
    """Later queries go past it, whatever its breaker says; soon after it is back it is asked again."""
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
        bench.eventually(lambda: bench.health()["status"] == "healthy", seconds=SOON_SECONDS, what="/health recovers")


@pytest.mark.slow
def test_a_postgres_behind_a_black_hole_keeps_nobody_waiting_long(
    servers: Any, ready_bench: Callable[..., Any]
) -> None:
    """Packets are lost: connections of before stay silent for ever, and new ones are not answered."""
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
            bench.eventually(lambda: bench.health()["status"] == "unhealthy", seconds=30, what="/health tells")
        bench.eventually(lambda: bench.health()["status"] == "healthy", seconds=SOON_SECONDS, what="/health recovers")
        assert client.get(PATH, params={"limit": 7}).status_code == 200


def test_redis_goes_and_comes_back(fragile: Any, ready_bench: Callable[..., Any]) -> None:
    """Redis is optional: answers go on from memory and Postgres, and /health says `degraded` with no traffic."""
    bench = ready_bench("no-redis", at=fragile)
    with serving(bench) as client:
        before = client.get(PATH).json()["data"]
        fragile.handles["redis"].kill()
        bench.eventually(lambda: bench.health()["status"] == "degraded", seconds=30, what="/health says degraded")
        assert dependency(bench, "redis")["required"] is False
        for number in range(1, 8):
            answer = client.get(PATH, params={"limit": number})
            assert (answer.status_code, answer.json()["data"]) == (200, before[:number])
        fragile.handles["redis"].start()
        bench.eventually(lambda: bench.health()["status"] == "healthy", seconds=60, what="/health recovers by itself")


def test_answers_of_an_earlier_process_are_found_in_redis(fragile: Any, ready_bench: Callable[..., Any]) -> None:
    """A restarted API knows what its predecessor answered, also without Postgres, and without a cache in memory."""
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


def test_a_schema_made_anew_is_not_answered_from_the_cache(ready_bench: Callable[..., Any]) -> None:
    """Answers kept in Redis belong to the tables they were read from, closed windows too."""
    bench = ready_bench("anew")
    until = BASE + 86_400_000
    query = {"from": BASE, "to": BASE + 3_600_000}
    bench.query("UPDATE {s}._aggregations SET closed_until = %s RETURNING 1", (until,))
    with serving(bench) as client:
        first = client.get(PATH, params=query)
        assert "max-age=60" in first.headers["cache-control"]
        bench.query("DELETE FROM {s}.by_k_v1 RETURNING 1")
        bench.query("UPDATE {s}._aggregations SET created_at = created_at + interval '1 second' RETURNING 1")
        bench.eventually(lambda: client.get(PATH, params=query).json()["data"] == [], what="the new table's answer")
