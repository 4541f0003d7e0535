"""Serves live connections by WebSocket: checks origin and API key, and reads the messages from the client."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Collection
from contextlib import ExitStack
from urllib.parse import urlsplit

import msgspec
from starlette.websockets import WebSocket, WebSocketDisconnect

from tidemill_api import metrics
from tidemill_api.catalog import PipelineModel
from tidemill_api.http.access import open_pipeline, wants_key
from tidemill_api.live.listener import Listener, Message, error_message
from tidemill_api.live.places import Places
from tidemill_api.live.pump import Left, Patience, count_ending, serve
from tidemill_api.live.query import LiveQuery, take_live
from tidemill_api.live.upstream import STOPPING, Ending
from tidemill_api.query.parameters import Parameters
from tidemill_api.services import Services
from tidemill_chassis.auth import QUERY_READ, Forbidden, Unauthorized
from tidemill_chassis.web.problems import Problem

_HOW = 'send the header Authorization, or {"type": "auth", "token": "tm_<id>_<secret>"} as the first message'


class Refused(Exception):
    """The error for a client that has to be disconnected."""

    def __init__(self, ending: Ending) -> None:
        super().__init__(ending.code)
        self.ending = ending


class _Auth(msgspec.Struct, tag="auth", tag_field="type"):
    token: str


def origin_allowed(origin: str | None, host: str | None, allowed: Collection[str]) -> bool:
    """Return whether a page of this origin, or a client without origin, can connect."""
    if origin is None or origin in allowed or "*" in allowed:
        return True
    return bool(host) and urlsplit(origin).netloc.lower() == (host or "").lower()


def refusal(services: Services, model: PipelineModel, authorization: str | None) -> Ending | None:
    """Return why a client with this API key must be disconnected. For a valid key, return None."""
    try:
        services.authenticator.check(model.config, authorization, QUERY_READ)
    except Unauthorized as error:
        return Ending("unauthorized", str(error), 4401)
    except Forbidden as error:
        return Ending("forbidden", str(error), 4403)
    return None


class SocketSession:
    """A WebSocket connection, from its handshake to its end."""

    def __init__(
        self, services: Services, origins: Collection[str], socket: WebSocket, patience: Patience, places: Places
    ) -> None:
        self._services, self._origins, self._socket, self._patience = services, origins, socket, patience
        self._places, self._keyless = places, ExitStack()
        self._authorization: str | None = socket.headers.get("authorization")
        self._listener: Listener | None = None

    async def run(self, pipeline: str) -> None:
        """Serve the client until the connection ends."""
        headers = self._socket.headers
        if not origin_allowed(headers.get("origin"), headers.get("host"), self._origins):
            detail = "pages of this origin cannot open live connections; add the origin to TIDEMILL_API_CORS_ORIGINS"
            await self._socket.send_denial_response(Problem(403, "origin_refused", detail).response())
            return
        with self._keyless:
            try:
                if not self._has_key(pipeline):
                    self._keyless.enter_context(self._places.taken(self._socket.scope.get("client")))
            except Problem as problem:
                await self._socket.send_denial_response(problem.response())
                return
            await self._listen(pipeline)

    async def _listen(self, pipeline: str) -> None:
        await self._socket.accept()
        connections = metrics.LIVE_CONNECTIONS.labels("websocket")
        connections.inc()
        try:
            ending = await self._serve(pipeline)
        except Refused as refused:
            ending = refused.ending
            await self._last(self.put(error_message(ending.code, ending.detail)))
            await self._close(ending)
        except Left:
            ending = None
        finally:
            connections.dec()
        count_ending(ending)

    def _has_key(self, pipeline: str) -> bool:
        if self._authorization is None or not wants_key(self._services, pipeline):
            return False
        try:
            open_pipeline(self._services, pipeline, self._authorization)
        except (Unauthorized, Forbidden, Problem):
            return False
        return True

    async def _serve(self, pipeline: str) -> Ending | None:
        services = self._services
        if services.upstreams.stopping:
            raise Refused(STOPPING)
        model = await self._authenticate(pipeline)
        if wants_key(services, pipeline):
            self._keyless.close()
        query = self._query(model)
        upstream = services.upstreams.get(pipeline)
        listener = self._listener = Listener(upstream, services.database, model, query)
        with upstream.subscribed(listener):
            ending = await serve(listener, self, lambda: refusal(services, model, self._authorization), self._patience)
            # A stopping process waits for subscriptions, but not for connections. Therefore, close the connection
            # before the subscription ends.
            await self._close(ending)
            return ending

    def _query(self, model: PipelineModel) -> LiveQuery:
        try:
            return take_live(model, Parameters.from_query(self._socket.scope["query_string"]))
        except Problem as problem:
            raise Refused(Ending(problem.code, problem.detail, 4400)) from None

    async def _authenticate(self, pipeline: str) -> PipelineModel:
        if self._authorization is None and wants_key(self._services, pipeline):
            try:
                async with asyncio.timeout(self._patience.auth):
                    text = await self._receive()
                self._authorization = f"Bearer {msgspec.json.decode(text, type=_Auth).token}"
            except TimeoutError:
                detail = f"no key within {self._patience.auth:g} s; {_HOW}"
                raise Refused(Ending("unauthorized", detail, 4401)) from None
            except msgspec.DecodeError:
                raise Refused(Ending("unauthorized", f"the first message is not a key; {_HOW}", 4401)) from None
        try:
            return open_pipeline(self._services, pipeline, self._authorization)
        except Unauthorized as error:
            raise Refused(Ending("unauthorized", str(error), 4401)) from None
        except Forbidden as error:
            raise Refused(Ending("forbidden", str(error), 4403)) from None
        except Problem as problem:
            raise Refused(Ending(problem.code, problem.detail, 4404)) from None

    async def _receive(self) -> bytes:
        message = await self._socket.receive()
        if message["type"] == "websocket.disconnect":
            raise Left
        text = message.get("text")
        return text.encode() if text is not None else message.get("bytes") or b""

    async def put(self, message: Message) -> None:
        """Send a message to the client."""
        try:
            await self._socket.send_text(message.data.decode())
        except (WebSocketDisconnect, RuntimeError, OSError):
            raise Left from None

    async def left(self) -> None:
        """Wait until the client disconnects, and answer its messages with errors."""
        with contextlib.suppress(Left):
            while True:
                text = await self._receive()
                try:
                    msgspec.json.decode(text, type=_Auth)  # clients may send an API key even if none is needed
                except msgspec.DecodeError:
                    assert self._listener is not None  # noqa: S101 - set before the client is served
                    self._listener.object_to("messages are not accepted here; use the parameters of the URL")

    async def _close(self, ending: Ending | None) -> None:
        if ending is not None:
            # A close frame has room for only 123 bytes of text. Send the error code without the detail.
            await self._last(self._socket.close(ending.close_code, ending.code))

    async def _last(self, saying: object) -> None:
        with contextlib.suppress(TimeoutError, Left, WebSocketDisconnect, RuntimeError, OSError):
            await asyncio.wait_for(saying, self._patience.last)  # type: ignore[arg-type]
