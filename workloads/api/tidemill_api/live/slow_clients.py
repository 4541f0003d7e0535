"""Changes uvicorn's WebSocket protocol, so that slow clients can be disconnected with a reason."""

from __future__ import annotations

from typing import Any

from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

LINGER_SECONDS = 30.0
"""After the server sends the close frame, a client has this long to read earlier messages."""


class LiveProtocol(WebSocketsSansIOProtocol):
    """A WebSocket. The server can close it even if the client reads nothing and the send buffer is full."""

    async def send(self, message: Any) -> None:
        """Send a message to the client."""
        if message["type"] != "websocket.close":
            await super().send(message)
            return
        self.writable.set()
        await super().send(message)
        self.loop.call_later(LINGER_SECONDS, self.transport.abort)
