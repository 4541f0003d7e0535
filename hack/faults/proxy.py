"""Proxies between the platform and its servers, which can lose or delay bytes.

All proxies share one thread. A peer that does not read blocks only one connection.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Coroutine
from typing import Any

_PIECE = 65_536
_HELD_PIECES = 1_024


class Proxies:
    """A group of proxies on loopback, which run until `close`."""

    def __init__(self) -> None:
        self._open: list[Proxy] = []
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxies", daemon=True)
        self._thread.start()

    def open(self, target: int) -> Proxy:
        """Start a proxy of a port of this machine."""
        proxy = Proxy(target)
        self._await(proxy.listen())
        self._open.append(proxy)
        return proxy

    def close(self) -> None:
        """End all proxies, and close their connections."""
        self._await(_end(self._open))
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _await(self, coroutine: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(10.0)


class Proxy:
    """Forwards connections to a port of this machine.

    Attributes:
        port: The port on which the proxy listens.
        target: The port of the server.
        swallows: If true, the proxy accepts connections but loses all bytes. A connection that has lost a byte forwards
            nothing afterwards.
        delay_seconds: The delay of each piece of data in each direction.
    """

    def __init__(self, target: int) -> None:
        self.target = target
        self._server: asyncio.Server | None = None
        self.port = 0
        self.swallows = False
        self.delay_seconds = 0.0

    async def listen(self) -> None:
        """Start listening."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = int(self._server.sockets[0].getsockname()[1])

    def end(self) -> None:
        """Stop listening."""
        if self._server is not None:
            self._server.close()

    async def _serve(self, client: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        try:
            if self.swallows:
                await _discard(client)
                return
            server, to_server = await asyncio.open_connection("127.0.0.1", self.target)
            try:
                await self._join(_Way(client, to_server), _Way(server, to_client))
            finally:
                to_server.close()
        except (OSError, asyncio.CancelledError):
            pass  # The peer or the proxy has ended the connection.
        finally:
            to_client.close()

    async def _join(self, *ways: _Way) -> None:
        """Forward in both directions until one of them ends."""
        lost = asyncio.Event()
        reading = [asyncio.create_task(self._read(way, lost)) for way in ways]
        sending = [asyncio.create_task(_send(way)) for way in ways]
        try:
            await asyncio.wait(sending, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (*reading, *sending):
                task.cancel()

    async def _read(self, way: _Way, lost: asyncio.Event) -> None:
        clock = asyncio.get_running_loop().time
        try:
            while piece := await way.source.read(_PIECE):
                if self.swallows:
                    lost.set()
                if not lost.is_set():
                    await way.queue.put((clock() + self.delay_seconds, piece))
        except OSError:
            pass
        await way.queue.put((clock(), b""))


class _Way:
    """One direction of a connection, with the bytes that are not forwarded yet."""

    def __init__(self, source: asyncio.StreamReader, to: asyncio.StreamWriter) -> None:
        self.source, self.to = source, to
        self.queue: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(_HELD_PIECES)


async def _send(way: _Way) -> None:
    clock = asyncio.get_running_loop().time
    with contextlib.suppress(OSError):
        while True:
            due, piece = await way.queue.get()
            if (wait := due - clock()) > 0:
                await asyncio.sleep(wait)
            if not piece:
                return
            way.to.write(piece)
            await way.to.drain()


async def _discard(source: asyncio.StreamReader) -> None:
    while await source.read(_PIECE):
        pass


async def _end(proxies: list[Proxy]) -> None:
    for proxy in proxies:
        proxy.end()
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
