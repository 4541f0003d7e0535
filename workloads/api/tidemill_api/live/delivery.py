"""Sends the messages of a live connection to the client, by WebSocket or as server-sent events."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from tidemill_api import metrics
from tidemill_api.live.broadcaster import CloseReason
from tidemill_api.live.listener import Listener, Message


@dataclass(frozen=True)
class ClientTimeouts:
    """The time limits for a client, in seconds.

    Attributes:
        read_seconds: the maximum wait until the client reads a message.
        last_read_seconds: the maximum wait until the client reads the last message.
        auth_seconds: the maximum wait for the client's first message, which contains the API key.
        access_check_seconds: the interval between checks of the client's API key.
    """

    read_seconds: float = 20.0
    last_read_seconds: float = 1.0
    auth_seconds: float = 5.0
    access_check_seconds: float = 10.0


class Disconnected(Exception):
    """The error for a client that has disconnected."""


class ClientConnection(Protocol):
    """The connection of a client."""

    async def send(self, message: Message) -> None:
        """Send a message, and wait until the client reads it.

        Raises:
            Disconnected: the client has disconnected.
        """

    async def wait_disconnected(self) -> None:
        """Wait until the client disconnects."""


async def serve(
    listener: Listener,
    connection: ClientConnection,
    check_access: Callable[[], CloseReason | None],
    timeouts: ClientTimeouts,
) -> CloseReason | None:
    """Send messages until the client disconnects or is disconnected.

    Returns:
        The reason why the client has to be disconnected, or None if the client disconnected itself.

    Args:
        listener: the listener, which is subscribed already.
        connection: the client's connection.
        check_access: a function that returns the reason why the client must be disconnected, or None.
        timeouts: the time limits for the client.
    """
    send_task = asyncio.create_task(_send(listener, connection, timeouts))
    disconnect_task = asyncio.create_task(connection.wait_disconnected())
    end_task = asyncio.create_task(listener.ended.wait())
    access_task = asyncio.create_task(_watch(listener, check_access, timeouts))
    tasks: list[asyncio.Task[object]] = [send_task, disconnect_task, end_task, access_task]
    try:
        await asyncio.wait({send_task, disconnect_task, end_task}, return_when=asyncio.FIRST_COMPLETED)
        if not (send_task.done() or disconnect_task.done()):
            # Give `_send` time to send the reason to the client.
            await asyncio.wait(
                {send_task, disconnect_task}, timeout=timeouts.last_read_seconds, return_when=asyncio.FIRST_COMPLETED
            )
        if not send_task.done():
            return None if disconnect_task.done() else listener.close_reason
        return send_task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _send(listener: Listener, connection: ClientConnection, timeouts: ClientTimeouts) -> CloseReason | None:
    while True:
        for message in await listener.next():
            timer = asyncio.timeout(timeouts.read_seconds)
            try:
                async with timer:
                    await connection.send(message)
            except Disconnected:
                return None
            except TimeoutError:
                if not timer.expired():
                    raise
                detail = f"nothing was read for {timeouts.read_seconds:g} s; connect again with resume"
                return CloseReason("slow_client", detail, 1013)
        if listener.close_reason is not None:
            return listener.close_reason


async def _watch(listener: Listener, check_access: Callable[[], CloseReason | None], timeouts: ClientTimeouts) -> None:
    while True:
        if (close_reason := check_access()) is not None:
            listener.end(close_reason)
            return
        await asyncio.sleep(timeouts.access_check_seconds)


def count_server_disconnect(close_reason: CloseReason | None) -> None:
    """Count a connection if the server ended the connection."""
    if close_reason is not None:
        metrics.LIVE_DROPPED.labels(close_reason.code).inc()
