"""/health, /livez, /readyz and /metrics."""

from __future__ import annotations

from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from tidemill_api.routing import TemplateRoute
from tidemill_api.rows import JSON
from tidemill_api.upkeep import Upkeep
from tidemill_contract.exposition import CONTENT_TYPE, exposition

_NO_STORE = {"cache-control": "no-store"}


def status_routes(upkeep: Upkeep) -> list[TemplateRoute]:
    """The routes that probes and scrapers ask; they need no key."""

    async def health(_: Request) -> Response:
        return _json(*upkeep.health())

    async def livez(_: Request) -> Response:
        return _flag(upkeep.alive())

    async def readyz(_: Request) -> Response:
        return _flag(upkeep.ready())

    async def metrics(_: Request) -> Response:
        return Response(exposition(), headers={**_NO_STORE, "content-type": CONTENT_TYPE})

    handlers = {"/health": health, "/livez": livez, "/readyz": readyz, "/metrics": metrics}
    return [TemplateRoute(path, handler, methods=["GET"]) for path, handler in handlers.items()]


def _flag(ok: bool) -> Response:
    return _json(200 if ok else 503, {"ok": ok})


def _json(status: int, body: Any) -> Response:
    return Response(msgspec.json.encode(body), status, headers=_NO_STORE, media_type=JSON)
