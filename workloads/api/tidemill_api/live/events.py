"""Live connections by server-sent events."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from tidemill_api import metrics
from tidemill_api.live.listener import Listener, Message
from tidemill_api.live.pump import Left, Patience, count_ending, serve
from tidemill_api.live.upstream import Ending, Upstream
from tidemill_chassis.web.problems import Problem

MEDIA = "text/event-stream"
RETRY_MS = 2_000
_HEADERS = {"cache-control": "no-store", "x-accel-buffering": "no", "content-type": f"{MEDIA}; charset=utf-8"}


def event(message: Message) -> bytes:
    """Return a message as a server-sent event."""
    identity = f"id: {message.resume}\n" if message.resume else ""
    return f"event: {message.kind}\n{identity}data: ".encode() + message.data + b"\n\n"


class EventStream(Response):
    """A response that sends server-sent events until the client or the server ends the connection."""

    def __init__(
        self,
        upstream: Upstream,
        listener: Listener,
        allowed: Callable[[], Ending | None],
        patience: Patience,
        place: AbstractContextManager[None],
    ) -> None:
        self.status_code, self.background = 200, None
        self.init_headers(_HEADERS)
        self._upstream, self._listener, self._allowed, self._patience = upstream, listener, allowed, patience
        self._place = place

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve the client, or answer with a problem if the limit of connections is reached."""
        with ExitStack() as held:
            try:
                held.enter_context(self._place)
            except Problem as problem:
                await problem.response()(scope, receive, send)
                return
            await self._serve(receive, send)

    async def _serve(self, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        await send({"type": "http.response.body", "body": b"retry: %d\n\n" % RETRY_MS, "more_body": True})
        connections = metrics.LIVE_CONNECTIONS.labels("sse")
        connections.inc()
        try:
            with self._upstream.subscribed(self._listener):
                carrier = _Carrier(receive, send)
                ending = await serve(self._listener, carrier, self._allowed, self._patience)
                # Do not send the last chunk to a slow client, which would not read it.
                if ending is not None and ending.code != "slow_client":
                    await send({"type": "http.response.body", "body": b""})
        finally:
            connections.dec()
        count_ending(ending)


class _Carrier:
    def __init__(self, receive: Receive, send: Send) -> None:
        self._receive, self._send = receive, send

    async def put(self, message: Message) -> None:
        try:
            await self._send({"type": "http.response.body", "body": event(message), "more_body": True})
        except OSError:
            raise Left from None

    async def left(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
