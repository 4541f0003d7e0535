"""Tests of each example of the repository, from `kubectl apply` to exact answers, and of idle pipelines' resources."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import polars as pl
import pytest
import yaml
from websockets.sync.client import connect

from demo.answers import describe, wait_settled
from demo.cluster import ClusterPlatform
from demo.data import load_departures

pytestmark = [pytest.mark.e2e, pytest.mark.kubernetes, pytest.mark.slow]

EXAMPLES = Path(__file__).resolve().parents[2] / "crds" / "examples"
NAMESPACE = "analytics"
_START_MS = 1_767_607_200_000
_EVENTS = 6_000
_APPLY_SECONDS = 300


def _times(step_ms: int) -> pl.Expr:
    return pl.from_epoch(_START_MS + step_ms * pl.col("n"), time_unit="ms").dt.replace_time_zone("UTC")


def _one_of(*values: Any, by: int = 1) -> pl.Expr:
    # With different prime steps, the columns are not correlated.
    return pl.lit(pl.Series(values)).gather(pl.col("n") * by % len(values))


def flights() -> pl.DataFrame:
    """Return departures of the first days of 2013."""
    return load_departures().head(_EVENTS)


def web_traffic() -> pl.DataFrame:
    """Return five minutes of page views. Some are those of robots and health checks."""
    return pl.select(n=pl.int_range(_EVENTS)).select(
        url=_one_of("/shop/cart", "/docs/start", "/healthz", "/api/v1/items", "/", by=3),
        method=_one_of("GET", "GET", "POST", by=5),
        status=_one_of(200, 200, 404, 500, 200, 503, 200, by=11),
        latency_ms=(pl.col("n") * 37 % 1_200).cast(pl.Float64) / 4,
        bytes=pl.col("n") * 101 % 65_536,
        country=_one_of("NO", "SE", None, "DE", by=7),
        user_agent=_one_of("Mozilla/5.0", "GoogleBot/2.1", None, "curl/8", "Mozilla/5.0", by=13),
        session_id=pl.format("s{}", pl.col("n") * 17 % 211),
        at=_times(50),
    )


def server_metrics() -> pl.DataFrame:
    """Return half an hour of metrics of four hosts."""
    return pl.select(n=pl.int_range(_EVENTS)).select(
        host=_one_of("web-1", "web-2", "db-1", "db-2", by=3),
        series=_one_of("cpu", "memory", "disk", by=5),
        value=(pl.col("n") * 53 % 997).cast(pl.Float64) / 8 - 20,
        # Without nulls: `NULL IS FALSE` is null in polars, which recomputes the windows. In SQL, it is false.
        healthy=_one_of(True, True, False, True, True, by=7),
        ts=_times(300),
    )


SAMPLES: dict[str, Callable[[], pl.DataFrame]] = {
    "flights": flights,
    "web-traffic": web_traffic,
    "server-metrics": server_metrics,
}


@pytest.fixture(scope="module")
def analytics(world: Any) -> Iterator[str]:
    """Create the namespace of the examples."""
    yield world.make_namespace(NAMESPACE)
    world.begin_to_delete_namespaces([NAMESPACE])


def test_each_example_has_a_sample_of_events() -> None:
    assert {path.stem for path in EXAMPLES.glob("*.yaml")} == SAMPLES.keys()


@pytest.mark.parametrize("name", SAMPLES)
def test_an_applied_example_answers_with_exact_windows(
    name: str, world: Any, analytics: str, sent_to: Callable[..., Any]
) -> None:
    """The example is ready for `kubectl wait`, and an event of a wrong type is a dead letter.

    The snapshot of a WebSocket has the same windows as REST.
    """
    file = EXAMPLES / f"{name}.yaml"
    begun = time.monotonic()
    world.kubectl("apply", "--filename", str(file))
    pipeline = ("--namespace", analytics, f"analyticspipeline/{name}")
    world.kubectl("wait", "--for=condition=Ready", f"--timeout={_APPLY_SECONDS}s", *pipeline)
    world.figures[f"kubectl apply of {name} to Ready"] = f"{time.monotonic() - begun:.1f} s"

    platform = ClusterPlatform(yaml.safe_load(file.read_text()), world.kubectl)
    platform.reach()
    sent = sent_to(platform)
    sent.send(SAMPLES[name]())
    sent.check()
    with httpx.Client(timeout=60.0, trust_env=False) as client:
        _dead_letter(client, sent)
        _snapshot(client, platform)
    platform.leave()


def _dead_letter(client: httpx.Client, sent: Any) -> None:
    """Check that ingest refuses an event of a wrong type, and that the API shows it as a dead letter."""
    platform = sent.platform
    field = next(f for f in platform.document["spec"]["source"]["fields"] if f["type"] in ("integer", "number"))["name"]
    url = f"{platform.url('ingest')}/v1/pipelines/{platform.name}/events"
    event = json.loads(sent.lines()[-1]) | {field: "many"}
    answer = client.post(url, json=event)
    assert answer.status_code in (207, 422), answer.text
    assert answer.json()["results"][0] | {"code": "mistyped", "field": field} == answer.json()["results"][0]
    wait_settled(client, platform, sent.number + 1)
    letters = client.get(f"{platform.url('api')}/v1/pipelines/{platform.name}/dead-letters").json()["data"]
    assert [(letter["reason"], letter["field"]) for letter in letters] == [("mistyped", field)]
    sent.compare(client)


def _snapshot(client: httpx.Client, platform: ClusterPlatform) -> None:
    """Check that the snapshot of a WebSocket has the same windows as REST."""
    path = f"/v1/pipelines/{platform.name}"
    names = {aggregation["name"] for aggregation in describe(client, platform)["aggregations"]}
    with connect(f"ws{platform.url('api').removeprefix('http')}{path}/live", open_timeout=60) as live:
        kinds, rows = [], {}
        while rows.keys() != names:
            message = json.loads(live.recv(timeout=60))
            kinds.append(message["type"])
            if message["type"] == "snapshot":
                rows[message["aggregation"]] = message["rows"]
    assert kinds[0] == "hello"
    for name, windows in rows.items():
        assert windows != [], name
        first = windows[0]
        params = {"from": first["window_start"], "to": first["window_end"], "limit": 10_000}
        answer = client.get(f"{platform.url('api')}{path}/aggregates/{name}", params=params)
        by_rest = [{key: row[key] for key in first} for row in answer.json()["data"] if first.keys() <= row.keys()]
        assert first in by_rest, name


def test_kubectl_get_shows_the_columns_of_idle_pipelines(
    world: Any, analytics: str, eventually: Callable[..., Any]
) -> None:
    """LAG is 0, and FRESHNESS is blank without new events."""

    def rows() -> dict[str, list[str]]:
        head, *lines = world.kubectl("get", "apl", "--namespace", analytics).splitlines()
        assert head.split() == ["NAME", "READY", "LAG", "REPLICAS", "STAGE", "FRESHNESS", "AGE"]
        return {line.split()[0]: line.split() for line in lines}

    def filled() -> bool:
        return all(len(row) == 5 and row[1:4] == ["True", "0", "1"] for row in rows().values())

    eventually(filled, what="all pipelines are ready without lag", seconds=180.0)
    assert rows().keys() == SAMPLES.keys()


def test_pipelines_of_a_namespace_share_ingest_and_api(world: Any, analytics: str) -> None:
    """The test also records the memory and the connections of idle pipelines, without a limit."""
    pods = world.pods(analytics)
    names = sorted(pod["metadata"]["labels"]["app.kubernetes.io/component"] for pod in pods)
    assert names == ["api", "ingest", *["processor"] * len(SAMPLES)]
    memory = world.memory(analytics)
    connections = world.data()["connections"]
    count = len(SAMPLES)
    logins = {login: number for login, number in connections.items() if login.startswith(f"{NAMESPACE}__")}
    figures = {
        "pods a pipeline": f"{len(pods) / count:.2f} ({len(pods)} of {count} pipelines in one namespace)",
        "idle memory a pipeline": f"{sum(memory.values()) / count / 2**20:.0f} MiB",
        "idle memory by pod": ", ".join(f"{pod} {size / 2**20:.0f} MiB" for pod, size in sorted(memory.items())),
        "Postgres connections a pipeline": f"{sum(logins.values()) / count:.2f}",
        "Postgres connections by login": ", ".join(f"{login} {number}" for login, number in sorted(logins.items())),
        "Postgres connections in all": str(sum(connections.values())),
    }
    world.figures.update(figures)
    assert memory.keys() == {pod["metadata"]["name"] for pod in pods}
    assert logins != {}
