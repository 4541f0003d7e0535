"""The REST routes: access, queries, and the formats of answers."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from tidemill_api import metrics
from tidemill_api.cache import CacheEntry
from tidemill_api.catalog import PipelineModel
from tidemill_api.describe import summary
from tidemill_api.formats.base import Format
from tidemill_api.formats.json import JSON
from tidemill_api.formats.registry import FORMATS, negotiate
from tidemill_api.http.access import authorized_pipeline
from tidemill_api.http.cache_middleware import CachedRequest, CacheMiddleware
from tidemill_api.http.replies import NEXT_CURSOR, StreamReply, json_reply
from tidemill_api.http.routing import TemplateRoute
from tidemill_api.query.aggregate import MEMBERS, parse_query
from tidemill_api.query.answers import Stream
from tidemill_api.query.listings import ANOMALIES, DEAD_LETTERS, Listing, events_listing, parse_listing_query
from tidemill_api.query.parameters import MAX_BODY_BYTES, Parameters
from tidemill_api.services import Services
from tidemill_chassis.auth import QUERY_READ, Forbidden, Unauthorized
from tidemill_chassis.resilience.config import Deadline
from tidemill_chassis.web.problems import Problem, denied, not_found

ANSWER_SECONDS, ANSWER_SHARE = 1.0, 0.1
"""The time reserved to send an answer: ANSWER_SECONDS, but at most ANSWER_SHARE of the request's remaining time."""
PIPELINES = "/v1/pipelines"
PIPELINE = f"{PIPELINES}/{{pipeline}}"
AGGREGATE = f"{PIPELINE}/aggregates/{{aggregation}}"
_LISTINGS: dict[str, Callable[[PipelineModel], Listing]] = {
    "anomalies": lambda _: ANOMALIES,
    "dead-letters": lambda _: DEAD_LETTERS,
    "events": events_listing,
}


class Rest:
    """The handlers of the REST routes."""

    def __init__(self, services: Services, cache_middleware: CacheMiddleware) -> None:
        self._services, self._cache_middleware = services, cache_middleware

    def routes(self) -> list[TemplateRoute]:
        """Return all routes.

        The first match is used. A route with a suffix, such as `.csv`, precedes the same route without suffix.
        """
        routes = [
            TemplateRoute(PIPELINES, self.pipelines, methods=["GET"]),
            TemplateRoute(PIPELINE, self.pipeline, methods=["GET"]),
            TemplateRoute(f"{AGGREGATE}/query", self.query, methods=["POST"]),
            *_with_suffixes(AGGREGATE, self.aggregate),
        ]
        for name in _LISTINGS:
            routes += _with_suffixes(f"{PIPELINE}/{name}", self._listing_handler(name))
        return routes

    async def pipelines(self, request: Request) -> Response:
        """Answer with the pipelines that the caller may query."""
        Parameters.from_query(request.scope["query_string"]).refuse_unknown([])
        visible, refusal = [], None
        for model in self._services.catalog.all():
            try:
                self._services.authenticator.check(model.config, request.headers.get("authorization"), QUERY_READ)
                visible.append(model)
            except (Unauthorized, Forbidden) as error:
                refusal = error
        if refusal is not None and not visible:
            raise denied(refusal, QUERY_READ)
        body = msgspec.json.encode({"pipelines": [summary(model) for model in visible]})
        return Response(body, media_type=JSON, headers={"cache-control": "no-store"})

    async def pipeline(self, request: Request) -> Response:
        """Answer with the description of a pipeline."""
        model = self._model(request)
        Parameters.from_query(request.scope["query_string"]).refuse_unknown([])
        cached = await self._services.answers.get_description(model, _deadline(request))
        return self._reply(request, model, cached, "pipelines")

    async def aggregate(self, request: Request) -> Response:
        """Answer with windows of an aggregation."""
        parameters = Parameters.from_query(request.scope["query_string"])
        return await self._windows(request, parameters, _format(request))

    async def query(self, request: Request) -> Response:
        """Answer with windows of an aggregation, for parameters in the request body."""
        Parameters.from_query(request.scope["query_string"]).refuse_unknown([])
        self._model(request)
        return await self._windows(request, Parameters.from_json(await _body(request), MEMBERS), _format(request))

    async def _windows(self, request: Request, parameters: Parameters, fmt: Format) -> Response:
        model = self._model(request)
        aggregation = model.aggregation(request.path_params["aggregation"])
        query = parse_query(aggregation, parameters, stream=fmt.writer_factory is not None)
        answers, deadline = self._services.answers, _deadline(request)
        if fmt.writer_factory is not None:
            stream = await answers.stream_windows(model, query, fmt.writer_factory, deadline)
            return _stream_reply(request, stream, fmt, f"{model.name}-{aggregation.name}")
        return self._reply(request, model, await answers.get_windows(model, query, deadline), "aggregates")

    def _listing_handler(self, name: str) -> Callable[[Request], Awaitable[Response]]:
        make_listing = _LISTINGS[name]

        async def listing(request: Request) -> Response:
            model, fmt = self._model(request), _format(request)
            parameters = Parameters.from_query(request.scope["query_string"])
            query = parse_listing_query(make_listing(model), parameters, stream=fmt.writer_factory is not None)
            answers, deadline = self._services.answers, _deadline(request)
            if fmt.writer_factory is not None:
                stream = await answers.stream_listing(model, query, fmt.writer_factory, deadline)
                return _stream_reply(request, stream, fmt, f"{model.name}-{name}")
            return self._reply(request, model, await answers.get_listing(model, query, deadline), query.listing.kind)

        return listing

    def _model(self, request: Request) -> PipelineModel:
        """Return the pipeline of the path, if the caller may query it."""
        try:
            return authorized_pipeline(
                self._services, request.path_params["pipeline"], request.headers.get("authorization")
            )
        except (Unauthorized, Forbidden) as error:
            raise denied(error, QUERY_READ) from None

    def _reply(self, request: Request, model: PipelineModel, cached: tuple[CacheEntry, bool], kind: str) -> Response:
        metrics.EVENTS_QUERIED.labels(kind).inc(cached[0].answer.rows)
        is_get = request.method == "GET"
        shared = model.config.spec.auth.required is False
        if is_get:
            self._cache_middleware.remember(request.scope, CachedRequest(model, cached[0].key, kind, shared=shared))
        return json_reply(
            cached, request.headers.get("if-none-match"), shared=shared, cacheable=request.method != "POST"
        )


def _with_suffixes(path: str, handler: Callable[[Request], Awaitable[Response]]) -> list[TemplateRoute]:
    return [
        *(TemplateRoute(f"{path}.{suffix}", handler, methods=["GET"]) for suffix in FORMATS),
        TemplateRoute(path, handler, methods=["GET"]),
    ]


def _format(request: Request) -> Format:
    suffix = request.scope["path"].rpartition("/")[2].rpartition(".")[2]
    return negotiate(suffix if suffix in FORMATS else None, request.headers.get("accept"))


def _deadline(request: Request) -> Deadline | None:
    deadline: Any = getattr(request.state, "deadline", None)
    if not isinstance(deadline, Deadline):
        return None
    return Deadline(deadline.at - min(ANSWER_SECONDS, deadline.remaining() * ANSWER_SHARE), deadline.clock)


def _stream_reply(request: Request, stream: Stream, fmt: Format, name: str) -> StreamReply:
    cursor_header = {NEXT_CURSOR: stream.cursor} if stream.cursor else {}
    return StreamReply(stream.pieces, fmt.content_type_header, {**_disposition(request, name), **cursor_header})


def _disposition(request: Request, name: str) -> dict[str, str]:
    suffix = request.scope["path"].rpartition(".")[2]
    return {"content-disposition": f'attachment; filename="{name}.{suffix}"'} if suffix in FORMATS else {}


async def _body(request: Request) -> bytes:
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > MAX_BODY_BYTES:
            raise Problem(413, "body_too_large", f"the body has more than {MAX_BODY_BYTES} bytes; send fewer filters")
    return bytes(body)


async def answer_unmatched(request: Request, error: Exception) -> Response:
    """Answer the framework's own errors, such as 404 and 405, with problem details."""
    status = getattr(error, "status_code", 404)
    headers = dict(getattr(error, "headers", None) or {})
    if status == 405:
        allowed = headers.get("Allow", "other methods")
        problem = Problem(405, "method_not_allowed", f"this path takes {allowed}", headers=headers)
    elif status == 404:
        problem = not_found("path_not_found", "there is nothing at this path; see /docs")
    else:
        problem = Problem(status, "request_refused", str(getattr(error, "detail", "")), headers=headers)
    return problem.response()


async def answer_defect(request: Request, error: Exception) -> Response:
    """Answer an unexpected error with status 500."""
    return Problem(500, "internal_error", "this is a defect of the service; see its log").response()
