"""ASGI middleware of ingest and API: request metrics, timeout, host names, and problem details (RFC 9457)."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any

import msgspec

from tidemill_chassis.resilience.guard import Deadline
from tidemill_chassis.web import metrics as http_metrics
from tidemill_chassis.web.hosts import REMEDY, Hosts

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

PROBLEM_TYPE = "application/problem+json"
UNMATCHED = "unmatched"
_KNOWN_HOSTS = 1_000
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_CLIENT_LEFT = "499"
"""The status if the client disconnects before the response starts. nginx uses the same status."""


def problem_body(status: int, code: str, detail: str = "", **extra: Any) -> bytes:
    """Return a body of problem details."""
    title = code.replace("_", " ").title()
    body = {"type": f"urn:tidemill:problem:{code}", "title": title, "status": status, "code": code}
    if detail:
        body["detail"] = detail
    return msgspec.json.encode({**body, **extra})


async def send_problem(
    send: Send,
    status: int,
    code: str,
    detail: str = "",
    *,
    headers: Iterable[tuple[bytes, bytes]] = (),
    **extra: Any,
) -> None:
    """Answer an HTTP request with a problem."""
    body = problem_body(status, code, detail, **extra)
    fixed = [
        (b"content-type", PROBLEM_TYPE.encode()),
        (b"content-length", b"%d" % len(body)),
        (b"cache-control", b"no-store"),
    ]
    await send({"type": "http.response.start", "status": status, "headers": [*fixed, *headers]})
    await send({"type": "http.response.body", "body": body})


def route_template(scope: Scope) -> str:
    """Return the template of the request's route, or `unmatched` without a route."""
    route = scope.get("route")
    if route is None:
        return UNMATCHED
    # For a router inside another router, only `effective_route_context` has the complete path.
    included = scope.get("fastapi")
    context = included.get("effective_route_context") if isinstance(included, dict) else None
    template = (
        getattr(context, "path_format", None) or getattr(route, "path_format", None) or getattr(route, "path", None)
    )
    return template if isinstance(template, str) and template else UNMATCHED


class HttpMetrics:
    """Counts and times HTTP requests by method, route template and status code."""

    def __init__(self, app: App, clock: Callable[[], float] = time.perf_counter) -> None:
        self._app, self._clock = app, clock
        self._counters: dict[tuple[str, str, str], Any] = {}
        self._timers: dict[tuple[str, str], Any] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle an ASGI connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = self._clock()
        status = ""
        ended: float | None = None

        async def observed_send(message: Message) -> None:
            nonlocal status, ended
            if message["type"] == "http.response.start":
                status = str(message["status"])
                if _is_event_stream(message):
                    ended = self._clock()  # for an event stream, only the time until the response starts is measured
            await send(message)

        try:
            await self._app(scope, receive, observed_send)
        except asyncio.CancelledError:
            status = status or _CLIENT_LEFT
            raise
        except BaseException:
            status = status or "500"
            raise
        finally:
            self._record(scope, status or "500", (ended or self._clock()) - started)

    def _record(self, scope: Scope, status: str, seconds: float) -> None:
        method = scope["method"] if scope["method"] in _METHODS else "other"
        template = route_template(scope)
        counter = self._counters.get((method, template, status))
        if counter is None:
            counter = self._counters[(method, template, status)] = http_metrics.HTTP_REQUESTS.labels(
                method, template, status
            )
        counter.inc()
        timer = self._timers.get((method, template))
        if timer is None:
            timer = self._timers[(method, template)] = http_metrics.HTTP_REQUEST_SECONDS.labels(method, template)
        timer.observe(seconds)


def _is_event_stream(message: Message) -> bool:
    return any(
        name == b"content-type" and value.startswith(b"text/event-stream") for name, value in message.get("headers", ())
    )


class RequestTimeout:
    """Answers an HTTP request with a 504 problem if its response has not started in time.

    Handlers find the deadline of the request in `scope["state"]["deadline"]`.
    """

    def __init__(self, app: App, seconds: float) -> None:
        self._app, self._seconds = app, seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle an ASGI connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        scope["state"] = {**scope.get("state", {}), "deadline": Deadline.after(self._seconds)}
        started = False
        timer = asyncio.timeout(self._seconds)

        async def send_in_time(message: Message) -> None:
            nonlocal started
            if not started and message["type"] == "http.response.start":
                if timer.expired():
                    return  # the time limit has passed, so the client gets a 504 instead
                started = True
                timer.reschedule(None)
            elif not started:
                return
            await send(message)

        try:
            async with timer:
                await self._app(scope, receive, send_in_time)
        except TimeoutError:
            if started or not timer.expired():
                raise
        if timer.expired() and not started:
            detail = f"no answer within {self._seconds:g} s; ask for less, or try again later"
            # Close the connection, because the rest of the request body may still arrive.
            close = [(b"connection", b"close")]
            await send_problem(send, 504, "request_timeout", detail, headers=close)


def guard_hosts(app: App, hosts: Hosts) -> App:
    """Wrap an application so that it answers only requests for these host names."""
    return app if hosts.allow_all else HostGuard(app, hosts)


class HostGuard:
    """ASGI middleware that answers 421 to requests for other host names."""

    def __init__(self, app: App, hosts: Hosts) -> None:
        self._app, self._hosts = app, hosts
        self._allowed: set[bytes] = set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle an ASGI connection."""
        if scope["type"] == "lifespan" or self._allow(scope):
            await self._app(scope, receive, send)
            return
        detail = f"the Host header is not a name of this service; {REMEDY}"
        await send_problem(_denial(scope, send), 421, "host_refused", detail)

    def _allow(self, scope: Scope) -> bool:
        for name, value in scope["headers"]:
            if name == b"host":
                return value in self._allowed or self._check(value)
        return True

    def _check(self, header: bytes) -> bool:
        if not self._hosts.allow(header.decode("latin-1")):
            return False
        if len(self._allowed) >= _KNOWN_HOSTS:
            self._allowed.clear()
        self._allowed.add(header)
        return True


def _denial(scope: Scope, send: Send) -> Send:
    """Return a function that sends an HTTP response. A WebSocket client gets the response instead of a connection."""
    if scope["type"] == "http":
        return send

    async def send_denial(message: Message) -> None:
        await send({**message, "type": f"websocket.{message['type']}"})

    return send_denial
