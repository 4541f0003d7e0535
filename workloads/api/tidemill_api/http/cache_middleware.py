"""Sends fresh answers from the cache without routing, parsing and encoding."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from tidemill_api import metrics
from tidemill_api.cache import CacheEntry
from tidemill_api.catalog import PipelineModel
from tidemill_api.formats.registry import DEFAULT, negotiate
from tidemill_api.http.replies import cache_headers, entry_headers, etag_matches
from tidemill_api.services import Services
from tidemill_chassis.auth import QUERY_READ, Forbidden, Unauthorized
from tidemill_chassis.web.asgi import App, Receive, Scope, Send

log = logging.getLogger(__name__)

MAX_CACHED_REQUESTS = 5_000
MAX_URL_BYTES = 4_096


@dataclass
class CachedRequest:
    """An earlier GET request whose answer is in the cache."""

    model: PipelineModel
    key: str
    operation: str
    shared: bool
    route: Any = field(default=None)

    @cached_property
    def hit_counter(self) -> Any:
        """The counter of answers from the cache."""
        return metrics.CACHE_HITS.labels(self.operation)

    @cached_property
    def row_counter(self) -> Any:
        """The counter of returned rows."""
        return metrics.EVENTS_QUERIED.labels(self.operation)


class CacheMiddleware:
    """ASGI middleware that answers repeated GET requests from the cache."""

    def __init__(self, services: Services) -> None:
        self._catalog, self._authenticator, self._cache = services.catalog, services.authenticator, services.cache
        self._requests: dict[tuple[str, bytes], CachedRequest] = {}
        self.app: App | None = None

    def remember(self, scope: Scope, request: CachedRequest) -> None:
        """Remember a request by its path and query string."""
        url = (scope["path"], scope["query_string"])
        if len(url[0]) + len(url[1]) > MAX_URL_BYTES:
            return
        if len(self._requests) >= MAX_CACHED_REQUESTS:
            self._requests.clear()
        request.route = scope.get("route")
        self._requests[url] = request

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle an ASGI connection."""
        if scope["type"] == "http" and scope["method"] == "GET":
            request = self._requests.get((scope["path"], scope["query_string"]))
            if request is not None and await self._try_answer(scope, send, request):
                return
        assert self.app is not None  # noqa: S101 - create_app sets it
        await self.app(scope, receive, send)

    async def _try_answer(self, scope: Scope, send: Send, request: CachedRequest) -> bool:
        if self._catalog.find(request.model.name) is not request.model:
            del self._requests[(scope["path"], scope["query_string"])]
            return False
        authorization = accept = if_none_match = None
        for name, value in scope["headers"]:
            if name == b"accept":
                accept = value.decode("latin-1")
            elif name == b"authorization":
                authorization = value.decode("latin-1")
            elif name == b"if-none-match":
                if_none_match = value.decode("latin-1")
        if accept is not None and negotiate(_suffix(scope["path"]), accept) is not DEFAULT:
            return False
        try:
            self._authenticator.check(request.model.config, authorization, QUERY_READ)
        except (Unauthorized, Forbidden):
            return False
        entry = self._cache.find_fresh(request.key)
        if entry is None:
            return False
        scope["route"] = request.route
        await _send(send, entry, if_none_match, shared=request.shared)
        request.hit_counter.inc()
        request.row_counter.inc(entry.answer.rows)
        return True


async def _send(send: Send, entry: CacheEntry, if_none_match: str | None, *, shared: bool) -> None:
    # Read `entry.answer` only once, because the cache may replace the answer during an `await`.
    answer, headers = entry.answer, entry_headers(entry, shared=shared)
    status, body = 200, answer.body
    if if_none_match is not None and etag_matches(if_none_match, answer.etag):
        status, body, headers = 304, b"", cache_headers(answer, shared=shared)
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def _suffix(path: str) -> str | None:
    return "json" if path.endswith(".json") else None
