"""Sends the messages of a live connection to the client, by WebSocket or as server-sent events."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from tidemill_api import metrics
from tidemill_api.live.listener import Listener, Message
from tidemill_api.live.upstream import Ending


@dataclass(frozen=True)
class Patience:
    """The time limits for a client, in seconds.

    Attributes:
        slow: the maximum wait until the client reads a message.
        last: the maximum wait until the client reads the last message.
        auth: the maximum wait for the client's first message, which contains the API key.
        allowed: the interval between checks of the client's API key.
    """

    slow: float = 20.0
    last: float = 1.0
    auth: float = 5.0
    allowed: float = 10.0


class Left(Exception):
    """The error for a client that has disconnected."""


class Carrier(Protocol):
    """The connection of a client."""

    async def put(self, message: Message) -> None:
        """Send a message, and wait until the client reads it.

        Raises:
            Left: the client has disconnected.
        """

    async def left(self) -> None:
        """Wait until the client disconnects."""


async def serve(
    listener: Listener, carrier: Carrier, allowed: Callable[[], Ending | None], patience: Patience
) -> Ending | None:
    """Send messages until the client disconnects or is disconnected.

    Returns:
        The reason why the client has to be disconnected, or None if the client disconnected itself.

    Args:
        listener: the listener, which is subscribed already.
        carrier: the connection.
        allowed: a function that returns the reason why the client must be disconnected, or None.
        patience: the time limits for the client.
    """
    sending = asyncio.create_task(_send(listener, carrier, patience))
    leaving, ended = asyncio.create_task(carrier.left()), asyncio.create_task(listener.ended.wait())
    watching = asyncio.create_task(_watch(listener, allowed, patience))
    tasks: list[asyncio.Task[object]] = [sending, leaving, ended, watching]
    try:
        await asyncio.wait({sending, leaving, ended}, return_when=asyncio.FIRST_COMPLETED)
        if not (sending.done() or leaving.done()):
            # Give `_send` time to send the reason to the client.
            await asyncio.wait({sending, leaving}, timeout=patience.last, return_when=asyncio.FIRST_COMPLETED)
        if not sending.done():
            return None if leaving.done() else listener.ending
        return sending.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _send(listener: Listener, carrier: Carrier, patience: Patience) -> Ending | None:
    while True:
        for message in await listener.next():
            timer = asyncio.timeout(patience.slow)
            try:
                async with timer:
                    await carrier.put(message)
            except Left:
                return None
            except TimeoutError:
                if not timer.expired():
                    raise
                detail = f"nothing was read for {patience.slow:g} s; connect again with resume"
                return Ending("slow_client", detail, 1013)
        if listener.ending is not None:
            return listener.ending


async def _watch(listener: Listener, allowed: Callable[[], Ending | None], patience: Patience) -> None:
    while True:
        if (refused := allowed()) is not None:
            listener.end(refused)
            return
        await asyncio.sleep(patience.allowed)


def count_ending(ending: Ending | None) -> None:
    """Count a connection if the server ended the connection."""
    if ending is not None:
        metrics.LIVE_DROPPED.labels(ending.code).inc()
