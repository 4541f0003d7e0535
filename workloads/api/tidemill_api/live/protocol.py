"""uvicorn's WebSocket for clients that do not read: they are told why they are sent away, and their connection ends."""

from __future__ import annotations

from typing import Any

from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

LINGER_SECONDS = 30.0
"""How long a client may take to read what was on its way when it was sent away."""


class LiveProtocol(WebSocketsSansIOProtocol):
    """Its close frame waits for no room in the buffer: who reads on gets it after what was sent before."""

    async def send(self, message: Any) -> None:
        """Hand a message to the client."""
        if message["type"] != "websocket.close":
            await super().send(message)
            return
        self.writable.set()
        await super().send(message)
        self.loop.call_later(LINGER_SECONDS, self.transport.abort)
