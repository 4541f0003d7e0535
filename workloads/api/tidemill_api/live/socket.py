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
from tidemill_api.http.access import authorized_pipeline, requires_key
from tidemill_api.live.broadcaster import STOPPING, CloseReason
from tidemill_api.live.connection_limit import ConnectionLimit
from tidemill_api.live.delivery import ClientTimeouts, Disconnected, count_server_disconnect, serve
from tidemill_api.live.listener import Listener, Message, error_message
from tidemill_api.live.query import LiveQuery, parse_live_query
from tidemill_api.query.parameters import Parameters
from tidemill_api.services import Services
from tidemill_chassis.auth import QUERY_READ, Forbidden, Unauthorized
from tidemill_chassis.web.problems import Problem

_KEY_HINT = 'send the header Authorization, or {"type": "auth", "token": "tm_<id>_<secret>"} as the first message'


class Refused(Exception):
    """The error for a client that has to be disconnected."""

    def __init__(self, close_reason: CloseReason) -> None:
        super().__init__(close_reason.code)
        self.close_reason = close_reason


class _Auth(msgspec.Struct, tag="auth", tag_field="type"):
    token: str


def is_origin_allowed(origin: str | None, host: str | None, allowed: Collection[str]) -> bool:
    """Return whether a page of this origin, or a client without origin, can connect."""
    if origin is None or origin in allowed or "*" in allowed:
        return True
    return bool(host) and urlsplit(origin).netloc.lower() == (host or "").lower()


def check_access(services: Services, model: PipelineModel, authorization: str | None) -> CloseReason | None:
    """Return why a client with this API key must be disconnected. For a valid key, return None."""
    try:
        services.authenticator.check(model.config, authorization, QUERY_READ)
    except Unauthorized as error:
        return CloseReason("unauthorized", str(error), 4401)
    except Forbidden as error:
        return CloseReason("forbidden", str(error), 4403)
    return None


class SocketSession:
    """A WebSocket connection, from its handshake to its end."""

    def __init__(
        self,
        services: Services,
        origins: Collection[str],
        socket: WebSocket,
        timeouts: ClientTimeouts,
        connection_limit: ConnectionLimit,
    ) -> None:
        self._services, self._origins, self._socket, self._timeouts = services, origins, socket, timeouts
        self._connection_limit, self._reservation = connection_limit, ExitStack()
        self._authorization: str | None = socket.headers.get("authorization")
        self._listener: Listener | None = None

    async def run(self, pipeline: str) -> None:
        """Serve the client until the connection ends."""
        headers = self._socket.headers
        if not is_origin_allowed(headers.get("origin"), headers.get("host"), self._origins):
            detail = "pages of this origin cannot open live connections; add the origin to TIDEMILL_API_CORS_ORIGINS"
            await self._socket.send_denial_response(Problem(403, "origin_refused", detail).response())
            return
        with self._reservation:
            try:
                if not self._has_key(pipeline):
                    self._reservation.enter_context(self._connection_limit.reserve(self._socket.scope.get("client")))
            except Problem as problem:
                await self._socket.send_denial_response(problem.response())
                return
            await self._listen(pipeline)

    async def _listen(self, pipeline: str) -> None:
        await self._socket.accept()
        gauge = metrics.LIVE_CONNECTIONS.labels("websocket")
        gauge.inc()
        try:
            close_reason = await self._serve(pipeline)
        except Refused as refused:
            close_reason = refused.close_reason
            await self._send_last(self.send(error_message(close_reason.code, close_reason.detail)))
            await self._close(close_reason)
        except Disconnected:
            close_reason = None
        finally:
            gauge.dec()
        count_server_disconnect(close_reason)

    def _has_key(self, pipeline: str) -> bool:
        if self._authorization is None or not requires_key(self._services, pipeline):
            return False
        try:
            authorized_pipeline(self._services, pipeline, self._authorization)
        except (Unauthorized, Forbidden, Problem):
            return False
        return True

    async def _serve(self, pipeline: str) -> CloseReason | None:
        services = self._services
        if services.broadcasters.stopping:
            raise Refused(STOPPING)
        model = await self._authenticate(pipeline)
        if requires_key(services, pipeline):
            self._reservation.close()
        query = self._parse_query(model)
        broadcaster = services.broadcasters.get(pipeline)
        listener = self._listener = Listener(broadcaster, services.database, model, query)
        with broadcaster.subscription(listener):
            close_reason = await serve(
                listener, self, lambda: check_access(services, model, self._authorization), self._timeouts
            )
            # A stopping process waits for subscriptions, but not for connections. Therefore, close the connection
            # before the subscription ends.
            await self._close(close_reason)
            return close_reason

    def _parse_query(self, model: PipelineModel) -> LiveQuery:
        try:
            return parse_live_query(model, Parameters.from_query(self._socket.scope["query_string"]))
        except Problem as problem:
            raise Refused(CloseReason(problem.code, problem.detail, 4400)) from None

    async def _authenticate(self, pipeline: str) -> PipelineModel:
        if self._authorization is None and requires_key(self._services, pipeline):
            try:
                async with asyncio.timeout(self._timeouts.auth_seconds):
                    text = await self._receive()
                self._authorization = f"Bearer {msgspec.json.decode(text, type=_Auth).token}"
            except TimeoutError:
                detail = f"no key within {self._timeouts.auth_seconds:g} s; {_KEY_HINT}"
                raise Refused(CloseReason("unauthorized", detail, 4401)) from None
            except msgspec.DecodeError:
                detail = f"the first message is not a key; {_KEY_HINT}"
                raise Refused(CloseReason("unauthorized", detail, 4401)) from None
        try:
            return authorized_pipeline(self._services, pipeline, self._authorization)
        except Unauthorized as error:
            raise Refused(CloseReason("unauthorized", str(error), 4401)) from None
        except Forbidden as error:
            raise Refused(CloseReason("forbidden", str(error), 4403)) from None
        except Problem as problem:
            raise Refused(CloseReason(problem.code, problem.detail, 4404)) from None

    async def _receive(self) -> bytes:
        message = await self._socket.receive()
        if message["type"] == "websocket.disconnect":
            raise Disconnected
        text = message.get("text")
        return text.encode() if text is not None else message.get("bytes") or b""

    async def send(self, message: Message) -> None:
        """Send a message to the client."""
        try:
            await self._socket.send_text(message.data.decode())
        except (WebSocketDisconnect, RuntimeError, OSError):
            raise Disconnected from None

    async def wait_disconnected(self) -> None:
        """Wait until the client disconnects, and answer its messages with errors."""
        with contextlib.suppress(Disconnected):
            while True:
                text = await self._receive()
                try:
                    msgspec.json.decode(text, type=_Auth)  # clients may send an API key even if none is needed
                except msgspec.DecodeError:
                    assert self._listener is not None  # noqa: S101 - set before the client is served
                    self._listener.reject_message("messages are not accepted here; use the parameters of the URL")

    async def _close(self, close_reason: CloseReason | None) -> None:
        if close_reason is not None:
            # A close frame has room for only 123 bytes of text. Send the error code without the detail.
            await self._send_last(self._socket.close(close_reason.close_code, close_reason.code))

    async def _send_last(self, sending: object) -> None:
        with contextlib.suppress(TimeoutError, Disconnected, WebSocketDisconnect, RuntimeError, OSError):
            await asyncio.wait_for(sending, self._timeouts.last_read_seconds)  # type: ignore[arg-type]
