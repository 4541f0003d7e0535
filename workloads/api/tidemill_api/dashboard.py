"""Serves the dashboard, a page of static files in this package."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from importlib import resources

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from tidemill_api.http.replies import etag_matches
from tidemill_chassis.web.problems import not_found

STATIC = "/static"
TYPES = {
    "html": "text/html; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
}
# Browsers run only the scripts of this host, and no inline code. Code in a pipeline's data therefore never runs.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; base-uri 'none';"
    " form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-cache",
}


@dataclass(frozen=True)
class Asset:
    """A static file."""

    body: bytes
    media: str
    etag: str


def load_assets() -> dict[str, Asset]:
    """Return the static files by name."""
    assets = {}
    for file in (resources.files("tidemill_api") / "static").iterdir():
        media = TYPES.get(file.name.rpartition(".")[2])
        if media is not None:
            body = file.read_bytes()
            assets[file.name] = Asset(body, media, f'"{hashlib.sha256(body).hexdigest()[:24]}"')
    return assets


def dashboard_router() -> APIRouter:
    """Return the routes of the dashboard's page and files, which need no API key."""
    router, assets = APIRouter(), load_assets()

    async def page(request: Request) -> Response:
        return _reply(assets["index.html"], request)

    async def file(request: Request) -> Response:
        asset = assets.get(request.path_params["name"])
        if asset is None:
            raise not_found("not_found", "no such file; the dashboard is at /")
        return _reply(asset, request)

    router.add_route("/", page, methods=["GET"], include_in_schema=False)
    router.add_route(f"{STATIC}/{{name}}", file, methods=["GET"], include_in_schema=False)
    return router


def _reply(asset: Asset, request: Request) -> Response:
    headers = {**HEADERS, "etag": asset.etag}
    if etag_matches(request.headers.get("if-none-match"), asset.etag):
        return Response(status_code=304, headers=headers)
    return Response(asset.body, headers={**headers, "content-type": asset.media})
