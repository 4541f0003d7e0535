"""The live routes: a WebSocket and server-sent events on the same path, with the same messages."""

from __future__ import annotations

from collections.abc import Collection
from contextlib import nullcontext

from fastapi import APIRouter, Request, Response, WebSocket

from tidemill_api.http.access import open_pipeline, wants_key
from tidemill_api.live.events import EventStream
from tidemill_api.live.listener import Listener
from tidemill_api.live.places import Places
from tidemill_api.live.pump import Patience
from tidemill_api.live.query import take_live
from tidemill_api.live.socket import SocketSession, refusal
from tidemill_api.query.parameters import Parameters
from tidemill_api.services import Services
from tidemill_chassis.auth import QUERY_READ, Forbidden, Unauthorized
from tidemill_chassis.web.problems import denied, unavailable

PATH = "/v1/pipelines/{pipeline}/live"


def live_router(
    services: Services,
    *,
    origins: Collection[str] = (),
    patience: Patience | None = None,
    places: Places | None = None,
) -> APIRouter:
    """Return the live routes.

    Args:
        services: the shared services.
        origins: the origins whose pages can open a WebSocket, in addition to pages of the API's own host.
        patience: the time limits for clients, or None for the default limits.
        places: the limits of connections without an API key, or None for the default limits.
    """
    router, patience, places = APIRouter(), patience or Patience(), places or Places()

    async def socket(websocket: WebSocket, pipeline: str) -> None:
        await SocketSession(services, origins, websocket, patience, places).run(pipeline)

    async def events(request: Request, pipeline: str) -> Response:
        if services.upstreams.stopping:
            raise unavailable("going_away", "this process is stopping; connect again", 1)
        authorization = request.headers.get("authorization")
        try:
            model = open_pipeline(services, pipeline, authorization)
        except (Unauthorized, Forbidden) as error:
            raise denied(error, QUERY_READ) from None
        parameters = Parameters.from_query(request.scope["query_string"])
        query = take_live(model, parameters, request.headers.get("last-event-id"))
        upstream = services.upstreams.get(pipeline)
        listener = Listener(upstream, services.database, model, query)
        place = nullcontext() if wants_key(services, pipeline) else places.taken(request.scope.get("client"))
        return EventStream(upstream, listener, lambda: refusal(services, model, authorization), patience, place)

    router.add_api_websocket_route(PATH, socket)
    router.add_api_route(PATH, events, methods=["GET"], response_class=Response, include_in_schema=False)
    return router
