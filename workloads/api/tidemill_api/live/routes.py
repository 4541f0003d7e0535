"""The live routes: a WebSocket and server-sent events on the same path, with the same messages."""

from __future__ import annotations

from collections.abc import Collection
from contextlib import nullcontext
from functools import partial

from fastapi import APIRouter, Request, Response, WebSocket

from tidemill_api.http.access import authorized_pipeline, requires_key
from tidemill_api.live.connection_limit import ConnectionLimit
from tidemill_api.live.delivery import ClientTimeouts
from tidemill_api.live.events import EventStream
from tidemill_api.live.listener import Listener
from tidemill_api.live.query import parse_live_query
from tidemill_api.live.socket import SocketSession, check_access
from tidemill_api.query.parameters import Parameters
from tidemill_api.services import Services
from tidemill_chassis.auth import QUERY_READ, Forbidden, Unauthorized
from tidemill_chassis.web.problems import denied, unavailable

PATH = "/v1/pipelines/{pipeline}/live"


def live_router(
    services: Services,
    *,
    origins: Collection[str] = (),
    timeouts: ClientTimeouts | None = None,
    connection_limit: ConnectionLimit | None = None,
) -> APIRouter:
    """Return the live routes.

    Args:
        services: the shared services.
        origins: the origins whose pages can open a WebSocket, in addition to pages of the API's own host.
        timeouts: the time limits for clients, or None for the default limits.
        connection_limit: the limits of connections without an API key, or None for the default limits.
    """
    router = APIRouter()
    timeouts, connection_limit = timeouts or ClientTimeouts(), connection_limit or ConnectionLimit()

    async def socket(websocket: WebSocket, pipeline: str) -> None:
        await SocketSession(services, origins, websocket, timeouts, connection_limit).run(pipeline)

    async def events(request: Request, pipeline: str) -> Response:
        if services.broadcasters.stopping:
            raise unavailable("going_away", "this process is stopping; connect again", 1)
        authorization = request.headers.get("authorization")
        try:
            model = authorized_pipeline(services, pipeline, authorization)
        except (Unauthorized, Forbidden) as error:
            raise denied(error, QUERY_READ) from None
        parameters = Parameters.from_query(request.scope["query_string"])
        query = parse_live_query(model, parameters, request.headers.get("last-event-id"))
        broadcaster = services.broadcasters.get(pipeline)
        listener = Listener(broadcaster, services.database, model, query)
        keyless = not requires_key(services, pipeline)
        reservation = connection_limit.reserve(request.scope.get("client")) if keyless else nullcontext()
        check = partial(check_access, services, model, authorization)
        return EventStream(broadcaster, listener, check, timeouts, reservation)

    router.add_api_websocket_route(PATH, socket)
    router.add_api_route(PATH, events, methods=["GET"], response_class=Response, include_in_schema=False)
    return router
