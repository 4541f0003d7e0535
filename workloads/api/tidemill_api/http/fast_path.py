"""Sends fresh answers from the cache without routing, parsing and encoding."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from tidemill_api import metrics
from tidemill_api.cache import Slot
from tidemill_api.catalog import PipelineModel
from tidemill_api.formats.registry import DEFAULT, negotiate
from tidemill_api.http.replies import matches, slot_headers, validators
from tidemill_api.services import Services
from tidemill_chassis.auth import QUERY_READ, Forbidden, Unauthorized
from tidemill_chassis.web.asgi import App, Receive, Scope, Send

log = logging.getLogger(__name__)

MAX_KNOWN = 5_000
MAX_LINE_BYTES = 4_096


@dataclass
class Known:
    """An earlier GET request whose answer is in the cache."""

    model: PipelineModel
    key: str
    operation: str
    shared: bool
    route: Any = field(default=None)

    @cached_property
    def hits(self) -> Any:
        """The counter of answers from the cache."""
        return metrics.CACHE_HITS.labels(self.operation)

    @cached_property
    def rows(self) -> Any:
        """The counter of returned rows."""
        return metrics.EVENTS_QUERIED.labels(self.operation)


class Front:
    """ASGI middleware that answers repeated GET requests from the cache."""

    def __init__(self, services: Services) -> None:
        self._catalog, self._authenticator, self._cache = services.catalog, services.authenticator, services.cache
        self._known: dict[tuple[str, bytes], Known] = {}
        self.app: App | None = None

    def learn(self, scope: Scope, entry: Known) -> None:
        """Remember a request by its path and query string."""
        line = (scope["path"], scope["query_string"])
        if len(line[0]) + len(line[1]) > MAX_LINE_BYTES:
            return
        if len(self._known) >= MAX_KNOWN:
            self._known.clear()
        entry.route = scope.get("route")
        self._known[line] = entry

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle an ASGI connection."""
        if scope["type"] == "http" and scope["method"] == "GET":
            entry = self._known.get((scope["path"], scope["query_string"]))
            if entry is not None and await self._answered(scope, send, entry):
                return
        assert self.app is not None  # noqa: S101 - create_app sets it
        await self.app(scope, receive, send)

    async def _answered(self, scope: Scope, send: Send, entry: Known) -> bool:
        if self._catalog.find(entry.model.name) is not entry.model:
            del self._known[(scope["path"], scope["query_string"])]
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
            self._authenticator.check(entry.model.config, authorization, QUERY_READ)
        except (Unauthorized, Forbidden):
            return False
        slot = self._cache.fresh(entry.key)
        if slot is None:
            return False
        scope["route"] = entry.route
        await _send(send, slot, if_none_match, shared=entry.shared)
        entry.hits.inc()
        entry.rows.inc(slot.answer.rows)
        return True


async def _send(send: Send, slot: Slot, if_none_match: str | None, *, shared: bool) -> None:
    # Read `slot.answer` only once, because the cache may replace the answer during an `await`.
    answer, headers = slot.answer, slot_headers(slot, shared=shared)
    status, body = 200, answer.body
    if if_none_match is not None and matches(if_none_match, answer.etag):
        status, body, headers = 304, b"", validators(answer, shared=shared)
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def _suffix(path: str) -> str | None:
    return "json" if path.endswith(".json") else None
