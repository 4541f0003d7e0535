"""What nobody learns without a key, from which names a service may be called, and what a spreadsheet would run."""

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
from tidemill_api.live.places import Places
from tidemill_api.query.selection import Column
from tidemill_api.services import make_services
from tidemill_chassis.health import Dependency, public, report
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
    made = PipelineSpec.model_validate(document)
    return PipelineConfig(
        namespace="ns", name=name, generation=1, spec=made, aggregations=(AggregationRef(name="all"),)
    )


@pytest.fixture
def settings(tmp_path: Path) -> Callable[..., WorkloadSettings]:
    def make(*configs: PipelineConfig, hosts: str = "") -> WorkloadSettings:
        for found in configs:
            (tmp_path / f"{found.name}.json").write_text(found.to_json())
        return WorkloadSettings(
            config_dir=tmp_path, secrets_dir=tmp_path, kafka_brokers="127.0.0.1:1", postgres_port=1, allowed_hosts=hosts
        )

    return make


@pytest.fixture(params=["api", "ingest"])
def service(request: pytest.FixtureRequest) -> Callable[[WorkloadSettings], Any]:
    """Makes the ASGI application of either service."""

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


WAYS = [("GET", "/v1/pipelines/{}"), ("GET", "/v1/pipelines/{}/live"), ("POST", "/v1/pipelines/{}/events")]


def test_a_locked_name_answers_as_one_that_does_not_exist(settings: Any, service: Any) -> None:
    """With no key and with a wrong one; also where a locked pipeline takes no requests at all."""
    shut = config("shut", auth=True, ingest={"enabled": False}, api={"enabled": False})
    app = service(settings(config("locked", auth=True), config("open", auth=False), shut))
    for method, path in WAYS:
        for headers in ({}, {"Authorization": "Bearer tm_a_b"}, {"Authorization": "Basic x"}):
            answers = [ask(app, method, path.format(name), **headers) for name in ("locked", "shut", "nobodys")]
            if answers[0].status_code in (404, 405):
                continue  # the other service's way
            assert {answer.status_code for answer in answers} == {401}, (path, headers)
            assert len({answer.content for answer in answers}) == 1, (path, headers)


def test_where_all_is_open_a_name_that_is_wrong_is_not_found(settings: Any, service: Any) -> None:
    app = service(settings(config("open", auth=False)))
    found = [ask(app, method, path.format("opne")).status_code for method, path in WAYS]
    assert 401 not in found
    assert 404 in found


def listen(app: Any, path: str, *texts: str) -> list[dict[str, Any]]:
    """What a WebSocket is sent that says these texts."""
    sent: list[dict[str, Any]] = []
    said = iter([{"type": "websocket.connect"}, *({"type": "websocket.receive", "text": text} for text in texts)])

    async def receive() -> Any:
        for message in said:
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


def test_the_live_socket_tells_no_names_either(settings: Any) -> None:
    """It waits for a key before it says anything."""
    app = create_app(make_services(settings(config("locked", auth=True)), {}))
    locked, nobodys = (
        listen(app, f"/v1/pipelines/{name}/live", '{"type": "auth", "token": "tm_a_b"}')
        for name in ("locked", "nobodys")
    )
    assert locked == nobodys
    assert [message["type"] for message in locked] == ["websocket.accept", "websocket.send", "websocket.close"]
    assert (json.loads(locked[1]["text"])["code"], locked[2]["code"]) == ("unauthorized", 4401)


def test_health_for_everybody_says_statuses(settings: Any, service: Any) -> None:
    """No names, counts, addresses; figures are nowhere on this port."""
    app = service(settings(config("locked", auth=True)))
    body = ask(app, "GET", "/health").json()
    assert set(body) == {"status", "component", "dependencies"}
    assert all(set(row) == {"status", "required", "breaker"} for row in body["dependencies"].values())
    assert ask(app, "GET", "/metrics").status_code == 404
    assert "locked" not in ask(app, "GET", "/").text


def test_what_is_left_of_a_report() -> None:
    row = Dependency("postgres", False, True, "connection to 10.0.0.5 refused", "open", 1.0)
    _, body = report("api", [row], {"pipelines": ["locked"]})
    assert public(body) == {
        "status": "unhealthy",
        "component": "api",
        "dependencies": {"postgres": {"status": "down", "required": True, "breaker": "open"}},
    }


def test_no_redirect_follows_the_host(settings: Any, service: Any) -> None:
    """A path with a slash too much is nowhere, whatever name the caller gives."""
    app = service(settings(config("open", auth=False)))
    for path in ("/health/", "/v1/pipelines/", "/v1/pipelines/open/events/"):
        answer = ask(app, "GET", path, Host="evil.example")
        assert answer.status_code in (404, 405)
        assert "location" not in answer.headers


@pytest.mark.parametrize(
    ("header", "taken"),
    [
        ("localhost:8081", True),
        ("LOCALHOST", True),
        ("localhost.", True),
        ("127.0.0.1:8081", True),
        ("[::1]:8081", True),
        ("192.168.1.7", True),  # an address: no name could have been made to lead here
        ("api.example.com", True),
        ("a.b.example.org:443", True),
        ("example.org", False),
        ("evil.example", False),
        ("localhost.evil.example", False),
        ("evil.example:127.0.0.1", False),
        ("127.0.0.1.evil.example", False),
        ("", True),  # HTTP/1.0: no browser
    ],
)
def test_names_that_a_service_is_called_by(header: str, taken: bool) -> None:
    assert Hosts.parse("localhost, api.example.com,*.example.org").allow(header) is taken


@pytest.mark.parametrize("text", ["", "*", "a.example,*"])
def test_every_name_may_be_taken(text: str) -> None:
    assert Hosts.parse(text).allow("evil.example")


@pytest.mark.parametrize("text", ["http://a.example", "a b", "a.example:80", "*a.example"])
def test_what_is_no_name_is_refused_with_its_setting(text: str) -> None:
    with pytest.raises(ValueError, match=r"TIDEMILL_ALLOWED_HOSTS: .*write a name such as"):
        Hosts.parse(text)


def test_other_names_are_misdirected(settings: Any, service: Any) -> None:
    """A page whose name was made to lead here reads nothing, over HTTP and over WebSockets."""
    app = service(settings(config("open", auth=False), hosts="localhost"))
    answer = ask(app, "GET", "/health", Host="evil.example:8081")
    assert (answer.status_code, answer.json()["code"]) == (421, "host_refused")
    assert "TIDEMILL_ALLOWED_HOSTS" in answer.json()["detail"]
    assert ask(app, "GET", "/livez", Host="localhost:8081").status_code in (200, 503)


def test_a_socket_by_another_name_is_refused_before_it_opens() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        raise AssertionError("it must not get here")

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
def test_no_cell_is_a_formula(text: str) -> None:
    """It begins with an apostrophe; numbers and NDJSON stay as they are."""
    columns = [Column("k", "string"), Column("n", "number")]
    (row,) = csv.reader(io.StringIO(CsvWriter(columns).batch([(text, -1.5)]).decode(), newline=""))
    assert row == ["'" + text, "-1.5"]
    assert json.loads(NdjsonWriter(columns).batch([(text, -1.5)])) == {"k": text, "n": -1.5}


def test_connections_without_a_key_are_bounded() -> None:
    """Of an address, which is told so, and in all; a place that is given back is there again."""
    places = Places(3, 2)
    one, other = ("192.0.2.1", 1), ("192.0.2.2", 1)
    with places.taken(one), places.taken(one):
        with pytest.raises(Problem, match="TIDEMILL_API_KEYLESS_PER_ADDRESS") as refused, places.taken(one):
            pass
        assert refused.value.status == 429
        with places.taken(other):
            with pytest.raises(Problem, match="TIDEMILL_API_KEYLESS_CONNECTIONS") as refused, places.taken(other):
                pass
            assert refused.value.status == 503
    with places.taken(one), places.taken(one):
        pass


def test_places_are_set_by_the_environment() -> None:
    places = Places.from_env({"TIDEMILL_API_KEYLESS_CONNECTIONS": "0"})
    with pytest.raises(Problem), places.taken(None):
        pass
    with pytest.raises(ValueError, match="TIDEMILL_API_KEYLESS_PER_ADDRESS: 'many'"):
        Places.from_env({"TIDEMILL_API_KEYLESS_PER_ADDRESS": "many"})


def test_who_has_shown_no_key_yet_needs_a_place(settings: Any) -> None:
    """Also where a key is asked for and waited for; the refusal comes in place of the handshake."""
    app = create_app(make_services(settings(config("locked", auth=True)), {}), places=Places(9, 0))
    start, _ = listen(app, "/v1/pipelines/locked/live")
    assert (start["type"], start["status"]) == ("websocket.http.response.start", 429)
