"""Tests of answers and connections without a key, of allowed host names, and of formulas in CSV."""

from __future__ import annotations

import asyncio
import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from tidemill_api.app import create_app
from tidemill_api.formats.csv import CsvWriter
from tidemill_api.formats.ndjson import NdjsonWriter
from tidemill_api.live.connection_limit import ConnectionLimit
from tidemill_api.query.selection import Column
from tidemill_api.services import make_services
from tidemill_chassis.health import Dependency, health_report, public_report
from tidemill_chassis.resilience.config import ResilienceConfig
from tidemill_chassis.web.asgi import HostGuard
from tidemill_chassis.web.hosts import Hosts
from tidemill_chassis.web.problems import Problem
from tidemill_contract.resource.spec import PipelineSpec
from tidemill_contract.runtime import AggregationRef, PipelineConfig, WorkloadSettings
from tidemill_ingest.app import Ingest
from tidemill_ingest.quota import Limits


def config(name: str, *, auth: bool, **spec: Any) -> PipelineConfig:
    document = {
        "source": {
            "topic": {"partitions": 1},
            "fields": [{"name": "ts", "type": "timestamp", "required": True}],
            "eventTime": {"field": "ts"},
        },
        "aggregations": [
            {
                "name": "all",
                "window": {"type": "tumbling", "size": "1h"},
                "metrics": [{"name": "n", "function": "count"}],
            }
        ],
        "auth": {"required": auth},
        **spec,
    }
    parsed = PipelineSpec.model_validate(document)
    return PipelineConfig(
        namespace="ns", name=name, generation=1, spec=parsed, aggregations=(AggregationRef(name="all"),)
    )


@pytest.fixture
def settings(tmp_path: Path) -> Callable[..., WorkloadSettings]:
    def make(*configs: PipelineConfig, hosts: str = "") -> WorkloadSettings:
        for pipeline in configs:
            (tmp_path / f"{pipeline.name}.json").write_text(pipeline.to_json())
        return WorkloadSettings(
            config_dir=tmp_path, secrets_dir=tmp_path, kafka_brokers="127.0.0.1:1", postgres_port=1, allowed_hosts=hosts
        )

    return make


@pytest.fixture(params=["api", "ingest"])
def service(request: pytest.FixtureRequest) -> Callable[[WorkloadSettings], Any]:
    """Return a function that creates the ASGI application of the API or of ingest."""

    def make(settings: WorkloadSettings) -> Any:
        if request.param == "api":
            return create_app(make_services(settings, {}), hosts=Hosts.parse(settings.allowed_hosts))
        return Ingest(settings, ResilienceConfig(), Limits()).app()

    return make


def ask(app: Any, method: str, path: str, **headers: str) -> httpx.Response:
    async def work() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as client:
            return await client.request(method, path, headers=headers, content=b"{}" if method == "POST" else None)

    return asyncio.run(work())


ENDPOINTS = [("GET", "/v1/pipelines/{}"), ("GET", "/v1/pipelines/{}/live"), ("POST", "/v1/pipelines/{}/events")]


def test_a_pipeline_that_requires_keys_answers_like_a_name_that_does_not_exist(settings: Any, service: Any) -> None:
    """The answers are equal without a key and with a wrong key, also if the pipeline takes no requests at all."""
    disabled = config("shut", auth=True, ingest={"enabled": False}, api={"enabled": False})
    app = service(settings(config("locked", auth=True), config("open", auth=False), disabled))
    for method, path in ENDPOINTS:
        for headers in ({}, {"Authorization": "Bearer tm_a_b"}, {"Authorization": "Basic x"}):
            answers = [ask(app, method, path.format(name), **headers) for name in ("locked", "shut", "nobodys")]
            if answers[0].status_code in (404, 405):
                continue  # The endpoint belongs to the other service.
            assert {answer.status_code for answer in answers} == {401}, (path, headers)
            assert len({answer.content for answer in answers}) == 1, (path, headers)


def test_a_wrong_name_is_not_found_if_no_pipeline_requires_keys(settings: Any, service: Any) -> None:
    app = service(settings(config("open", auth=False)))
    statuses = [ask(app, method, path.format("opne")).status_code for method, path in ENDPOINTS]
    assert 401 not in statuses
    assert 404 in statuses


def listen(app: Any, path: str, *texts: str) -> list[dict[str, Any]]:
    """Return the messages that a WebSocket client receives after it has sent texts."""
    sent: list[dict[str, Any]] = []
    incoming = iter([{"type": "websocket.connect"}, *({"type": "websocket.receive", "text": text} for text in texts)])

    async def receive() -> Any:
        for message in incoming:
            return message
        return await asyncio.Event().wait()

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {
        "type": "websocket", "path": path, "query_string": b"", "headers": [], "client": ("192.0.2.1", 1),
        "subprotocols": [], "extensions": {"websocket.http.response": {}},
    }  # fmt: skip
    asyncio.run(app(scope, receive, send))
    return sent


def test_the_live_socket_answers_alike_for_names_that_require_keys_and_unknown_names(settings: Any) -> None:
    """The socket accepts the connection and waits for a key before it refuses."""
    app = create_app(make_services(settings(config("locked", auth=True)), {}))
    locked, nobodys = (
        listen(app, f"/v1/pipelines/{name}/live", '{"type": "auth", "token": "tm_a_b"}')
        for name in ("locked", "nobodys")
    )
    assert locked == nobodys
    assert [message["type"] for message in locked] == ["websocket.accept", "websocket.send", "websocket.close"]
    assert (json.loads(locked[1]["text"])["code"], locked[2]["code"]) == ("unauthorized", 4401)


def test_public_health_shows_only_statuses_and_no_metrics(settings: Any, service: Any) -> None:
    """Names, counts and addresses are left out."""
    app = service(settings(config("locked", auth=True)))
    body = ask(app, "GET", "/health").json()
    assert set(body) == {"status", "component", "dependencies"}
    assert all(set(row) == {"status", "required", "breaker"} for row in body["dependencies"].values())
    assert ask(app, "GET", "/metrics").status_code == 404
    assert "locked" not in ask(app, "GET", "/").text


def test_a_public_report_omits_details_and_names() -> None:
    row = Dependency("postgres", False, True, "connection to 10.0.0.5 refused", "open", 1.0)
    _, body = health_report("api", [row], {"pipelines": ["locked"]})
    assert public_report(body) == {
        "status": "unhealthy",
        "component": "api",
        "dependencies": {"postgres": {"status": "down", "required": True, "breaker": "open"}},
    }


def test_a_path_with_a_trailing_slash_is_not_redirected(settings: Any, service: Any) -> None:
    """A redirect would repeat the host name that the caller sent."""
    app = service(settings(config("open", auth=False)))
    for path in ("/health/", "/v1/pipelines/", "/v1/pipelines/open/events/"):
        answer = ask(app, "GET", path, Host="evil.example")
        assert answer.status_code in (404, 405)
        assert "location" not in answer.headers


@pytest.mark.parametrize(
    ("header", "allowed"),
    [
        ("localhost:8081", True),
        ("LOCALHOST", True),
        ("localhost.", True),
        ("127.0.0.1:8081", True),
        ("[::1]:8081", True),
        ("192.168.1.7", True),  # An address cannot be rebound as a name can.
        ("api.example.com", True),
        ("a.b.example.org:443", True),
        ("example.org", False),
        ("evil.example", False),
        ("localhost.evil.example", False),
        ("evil.example:127.0.0.1", False),
        ("127.0.0.1.evil.example", False),
        ("", True),  # Only HTTP/1.0 clients omit the host, and no browser does.
    ],
)
def test_a_host_header_is_accepted_if_it_is_an_address_or_an_allowed_name(header: str, allowed: bool) -> None:
    assert Hosts.parse("localhost, api.example.com,*.example.org").allow(header) is allowed


@pytest.mark.parametrize("text", ["", "*", "a.example,*"])
def test_every_host_is_allowed_by_a_star_or_an_empty_setting(text: str) -> None:
    assert Hosts.parse(text).allow("evil.example")


@pytest.mark.parametrize("text", ["http://a.example", "a b", "a.example:80", "*a.example"])
def test_an_invalid_host_name_in_the_setting_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"TIDEMILL_ALLOWED_HOSTS: .*write a name such as"):
        Hosts.parse(text)


def test_a_request_for_another_host_name_is_refused(settings: Any, service: Any) -> None:
    """DNS rebinding of a web page does not reach the service."""
    app = service(settings(config("open", auth=False), hosts="localhost"))
    answer = ask(app, "GET", "/health", Host="evil.example:8081")
    assert (answer.status_code, answer.json()["code"]) == (421, "host_refused")
    assert "TIDEMILL_ALLOWED_HOSTS" in answer.json()["detail"]
    assert ask(app, "GET", "/livez", Host="localhost:8081").status_code in (200, 503)


def test_a_websocket_for_another_host_name_is_refused_before_the_handshake() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        raise AssertionError("the guard passed the request on")

    async def work() -> list[dict[str, Any]]:
        sent: list[dict[str, Any]] = []

        async def send(message: Any) -> None:
            sent.append(message)

        scope = {"type": "websocket", "headers": [(b"host", b"evil.example")]}
        await HostGuard(app, Hosts(["localhost"]))(scope, None, send)  # type: ignore[arg-type]
        return sent

    start, _ = asyncio.run(work())
    assert (start["type"], start["status"]) == ("websocket.http.response.start", 421)


FORMULAS = ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "\n=1", "\uff1d1"]


@pytest.mark.parametrize("text", FORMULAS)
def test_a_text_that_looks_like_a_formula_gets_an_apostrophe_in_csv(text: str) -> None:
    """Numbers in CSV, and all values in NDJSON, are unchanged."""
    columns = [Column("k", "string"), Column("n", "number")]
    (row,) = csv.reader(io.StringIO(CsvWriter(columns).batch([(text, -1.5)]).decode(), newline=""))
    assert row == ["'" + text, "-1.5"]
    assert json.loads(NdjsonWriter(columns).batch([(text, -1.5)])) == {"k": text, "n": -1.5}


def test_connections_without_a_key_are_bounded_per_address_and_in_total() -> None:
    """The end of a connection frees capacity."""
    limit = ConnectionLimit(3, 2)
    first, other = ("192.0.2.1", 1), ("192.0.2.2", 1)
    with limit.reserve(first), limit.reserve(first):
        with pytest.raises(Problem, match="TIDEMILL_API_KEYLESS_PER_ADDRESS") as refused, limit.reserve(first):
            pass
        assert refused.value.status == 429
        with limit.reserve(other):
            with pytest.raises(Problem, match="TIDEMILL_API_KEYLESS_CONNECTIONS") as refused, limit.reserve(other):
                pass
            assert refused.value.status == 503
    with limit.reserve(first), limit.reserve(first):
        pass


def test_bounds_of_connections_are_read_from_the_environment() -> None:
    limit = ConnectionLimit.from_env({"TIDEMILL_API_KEYLESS_CONNECTIONS": "0"})
    with pytest.raises(Problem), limit.reserve(None):
        pass
    with pytest.raises(ValueError, match="TIDEMILL_API_KEYLESS_PER_ADDRESS: 'many'"):
        ConnectionLimit.from_env({"TIDEMILL_API_KEYLESS_PER_ADDRESS": "many"})


def test_a_connection_that_has_sent_no_key_yet_is_counted(settings: Any) -> None:
    """The refusal replaces the handshake."""
    app = create_app(make_services(settings(config("locked", auth=True)), {}), connection_limit=ConnectionLimit(9, 0))
    start, _ = listen(app, "/v1/pipelines/locked/live")
    assert (start["type"], start["status"]) == ("websocket.http.response.start", 429)
