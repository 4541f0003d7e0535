"""The application: routes, middleware and background tasks."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware

from tidemill_api.dashboard import dashboard_router
from tidemill_api.health_monitor import HealthMonitor
from tidemill_api.http.cache_middleware import CacheMiddleware
from tidemill_api.http.reference import reference_routes
from tidemill_api.http.rest import Rest, answer_defect, answer_unmatched
from tidemill_api.http.status_routes import status_routes
from tidemill_api.live.connection_limit import ConnectionLimit
from tidemill_api.live.routes import live_router
from tidemill_api.services import Services
from tidemill_chassis.web.asgi import App, HttpMetrics, RequestTimeout, guard_hosts
from tidemill_chassis.web.hosts import Hosts
from tidemill_chassis.web.problems import Problem, answer_problem


def create_app(
    services: Services,
    *,
    cors_origins: Sequence[str] = (),
    hosts: Hosts | None = None,
    health_monitor: HealthMonitor | None = None,
    connection_limit: ConnectionLimit | None = None,
) -> App:
    """Return the ASGI application of the API.

    Args:
        services: the shared services, which are closed when the application ends.
        cors_origins: origins whose pages can read answers and open WebSockets, in addition to the API's own origin.
        hosts: the host names that clients can use, or None for all host names.
        health_monitor: the background tasks, or None to create a health monitor.
        connection_limit: the limits of live connections without an API key, or None for the default limits.
    """
    health_monitor, cache_middleware = health_monitor or HealthMonitor(services), CacheMiddleware(services)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        health_monitor.start()
        yield
        await health_monitor.stop()
        await services.close()

    app = FastAPI(
        title="Tidemill API", openapi_url=None, docs_url=None, redoc_url=None, redirect_slashes=False,
        lifespan=lifespan,
    )  # fmt: skip
    app.add_exception_handler(Problem, answer_problem)
    app.add_exception_handler(HTTPException, answer_unmatched)
    app.add_exception_handler(Exception, answer_defect)
    app.router.routes.extend(status_routes(health_monitor))
    app.router.routes.extend(Rest(services, cache_middleware).routes())
    app.router.routes.extend(reference_routes())
    app.include_router(live_router(services, origins=cors_origins, connection_limit=connection_limit))
    app.include_router(dashboard_router())
    cache_middleware.app = RequestTimeout(app, services.resilience.timeouts.api_request_seconds)
    return HttpMetrics(guard_hosts(_with_cors(cache_middleware, cors_origins), hosts or Hosts(())))


def _with_cors(app: App, origins: Sequence[str]) -> App:
    if not origins:
        return app
    return CORSMiddleware(
        app,
        allow_origins=origins,
        allow_methods=["GET", "POST"],
        allow_headers=["authorization", "content-type", "if-none-match", "last-event-id"],
        expose_headers=["etag", "age", "warning", "tidemill-stale", "tidemill-next-cursor", "retry-after"],
    )
