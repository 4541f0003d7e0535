"""The API while its servers fail: last answers, marked stale; /health that is true without traffic; recovery.

And what else the process as a whole is about: keys, origins, configs that change, slow readers, a stampede.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import psycopg
import pytest

from bench import Bench, MakeBench
from running.hanging import BlackHole, frozen
from tidemill_contract.resource.spec import PipelineSpec
from tidemill_contract.runtime import AggregationRef, PipelineConfig

pytestmark = pytest.mark.integration

BASE = 1_700_000_000_000 // 3_600_000 * 3_600_000
PATH = "/aggregates/by_k"
QUICK = {
    "TIDEMILL_RESILIENCE__BREAKERS__DATABASE__OPEN_SECONDS": "3",
    "TIDEMILL_RESILIENCE__BREAKERS__REDIS__OPEN_SECONDS": "3",
    "TIDEMILL_RESILIENCE__RETRIES__DATABASE__INITIAL_SECONDS": "0.1",
}

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


def config(name: str, *, auth: bool = False, ttl: str = "200ms") -> PipelineConfig:
    spec = PipelineSpec.model_validate(
        {
            "source": {
                "topic": {"partitions": 1},
                "fields": [{"name": "ts", "type": "timestamp", "required": True}, {"name": "k", "type": "string"}],
                "eventTime": {"field": "ts"},
            },
            "aggregations": [
                {
                    "name": "by_k",
                    "groupBy": ["k"],
                    "window": {"type": "tumbling", "size": "1h"},
                    "metrics": [{"name": "n", "function": "count"}],
                }
            ],
            "api": {"cacheTtl": ttl},
            "auth": {"required": auth},
        }
    )
    return PipelineConfig(
        namespace="tests", name=name, generation=1, spec=spec, aggregations=(AggregationRef(name="by_k"),)
    )


def fill(bench: Bench, groups: int = 20) -> None:
    """Windows straight into the table."""
    bench.query("SELECT {s}.ensure_partition('by_k_v1', %s, 30)", (BASE // 86_400_000,))
    bench.query(
        "INSERT INTO {s}.by_k_v1 (k, window_start, _rev, _count)"
        " SELECT 'k' || g, to_timestamp(%s / 1000.0), 1, g FROM generate_series(1, %s) AS g RETURNING 1",
        (BASE, groups),
    )


@contextlib.contextmanager
def serving(bench: Bench, **environment: str) -> Iterator[httpx.Client]:
    """An API process of a bench; a client that asks for paths below the pipeline."""
    process = bench.start(module="tidemill_api", **{**QUICK, **environment})
    bench.eventually(lambda: bench.health().get("status") == "healthy", seconds=60, what="the API is healthy")
    base = f"http://127.0.0.1:{bench.ports[-1]}/v1/pipelines/{bench.config.name}"
    with httpx.Client(base_url=base, timeout=35) as client:
        yield client
    process.terminate()
    assert process.wait(20) == 0, "SIGTERM ends it with 0"


@pytest.fixture
def ready_bench(make_bench: MakeBench) -> Callable[..., Any]:
    """Makes a pipeline with windows in its table."""

    def make(*arguments: Any, at: Any = None, **options: Any) -> Any:
        bench = make_bench(config(*arguments, **options), at=at)
        fill(bench)
        return bench

    return make


@pytest.fixture(scope="module")
def fragile(own_servers: Callable[..., Any]) -> Any:
    """Servers that tests may kill, if they start them again."""
    return own_servers(durable=True)


def of_process(client: httpx.Client, path: str) -> httpx.Response:
    """An answer to a path that is not the pipeline's."""
    return httpx.get(client.base_url.copy_with(path=path))


def dependency(bench: Bench, name: str) -> dict[str, Any]:
    found: dict[str, Any] = bench.health()["dependencies"][name]
    return found


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
        assert of_process(client, "/readyz").status_code == 200, "stale answers need callers"
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
            assert of_process(client, "/livez").status_code == 200
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


def test_a_pipeline_that_is_not_set_up_yet(make_bench: MakeBench) -> None:
    """Its tables or its login are not there: 503 that says so; Postgres is not blamed for it."""
    bench = make_bench(config("early"))
    with serving(bench) as client:
        bench.query("WITH gone AS (DELETE FROM {s}._aggregations RETURNING 1) SELECT count(*) FROM gone")
        answer = client.get(PATH)
        assert (answer.status_code, answer.json()["code"]) == (503, "pipeline_not_ready")
        for name in ("reader.json", "writer.json"):
            (bench.folder / "secrets" / "early" / name).unlink()
        for number in range(8):
            assert client.get(PATH, params={"limit": number + 1}).json()["code"] == "pipeline_not_ready"
        assert bench.health()["status"] == "healthy"


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


KEY, OTHER = ("abc", "s3cret"), ("def", "0ther")


def test_a_key_with_the_query_scope_opens_every_answer_and_no_other_does(ready_bench: Callable[..., Any]) -> None:
    """A key with query:read opens every way to an answer, the cached one too; no key or another's does not."""
    bench = ready_bench("locked", auth=True, ttl="30s")
    keys = [
        {"id": KEY[0], "sha256": hashlib.sha256(KEY[1].encode()).hexdigest(), "scopes": ["query:read"]},
        {"id": OTHER[0], "sha256": hashlib.sha256(OTHER[1].encode()).hexdigest(), "scopes": ["events:append"]},
    ]
    file = bench.folder / "secrets" / "locked" / "api-keys.json"
    file.write_text(json.dumps({"keys": keys}))
    good = {"Authorization": f"Bearer tm_{KEY[0]}_{KEY[1]}"}
    with serving(bench) as client:
        for _ in range(2):  # the second time from the cache
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
        bench.eventually(lambda: client.get(PATH, headers=good).status_code == 401, what="a key taken back is refused")


def test_origins_that_are_allowed_may_read(ready_bench: Callable[..., Any]) -> None:
    bench = ready_bench("crossing")
    with serving(bench, TIDEMILL_API_CORS_ORIGINS="https://a.example, https://b.example") as client:
        allowed = client.get(PATH, headers={"Origin": "https://b.example"})
        assert allowed.headers["access-control-allow-origin"] == "https://b.example"
        assert "etag" in allowed.headers["access-control-expose-headers"]
        assert "access-control-allow-origin" not in client.get(PATH, headers={"Origin": "https://c.example"}).headers


def test_a_dedicated_api_serves_its_pipeline_only(ready_bench: Callable[..., Any]) -> None:
    one, _ = ready_bench("one"), ready_bench("two")
    with serving(one) as client:
        assert of_process(client, "/v1/pipelines/two").status_code == 404
        assert of_process(client, "/v1/pipelines/one").status_code == 200
    with serving(one, TIDEMILL_PIPELINE="") as client:
        listed = of_process(client, "/v1/pipelines").json()["pipelines"]
        assert [pipeline["name"] for pipeline in listed] == ["one", "two"]


def test_config_changes_are_followed(ready_bench: Callable[..., Any]) -> None:
    """A pipeline that is closed to the public, then gone, is so at once, whatever was cached."""
    bench = ready_bench("changing", ttl="30s")
    file = bench.folder / "changing.json"
    with serving(bench) as client:
        assert [client.get(PATH).status_code for _ in range(2)] == [200, 200]
        file.write_text(config("changing", auth=True, ttl="30s").to_json())
        bench.eventually(lambda: client.get(PATH).status_code == 401, what="keys are asked for")
        file.unlink()
        bench.eventually(lambda: client.get(PATH).status_code == 404, what="the pipeline is gone")


@contextlib.contextmanager
def locked(bench: Bench) -> Iterator[None]:
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
        with locked(bench):
            answer = client.get(PATH)
            assert answer.status_code in (503, 504)
            assert answer.json()["code"] in ("database_unavailable", "request_timeout")
        bench.eventually(lambda: client.get(PATH).status_code == 200, what="an answer afterwards")


def test_one_pipelines_load_is_not_anothers(ready_bench: Callable[..., Any]) -> None:
    """Queries that take too long are told so, one after another; others are answered, and so is the pipeline then."""
    bench, _ = ready_bench("heavy"), ready_bench("light")
    with serving(bench, TIDEMILL_PIPELINE="", TIDEMILL_RESILIENCE__TIMEOUTS__DATABASE_QUERY_SECONDS="5") as client:
        light = str(client.base_url.copy_with(path=f"/v1/pipelines/light{PATH}"))
        with locked(bench):

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
