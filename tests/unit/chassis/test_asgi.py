"""Tests of the ASGI layers: metrics of requests, the request timeout, and answers of problems."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx
import pytest
from fastapi import APIRouter, FastAPI, Request, WebSocket
from fastapi.responses import StreamingResponse
from prometheus_client import REGISTRY
from starlette.staticfiles import StaticFiles

from tidemill_chassis.resilience.guard import Deadline
from tidemill_chassis.web.asgi import (
    HttpMetrics,
    Message,
    Receive,
    RequestTimeout,
    Scope,
    Send,
    problem_body,
    route_template,
    send_problem,
)


def build(tmp_path: Any) -> FastAPI:
    app = FastAPI()
    router = APIRouter()

    @router.get("/pipelines/{pipeline}")
    async def read(pipeline: str) -> str:
        return pipeline

    @router.get("/fails")
    async def fails() -> None:
        raise RuntimeError("boom")

    @router.get("/stream")
    async def stream() -> StreamingResponse:
        async def chunks() -> Any:
            yield b"data: 1\n\n"

        return StreamingResponse(chunks(), media_type="text/event-stream")

    app.include_router(router, prefix="/v1")
    app.mount("/static", StaticFiles(directory=tmp_path))

    @app.get("/health")
    async def health() -> dict[str, str]:
        return {}

    return app


async def _request(app: Any, method: str, path: str, **options: Any) -> httpx.Response:
    transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://x") as client:
        return await client.request(method, path, **options)


def request(app: Any, method: str, path: str) -> httpx.Response:
    return asyncio.run(_request(app, method, path))


def count(method: str, template: str, status: int | str) -> float:
    labels = {"method": method, "endpoint": template, "status_code": str(status)}
    return REGISTRY.get_sample_value("http_requests_total", labels) or 0.0


@pytest.mark.parametrize(
    ("method", "path", "labels"),
    [
        ("GET", "/v1/pipelines/flights", ("GET", "/v1/pipelines/{pipeline}", 200)),
        ("GET", "/health", ("GET", "/health", 200)),
        ("POST", "/health", ("POST", "/health", 405)),
        ("GET", "/v1/pipelines/a/b/c", ("GET", "unmatched", 404)),
        ("GET", "/static/../../etc/passwd", ("GET", "unmatched", 404)),
        ("GET", "/v1/fails", ("GET", "/v1/fails", 500)),
        ("GET", "/v1/stream", ("GET", "/v1/stream", 200)),
        ("BREW", "/health", ("other", "/health", 405)),
    ],
    ids=[
        "the template with the prefix of its router, not the path",
        "a route of the app itself",
        "the path matches, the method does not",
        "no route",
        "a mount",
        "the handler raises",
        "a stream",
        "a made-up method makes no label of its own",
    ],
)
def test_requests_are_counted_by_the_template_of_their_route(
    tmp_path: Any, method: str, path: str, labels: tuple[str, str, int]
) -> None:
    app = HttpMetrics(build(tmp_path))
    before = count(*labels)
    request(app, method, path)
    assert count(*labels) == before + 1


def test_a_request_lasts_until_its_answer_ends_except_for_event_streams() -> None:
    now = [0.0]

    def app_of(kind: bytes) -> Any:
        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            scope["route"] = type("Route", (), {"path": f"/timed/{kind.decode()}"})
            now[0] += 1
            await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", kind)]})
            now[0] += 100
            await send({"type": "http.response.body", "body": b""})

        return HttpMetrics(app, clock=lambda: now[0])

    for kind, seconds in ((b"text/plain", 101.0), (b"text/event-stream; charset=utf-8", 1.0)):
        request(app_of(kind), "GET", "/x")
        labels = {"method": "GET", "endpoint": f"/timed/{kind.decode()}"}
        assert REGISTRY.get_sample_value("http_request_duration_seconds_sum", labels) == seconds


@pytest.mark.parametrize(("begun", "status"), [(False, "499"), (True, "200")], ids=["no answer yet", "in mid-answer"])
def test_a_client_that_disconnects_is_not_counted_as_a_server_error(begun: bool, status: str) -> None:
    template = f"/left/{begun}"

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        scope["route"] = type("Route", (), {"path": template})
        if begun:
            await send({"type": "http.response.start", "status": 200, "headers": []})
        await asyncio.Event().wait()

    async def scenario() -> None:
        task = asyncio.create_task(HttpMetrics(app)({"type": "http", "method": "GET"}, _nothing, _swallow))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(scenario())
    assert count("GET", template, status) == 1


async def _nothing() -> Message:
    return {"type": "http.disconnect"}


async def _swallow(message: Message) -> None:
    return None


@pytest.mark.parametrize(
    ("scope", "expected"),
    [
        ({}, "unmatched"),
        ({"route": None}, "unmatched"),
        ({"route": object()}, "unmatched"),
        ({"route": type("Route", (), {"path": "/a/{b}"})}, "/a/{b}"),
        ({"route": type("Route", (), {"path": ""})}, "unmatched"),
        ({"route": type("Route", (), {"path": "/a"}), "fastapi": {}}, "/a"),
        ({"route": type("Route", (), {"path": 3})}, "unmatched"),
    ],
)
def test_an_endpoint_is_named_by_its_routes_template(scope: dict[str, Any], expected: str) -> None:
    assert route_template(scope) == expected


# The request timeout


def slow(*, begin: bool = False, swallow: bool = False) -> Any:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if begin:
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"a", "more_body": True})
            await asyncio.sleep(0.05)
            await send({"type": "http.response.body", "body": b"b"})
            return
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            if not swallow:
                raise
            await send({"type": "http.response.start", "status": 500, "headers": []})
            await send({"type": "http.response.body", "body": b"late"})

    return app


@pytest.mark.parametrize("swallow", [False, True], ids=["cancelled", "answers its own cancellation"])
def test_a_request_without_an_answer_in_time_gets_a_504_problem(swallow: bool) -> None:
    response = request(RequestTimeout(slow(swallow=swallow), 0.01), "GET", "/x")
    assert (response.status_code, response.headers["content-type"]) == (504, "application/problem+json")
    assert (response.json()["code"], response.json()["status"]) == ("request_timeout", 504)


def test_an_answer_that_has_begun_is_not_cut_by_the_timeout() -> None:
    response = request(RequestTimeout(slow(begin=True), 0.01), "GET", "/x")
    assert (response.status_code, response.content) == (200, b"ab")


def test_a_timeout_error_of_the_app_is_passed_on() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        raise TimeoutError("database")

    async def scenario() -> None:
        await RequestTimeout(app, 10)({"type": "http"}, _nothing, _swallow)

    with pytest.raises(TimeoutError, match="database"):
        asyncio.run(scenario())


@pytest.mark.parametrize("kind", ["websocket", "lifespan"])
def test_connections_other_than_http_are_neither_measured_nor_timed_out(kind: str) -> None:
    scopes = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await asyncio.sleep(0.03)
        scopes.append(dict(scope))

    async def scenario() -> None:
        await HttpMetrics(RequestTimeout(app, 0.001))({"type": kind}, _nothing, _swallow)

    asyncio.run(scenario())
    assert scopes == [{"type": kind}]


def test_a_handler_reads_the_deadline_of_its_request() -> None:
    app = FastAPI()

    @app.get("/left")
    async def left(request: Request) -> dict[str, Any]:
        deadline: Deadline = request.state.deadline
        return {"left": deadline.remaining(), "own": getattr(request.state, "own", None)}

    @app.websocket("/live")
    async def live(socket: WebSocket) -> None:
        await socket.accept()

    body = request(RequestTimeout(app, 20), "GET", "/left").json()
    assert 19 < body["left"] <= 20


# Problems


def test_a_problem_has_its_code_detail_and_members() -> None:
    body = json.loads(problem_body(422, "bad_parameter", "limit: 0 is below 1", field="limit"))
    assert body == {
        "type": "urn:tidemill:problem:bad_parameter",
        "title": "Bad Parameter",
        "status": 422,
        "code": "bad_parameter",
        "detail": "limit: 0 is below 1",
        "field": "limit",
    }
    assert "detail" not in json.loads(problem_body(404, "not_found"))


def test_send_problem_sends_a_complete_response() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send_problem(send, 503, "kafka_unavailable", headers=[(b"retry-after", b"3")], retry=True)

    response = request(app, "POST", "/x")
    assert response.status_code == 503
    assert response.headers["retry-after"] == "3"
    assert response.headers["content-length"] == str(len(response.content))
    assert response.json()["retry"] is True
