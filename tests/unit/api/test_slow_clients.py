"""Tests of WebSocket clients that do not read and are disconnected, with a real uvicorn server."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
import websockets
from websockets.asyncio.client import connect

from running.uvicorn import uvicorn_up
from tidemill_api.live import slow_clients
from tidemill_api.live.slow_clients import LiveProtocol
from waiting import eventually_async

PIECE = "x" * 100_000


class FloodingApp:
    """An application that sends until the client no longer reads, and then closes with 1013."""

    def __init__(self) -> None:
        self.sent = 0
        self.closed = asyncio.Event()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        try:
            while True:
                async with asyncio.timeout(0.5):
                    await send({"type": "websocket.send", "text": PIECE})
                self.sent += 1
        except TimeoutError:
            async with asyncio.timeout(1):
                await send({"type": "websocket.close", "code": 1013, "reason": "slow_client"})
        self.closed.set()


@pytest.mark.parametrize("reads_on", [True, False])
def test_a_client_that_does_not_read_gets_1013_when_it_reads_again(
    reads_on: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the client never reads again, its connection is cut."""
    monkeypatch.setattr(slow_clients, "LINGER_SECONDS", 20.0 if reads_on else 0.1)

    async def work() -> None:
        app = FloodingApp()
        options = {"ws": LiveProtocol, "ws_ping_interval": None, "ws_per_message_deflate": False}
        async with (
            uvicorn_up(app, **options) as (server, port),
            asyncio.timeout(60),
            connect(f"ws://127.0.0.1:{port}", max_queue=1, ping_interval=None) as client,
        ):
            await app.closed.wait()
            got = 0
            if not reads_on:
                await eventually_async(lambda: not server.server_state.connections, what="the connection is closed")
            try:
                while True:
                    await client.recv()
                    got += 1
            except websockets.ConnectionClosed as ended:
                code = ended.rcvd.code if ended.rcvd else None
            assert not reads_on or (got, code) == (app.sent, 1013)

    asyncio.run(work())
