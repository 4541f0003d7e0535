"""Tests of limits on connections and headers, with a real uvicorn server."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import websockets

from running.uvicorn import uvicorn_up
from tidemill_chassis.web.limits import HttpLimits, bounded_protocol

LIMITS = HttpLimits(connections=3, headers=20, header_bytes=4_096, header_seconds=0.3)
Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def app(scope: Any, receive: Any, send: Any) -> None:
    """Answer HTTP with the length of the body, and WebSocket messages with the same text."""
    if scope["type"] == "websocket":
        await receive()
        await send({"type": "websocket.accept"})
        while (message := await receive())["type"] == "websocket.receive":
            await send({"type": "websocket.send", "text": message["text"]})
        return
    size, more = 0, True
    while more:
        message = await receive()
        size, more = size + len(message.get("body", b"")), message.get("more_body", False)
    body = str(size).encode()
    await send(
        {"type": "http.response.start", "status": 200, "headers": [(b"content-length", str(len(body)).encode())]}
    )
    await send({"type": "http.response.body", "body": body})


def serve(test: Callable[[Callable[[], Awaitable[Connection]]], Awaitable[None]]) -> None:
    """Run a test against a server. The test gets a function that opens a connection."""

    async def work() -> None:
        async with uvicorn_up(app, http=bounded_protocol(LIMITS)) as (_, port):
            opened: list[Connection] = []

            async def connect() -> Connection:
                opened.append(await asyncio.open_connection("127.0.0.1", port))
                return opened[-1]

            try:
                async with asyncio.timeout(30):
                    await test(connect)
            finally:
                for _, writer in opened:
                    writer.close()
                    with contextlib.suppress(ConnectionError):
                        await writer.wait_closed()

    asyncio.run(work())


async def say(connection: Connection, data: bytes) -> bytes:
    """Send data and return the status line of the answer, or nothing if the server closes the connection."""
    reader, writer = connection
    writer.write(data)
    try:
        line = await reader.readline()
        while line and (await reader.readline()).strip():
            pass
    except ConnectionError:
        return b""
    return line.strip()


def request(*headers: bytes, body: bytes = b"", method: bytes = b"POST", path: bytes = b"/") -> bytes:
    length = b"content-length: %d" % len(body)
    return b"\r\n".join([method + b" " + path + b" HTTP/1.1", b"host: a", length, *headers, b"", body])


TOO_LARGE = b"HTTP/1.1 431 Request Header Fields Too Large"
HEADS = [
    (request(*[b"x: 1"] * 18), b"HTTP/1.1 200 OK"),
    (request(*[b"x: 1"] * 19), TOO_LARGE),
    (request(b"x: " + b"v" * 3_900), b"HTTP/1.1 200 OK"),
    (request(b"x: " + b"v" * 4_100), TOO_LARGE),
    (request(path=b"/" + b"p" * 4_100), TOO_LARGE),
    (request(body=b"b" * 1_000_000), b"HTTP/1.1 200 OK"),  # The limit does not apply to the body.
    (b"POST / HTTP/1.1\r\nx: " + b"v" * 200_000, TOO_LARGE),  # The server answers before the headers end.
    (b"nonsense\r\n\r\n", b"HTTP/1.1 400 Bad Request"),
]


@pytest.mark.parametrize(("data", "answer"), HEADS, ids=range(len(HEADS)))
def test_headers_are_limited_in_number_and_size(data: bytes, answer: bytes) -> None:
    async def test(connect: Callable[[], Awaitable[Connection]]) -> None:
        assert await say(await connect(), data) == answer

    serve(test)


def test_headers_that_arrive_in_pieces_are_limited() -> None:
    async def test(connect: Callable[[], Awaitable[Connection]]) -> None:
        reader, writer = await connect()
        writer.write(b"GET / HTTP/1.1\r\n")
        line = b""
        while not line:
            writer.write(b"x: " + b"v" * 500 + b"\r\n")
            try:
                async with asyncio.timeout(0.02):
                    line = await reader.readline()
            except TimeoutError:
                pass
        assert line.strip() == TOO_LARGE

    serve(test)


def test_a_connection_ends_if_its_headers_are_not_complete_in_time() -> None:
    """Occasional header lines do not prolong the time, and the limit holds for later requests of a connection."""

    async def test(connect: Callable[[], Awaitable[Connection]]) -> None:
        loop = asyncio.get_running_loop()
        silent, (reader, writer) = await connect(), await connect()
        assert await say((reader, writer), request()) == b"HTTP/1.1 200 OK"
        assert await reader.readexactly(1) == b"0"
        started, line = loop.time(), b""
        writer.write(b"GET / HTTP/1.1\r\n")
        while not line:
            if loop.time() - started < 2 * LIMITS.header_seconds:  # Later writes may meet a closed socket.
                writer.write(b"x: 1\r\n")
            try:
                async with asyncio.timeout(0.05):
                    line = await reader.readline()
            except TimeoutError:
                assert loop.time() - started < 10
        assert line.strip() == b"HTTP/1.1 408 Request Timeout"
        assert await silent[0].read() == b""

    serve(test)


def test_the_time_limit_of_headers_does_not_apply_to_the_body() -> None:

    async def test(connect: Callable[[], Awaitable[Connection]]) -> None:
        reader, writer = await connect()
        writer.write(request(body=b"b" * 10)[:-5])
        await asyncio.sleep(2 * LIMITS.header_seconds)
        assert await say((reader, writer), b"b" * 5) == b"HTTP/1.1 200 OK"

    serve(test)


def test_the_time_limit_of_headers_does_not_apply_to_websockets() -> None:
    async def test(connect: Callable[[], Awaitable[Connection]]) -> None:
        _, writer = await connect()
        port = writer.get_extra_info("peername")[1]
        async with websockets.connect(f"ws://127.0.0.1:{port}/") as socket:
            await asyncio.sleep(2 * LIMITS.header_seconds)
            await socket.send("still there")
            assert await socket.recv() == "still there"

    serve(test)


def test_connections_beyond_the_limit_are_refused_until_another_connection_closes() -> None:

    async def test(connect: Callable[[], Awaitable[Connection]]) -> None:
        open_now = [await connect() for _ in range(LIMITS.connections)]
        for connection in open_now:
            assert await say(connection, request()) == b"HTTP/1.1 200 OK"
        reader, _ = await connect()
        assert (await reader.readline()).strip() == b"HTTP/1.1 503 Service Unavailable"
        open_now[0][1].close()
        line = b""
        while line != b"HTTP/1.1 200 OK":
            line = await say(await connect(), request())

    serve(test)


def test_the_limit_of_connections_is_read_from_the_environment() -> None:
    assert HttpLimits.from_env({"TIDEMILL_HTTP_CONNECTIONS": "7"}).connections == 7
    with pytest.raises(ValueError, match="TIDEMILL_HTTP_CONNECTIONS: 'all'; write a whole number"):
        HttpLimits.from_env({"TIDEMILL_HTTP_CONNECTIONS": "all"})
