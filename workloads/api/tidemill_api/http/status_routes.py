"""Public routes /health, /livez and /readyz."""

from __future__ import annotations

from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from tidemill_api.formats.json import JSON
from tidemill_api.health_monitor import HealthMonitor
from tidemill_api.http.routing import TemplateRoute
from tidemill_chassis.health import public_report

_NO_STORE = {"cache-control": "no-store"}


def status_routes(health_monitor: HealthMonitor) -> list[TemplateRoute]:
    """Return the status routes, which need no API key."""

    async def health(_: Request) -> Response:
        status, body = health_monitor.health()
        return _json(status, public_report(body))

    async def livez(_: Request) -> Response:
        return _flag(health_monitor.alive())

    async def readyz(_: Request) -> Response:
        return _flag(health_monitor.ready())

    handlers = {"/health": health, "/livez": livez, "/readyz": readyz}
    return [TemplateRoute(path, handler, methods=["GET"]) for path, handler in handlers.items()]


def _flag(ok: bool) -> Response:
    return _json(200 if ok else 503, {"ok": ok})


def _json(status: int, body: Any) -> Response:
    return Response(msgspec.json.encode(body), status, headers=_NO_STORE, media_type=JSON)
