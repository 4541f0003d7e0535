"""Live connections by server-sent events."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from tidemill_api import metrics
from tidemill_api.live.broadcaster import Broadcaster, CloseReason
from tidemill_api.live.delivery import ClientTimeouts, Disconnected, count_server_disconnect, serve
from tidemill_api.live.listener import Listener, Message
from tidemill_chassis.web.problems import Problem

MEDIA_TYPE = "text/event-stream"
RETRY_MS = 2_000
_HEADERS = {"cache-control": "no-store", "x-accel-buffering": "no", "content-type": f"{MEDIA_TYPE}; charset=utf-8"}


def encode_event(message: Message) -> bytes:
    """Return a message as a server-sent event."""
    identity = f"id: {message.resume}\n" if message.resume else ""
    return f"event: {message.kind}\n{identity}data: ".encode() + message.data + b"\n\n"


class EventStream(Response):
    """A response that sends server-sent events until the client or the server ends the connection."""

    def __init__(
        self,
        broadcaster: Broadcaster,
        listener: Listener,
        check_access: Callable[[], CloseReason | None],
        timeouts: ClientTimeouts,
        reservation: AbstractContextManager[None],
    ) -> None:
        self.status_code, self.background = 200, None
        self.init_headers(_HEADERS)
        self._broadcaster, self._listener, self._reservation = broadcaster, listener, reservation
        self._check_access, self._timeouts = check_access, timeouts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve the client, or answer with a problem if the limit of connections is reached."""
        with ExitStack() as stack:
            try:
                stack.enter_context(self._reservation)
            except Problem as problem:
                await problem.response()(scope, receive, send)
                return
            await self._serve(receive, send)

    async def _serve(self, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        await send({"type": "http.response.body", "body": b"retry: %d\n\n" % RETRY_MS, "more_body": True})
        gauge = metrics.LIVE_CONNECTIONS.labels("sse")
        gauge.inc()
        try:
            with self._broadcaster.subscription(self._listener):
                connection = _SseConnection(receive, send)
                close_reason = await serve(self._listener, connection, self._check_access, self._timeouts)
                # Do not send the last chunk to a slow client, which would not read it.
                if close_reason is not None and close_reason.code != "slow_client":
                    await send({"type": "http.response.body", "body": b""})
        finally:
            gauge.dec()
        count_server_disconnect(close_reason)


class _SseConnection:
    def __init__(self, receive: Receive, send: Send) -> None:
        self._receive, self._send = receive, send

    async def send(self, message: Message) -> None:
        try:
            await self._send({"type": "http.response.body", "body": encode_event(message), "more_body": True})
        except OSError:
            raise Disconnected from None

    async def wait_disconnected(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
