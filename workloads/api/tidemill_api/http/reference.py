"""Serves /openapi.json, and the page /docs that shows this document."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from tidemill_api.formats.json import JSON
from tidemill_api.http.openapi import document
from tidemill_api.http.routing import TemplateRoute

_FILES = Path(__file__).with_name("reference_page")
_PAGES = {
    "/docs": ("reference.html", "text/html; charset=utf-8"),
    "/docs/reference.css": ("reference.css", "text/css; charset=utf-8"),
    "/docs/reference.js": ("reference.js", "text/javascript; charset=utf-8"),
}
_HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self';"
    " base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-cache",
}


def reference_routes() -> list[TemplateRoute]:
    """Return the routes of the OpenAPI document, and of the page that shows the document."""
    encoded = msgspec.json.encode(document())

    async def openapi(_: Request) -> Response:
        return Response(encoded, headers={"cache-control": "no-cache"}, media_type=JSON)

    return [
        TemplateRoute("/openapi.json", openapi),
        *(TemplateRoute(path, _page(*page)) for path, page in _PAGES.items()),
    ]


def _page(name: str, content_type: str) -> Callable[[Request], Awaitable[Response]]:
    body = (_FILES / name).read_bytes()

    async def page(_: Request) -> Response:
        return Response(body, headers={**_HEADERS, "content-type": content_type})

    return page
