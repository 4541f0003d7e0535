"""The ASGI application: routes, problem details for every error, and background tasks."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import uuid
from collections.abc import AsyncIterator
from typing import Any, Literal

from fastapi import FastAPI
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Match, Route
from starlette.types import Scope

from tidemill_chassis.health import health_report, public_report
from tidemill_chassis.redis_clients import async_client
from tidemill_chassis.resilience.config import ResilienceConfig
from tidemill_chassis.web.asgi import App, HttpMetrics, RequestTimeout, guard_hosts
from tidemill_chassis.web.hosts import Hosts
from tidemill_chassis.web.problems import Problem, answer_problem
from tidemill_chassis.web.server import StatusCallbacks
from tidemill_contract.runtime import WorkloadSettings
from tidemill_ingest.events import EventsHandler
from tidemill_ingest.idempotency.requests import IdempotencyStore
from tidemill_ingest.idempotency.shared import SharedKeys
from tidemill_ingest.kafka.monitor import KafkaMonitor
from tidemill_ingest.kafka.sink import Sink
from tidemill_ingest.openapi import EVENTS_PATH, WEBHOOK_PATH, describe
from tidemill_ingest.pipelines import Pipelines
from tidemill_ingest.quota import Limits, Quota
from tidemill_ingest.webhooks.handler import WebhookHandler
from tidemill_ingest.webhooks.secrets import Secrets

log = logging.getLogger(__name__)

FLUSH_SECONDS = 3.0
"""How long (seconds) the service may flush queued records after the last request."""

CLOSE_SECONDS = 1.0
"""The stopping service waits this long (seconds) for requests. Their writes to Redis get the same time again."""

MAX_REDIS_CONNECTIONS = 100


class Index(BaseModel):
    """The start page: links to the service's addresses."""

    service: str
    namespace: str
    links: dict[str, str]


class Check(BaseModel):
    """The body of /livez and /readyz."""

    ok: bool


class DependencyReport(BaseModel):
    """A dependency in the body of /health."""

    status: Literal["up", "down"]
    required: bool
    breaker: Literal["closed", "half_open", "open"]


class Health(BaseModel):
    """The body of /health."""

    status: Literal["healthy", "degraded", "unhealthy"]
    component: str
    dependencies: dict[str, DependencyReport]


class _EventsRoute(Route):
    """Adds itself to the ASGI scope. HTTP metrics need the route's path template."""

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        match, child = super().matches(scope)
        return match, {**child, "route": self} if child else child


class Ingest:
    """The ingest service, with its Kafka sink, its pipelines and its routes."""

    def __init__(self, settings: WorkloadSettings, resilience: ResilienceConfig, limits: Limits) -> None:
        self._settings, self._hosts = settings, Hosts.parse(settings.allowed_hosts)
        guards = resilience.guards()
        self._request_seconds = resilience.timeouts.api_request_seconds
        self.sink = Sink(
            settings,
            guards.kafka_producer,
            request_seconds=self._request_seconds,
            in_flight_bytes=limits.in_flight_bytes,
        )
        self.kafka_monitor = KafkaMonitor(self.sink, guards.kafka_producer)
        self.pipelines = Pipelines(settings)
        redis_seconds = resilience.timeouts.redis_seconds
        client = None
        if settings.redis_url:
            client = async_client(settings, redis_seconds, max_connections=MAX_REDIS_CONNECTIONS)
        # A restarted process gets a new owner name. The queued records of the earlier process are lost.
        owner = f"{settings.instance or 'ingest'}-{uuid.uuid4().hex}"
        self.keys = SharedKeys(client, guards.redis, namespace=settings.namespace, owner=owner)
        self._idempotency = IdempotencyStore(self.keys, down_signal=lambda: self.sink.down_signal)
        self._events = EventsHandler(self.pipelines, self.sink, Quota(limits), self._idempotency)
        self._secrets = Secrets(settings)
        self._webhooks = WebhookHandler(self.pipelines, self._events, self._secrets)

    def app(self) -> App:
        """Return the application with its middleware."""
        app = FastAPI(
            title="Tidemill ingest", version="1", lifespan=self._lifespan, docs_url=None, redoc_url=None,
            redirect_slashes=False,
            description="Receives events over HTTP and writes them to Kafka. The answer reports the acceptance of each"
            " event.",
        )  # fmt: skip
        app.router.routes.append(_EventsRoute(EVENTS_PATH, self._events.append, methods=["POST"]))
        app.router.routes.append(_EventsRoute(WEBHOOK_PATH, self._webhooks.receive, methods=["POST"]))
        app.add_api_route("/", self._index, summary="What is here")
        app.add_api_route("/health", self._health, summary="Health", response_model=Health, responses=_UNHEALTHY)
        app.add_api_route("/livez", self._live, summary="Liveness", response_model=Check)
        app.add_api_route("/readyz", self._ready, summary="Readiness", response_model=Check, responses=_UNREADY)
        app.add_exception_handler(Problem, answer_problem)
        app.add_exception_handler(HTTPException, _answer_http_error)
        app.add_exception_handler(Exception, _answer_internal_error)
        document = describe(app)
        app.openapi = lambda: document  # type: ignore[method-assign]
        return HttpMetrics(guard_hosts(RequestTimeout(app, self._request_seconds), self._hosts))

    @property
    def status(self) -> StatusCallbacks:
        """The callbacks for the status port: /health, readiness and liveness."""
        return StatusCallbacks(self._report, lambda: self.kafka_monitor.up, lambda: True)

    @contextlib.asynccontextmanager
    async def _lifespan(self, app: FastAPI) -> AsyncIterator[None]:
        self.sink.start()
        background_tasks = [asyncio.create_task(coroutine) for coroutine in (self.kafka_monitor.run(), self.keys.run())]
        try:
            yield
        finally:
            await self._events.close(FLUSH_SECONDS)
            if lost := await self.sink.close(FLUSH_SECONDS):
                log.error("%d records were not acknowledged by Kafka before the process ended", lost)
            await self._idempotency.close(CLOSE_SECONDS)
            for task in background_tasks:
                task.cancel()
            await asyncio.wait(background_tasks)

    async def _index(self) -> Index:
        links = {"events": EVENTS_PATH, "webhooks": WEBHOOK_PATH, "openapi": "/openapi.json", "health": "/health"}
        return Index(service="tidemill-ingest", namespace=self._settings.namespace, links=links)

    def _report(self) -> tuple[int, dict[str, Any]]:
        without_secret = [
            f"{name}/{hook.name}"
            for name, hook in self.pipelines.webhooks()
            if not self._secrets.for_webhook(name, hook)
        ]
        extra = {
            "pipelines": self.pipelines.names(), "queued": self.sink.queued, "faults": self.pipelines.faults(),
            "webhooks_without_secret": without_secret,
        }  # fmt: skip
        return health_report("ingest", [self.kafka_monitor.dependency(), *self.keys.dependency()], extra)

    async def _health(self) -> Response:
        status, body = self._report()
        return JSONResponse(public_report(body), status, _NO_STORE)

    async def _live(self) -> Response:
        return JSONResponse({"ok": True}, 200, _NO_STORE)

    async def _ready(self) -> Response:
        # Without Kafka, the process stays ready. For clients, a 503 with Retry-After is better than a refused
        # connection.
        ready = self.kafka_monitor.has_answered
        return JSONResponse({"ok": ready}, 200 if ready else 503, _NO_STORE)


_NO_STORE = {"cache-control": "no-store"}
_UNHEALTHY: dict[int | str, dict[str, Any]] = {503: {"model": Health, "description": "Kafka is down."}}
_UNREADY: dict[int | str, dict[str, Any]] = {503: {"model": Check, "description": "Not ready for traffic."}}


async def _answer_http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)  # noqa: S101 - registered for this class alone
    codes = {404: "not_found", 405: "method_not_allowed"}
    detail = f"{request.method} {request.url.path}: see /openapi.json for the available paths"
    headers = dict(error.headers or {})
    return Problem(error.status_code, codes.get(error.status_code, "http_error"), detail, headers=headers).response()


async def _answer_internal_error(request: Request, error: Exception) -> Response:
    return Problem(500, "internal_error", "this service has an internal error; read its log").response()
