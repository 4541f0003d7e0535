"""Tests of the Redis clients: a lost connection is retried once, a timeout is not retried."""

from __future__ import annotations

import asyncio
import re
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import redis

from tidemill_chassis.redis_clients import async_client, sync_client
from tidemill_contract.runtime import WorkloadSettings

Ask = Callable[[WorkloadSettings], bool]
ANSWERS = {b"HELLO": b"%1\r\n+proto\r\n:3\r\n", b"CLIENT": b"+OK\r\n", b"PING": b"+PONG\r\n"}


def ask(settings: WorkloadSettings) -> bool:
    with sync_client(settings, 0.5) as client:
        return bool(client.ping())


def ask_async(settings: WorkloadSettings) -> bool:
    async def ping() -> bool:
        async with async_client(settings, 0.5, max_connections=1) as client:
            return bool(await client.ping())

    return asyncio.run(ping())


@contextmanager
def server(serve: Callable[[int, socket.socket], None]) -> Iterator[tuple[WorkloadSettings, list[socket.socket]]]:
    """Start a server, and yield its settings and the accepted connections, which `serve` gets with numbers from 0."""
    accepted: list[socket.socket] = []

    def accept() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            accepted.append(connection)
            serve(len(accepted) - 1, connection)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=accept)
        thread.start()
        try:
            yield WorkloadSettings(redis_url=f"redis://127.0.0.1:{listener.getsockname()[1]}/0"), accepted
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()
            for connection in accepted:
                connection.close()


@pytest.mark.parametrize("ask", [ask, ask_async])
def test_a_timeout_is_not_retried(ask: Ask) -> None:
    with server(lambda _number, _connection: None) as (settings, accepted):
        with pytest.raises(redis.TimeoutError):
            ask(settings)
        assert len(accepted) == 1


@pytest.mark.parametrize("ask", [ask, ask_async])
def test_a_lost_connection_is_retried_once(ask: Ask) -> None:
    """The first connection ends, like the connection of a server that restarts."""

    def serve(number: int, connection: socket.socket) -> None:
        if number == 0:
            connection.close()
            return
        while request := connection.recv(4096):
            commands = re.findall(rb"^\*\d+\r\n\$\d+\r\n(\w+)", request, re.MULTILINE)
            connection.sendall(b"".join(ANSWERS[command] for command in commands))

    with server(serve) as (settings, accepted):
        assert ask(settings)
        assert len(accepted) == 2
