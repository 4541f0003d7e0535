"""The application: routes, middleware and what runs beside requests."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI

from tidemill_api.dashboard import dashboard_router
from tidemill_api.live_routes import live_router
from tidemill_api.problems import Problem, answer_problem
from tidemill_api.services import Services
from tidemill_contract.asgi import App, HttpMetrics, RequestTimeout


def create_app(services: Services) -> App:
    """The ASGI application of a process."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await services.close()

    app = FastAPI(title="Tidemill API", openapi_url=None, docs_url=None, redoc_url=None, lifespan=lifespan)
    app.add_exception_handler(Problem, answer_problem)
    app.include_router(live_router(services))
    app.include_router(dashboard_router())
    return HttpMetrics(RequestTimeout(app, services.resilience.timeouts.api_request_seconds))
