"""The live routes: the same messages over a WebSocket and as server-sent events, on the same path."""

from __future__ import annotations

from collections.abc import Collection
from contextlib import nullcontext
from typing import Any

from fastapi import APIRouter, Request, Response, WebSocket

from tidemill_api.access import open_pipeline, wants_key
from tidemill_api.live_events import MEDIA, EventStream
from tidemill_api.live_listener import Listener
from tidemill_api.live_places import Places
from tidemill_api.live_pump import Patience
from tidemill_api.live_query import take_live
from tidemill_api.live_socket import SocketSession, refusal
from tidemill_api.parameters import Parameters
from tidemill_api.problems import forbidden, unauthorized, unavailable
from tidemill_api.services import Services
from tidemill_contract.asgi import PROBLEM_TYPE
from tidemill_contract.auth import Forbidden, Unauthorized

PATH = "/v1/pipelines/{pipeline}/live"
DESCRIPTION = """
Server-sent events; the same path takes a WebSocket, whose text messages are the `data` of these events.

| Message | When | Members |
|---|---|---|
| `hello` | first | `protocol`, `namespace`, `pipeline`, `aggregations` (as in the pipeline's description), `heartbeat_seconds` |
| `snapshot` | without `resume`, and after a `reset` | `aggregation`, `rev`, `rows` (the latest 1000 windows, oldest first), `truncated` (there are older ones), `watermark`, `closed_until` |
| `upsert` | windows have changed | `aggregation`, `rev`, `rows`: replace those with the same group columns and `window_start` |
| `progress` | after changes, and every 15 s | `watermark`, `closed_until` by aggregation, `resume`, `degraded` (changes are polled for and come later) |
| `reset` | changes were missed | `aggregation`, `reason`; forget its rows, a `snapshot` follows |
| `error` | before the end, or after a message that is not understood; with `aggregation` only this one cannot be read, and the others go on | `code`, `detail`, `aggregation` |

Rows are those of the aggregates route. A row with a `rev` below one already seen of its window is older: keep the other.
A window is closed once its `window_end` is not after `closed_until`; a window that closes without a new event is not
sent again. A session that has joined an earlier one is sent once more, empty: its `window_end` is its `window_start`;
forget it. Changes that come faster than they are read are conflated: the newest of each window is sent.

`resume` of the latest `progress` (for server-sent events its `id`) continues after a break, with the same parameters:
only what has changed since is sent, and a `reset` where that cannot be told.

WebSocket: the key is sent in the header `Authorization` or as the first message `{"type": "auth", "token": "tm_…"}`
within 5 s. A page may connect from the same host or from an origin in `TIDEMILL_API_CORS_ORIGINS`. Close codes: 1001
the server stops, 1012 the pipeline has changed, 1013 the client was too slow or the database is away, 4400 bad
parameter, 4401 no valid key, 4403 the key lacks `query:read`, 4404 no such pipeline. Connections that no key stands for
are bounded, of an address (429 in place of the handshake) and in all (503).
"""  # noqa: E501 - a Markdown table


def _parameter(name: str, where: str, description: str, example: str | None = None) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    found = {"name": name, "in": where, "required": False, "description": description, "schema": schema}
    return found | ({"example": example} if example else {})


def _problem(description: str) -> dict[str, Any]:
    return {"description": description, "content": {PROBLEM_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}}}


_PARAMETERS = [
    _parameter("aggregations", "query", "Names, separated by commas; all if left out.", "by_country"),
    _parameter("resume", "query", "The token of the latest `progress`."),
    _parameter("Last-Event-ID", "header", "The same, as a reconnecting event source sends it."),
    {
        "name": "filters",
        "in": "query",
        "required": False,
        "description": "`column=value`, `column__in=a,b`, also `__ne`, `__gte`, `__gt`, `__lte`, `__lt`, `__isnull`, on"
        " group columns; each goes for the aggregations that have the column.",
        "schema": {"type": "object", "additionalProperties": {"type": "string"}},
        "style": "form",
        "explode": True,
    },
]


def live_router(
    services: Services,
    *,
    origins: Collection[str] = (),
    patience: Patience | None = None,
    places: Places | None = None,
) -> APIRouter:
    """The live routes.

    Args:
        services: what they work with.
        origins: whose pages may open a WebSocket, besides the same host's.
        patience: with clients; None: the usual one.
        places: for connections without a key; None: the usual ones.
    """
    router, patience, places = APIRouter(), patience or Patience(), places or Places()

    async def socket(websocket: WebSocket, pipeline: str) -> None:
        await SocketSession(services, origins, websocket, patience, places).run(pipeline)

    async def events(request: Request, pipeline: str) -> Response:
        """Live changes of a pipeline."""
        if services.upstreams.stopping:
            raise unavailable("this process stops; connect again", 1, code="going_away")
        authorization = request.headers.get("authorization")
        try:
            model = open_pipeline(services, pipeline, authorization)
        except Unauthorized as error:
            raise unauthorized(str(error)) from None
        except Forbidden as error:
            raise forbidden(str(error)) from None
        parameters = Parameters.from_query(request.scope["query_string"])
        query = take_live(model, parameters, request.headers.get("last-event-id"))
        upstream = services.upstreams.get(pipeline)
        listener = Listener(upstream, services.database, model, query)
        place = nullcontext() if wants_key(services, pipeline) else places.taken(request.scope.get("client"))
        return EventStream(upstream, listener, lambda: refusal(services, model, authorization), patience, place)

    router.add_api_websocket_route(PATH, socket)
    router.add_api_route(
        PATH,
        events,
        methods=["GET"],
        response_class=Response,
        status_code=200,
        summary="Live changes",
        description=DESCRIPTION,
        operation_id="live",
        responses={
            200: {
                "description": "Events until either side leaves.",
                "content": {MEDIA: {"schema": {"type": "string"}}},
            },
            "4XX": _problem(
                "400 bad parameter, 401 no valid key, 403 a key without `query:read`, 404 no such pipeline, 429 too"
                " many connections of one address without a key."
            ),
            503: _problem("The process stops, or has too many connections without a key; connect again."),
        },
        openapi_extra={"parameters": _PARAMETERS},
        tags=["live"],
    )
    return router
