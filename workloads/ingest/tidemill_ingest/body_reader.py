"""Reads request bodies. The size of each body and the memory for all bodies are limited."""

from __future__ import annotations

import asyncio
from types import TracebackType

from starlette.requests import Request

from tidemill_chassis.web.problems import Problem, unavailable
from tidemill_ingest.body import MAX_BODY_BYTES, decompress, too_large

MEMORY_BYTES = 256 * 1024 * 1024
"""The maximum size in bytes of all request bodies in memory."""
_DRAINED_BYTES = 4 * MAX_BODY_BYTES
"""How many bytes of an oversized body are read and dropped. Some clients read the answer only after the whole body."""
_INLINE_BYTES = 64 * 1024
"""Compressed bodies of at least this many bytes are unpacked in a thread."""


class MemoryBudget:
    """Counts the memory (in bytes) that all requests use."""

    def __init__(self, limit: int = MEMORY_BYTES) -> None:
        self._free_bytes = limit

    def reservation(self) -> MemoryReservation:
        """Return a context manager. It counts one request's memory, and releases it at the end."""
        return MemoryReservation(self)

    def reserve(self, count: int) -> None:
        """Reserve more bytes.

        Raises:
            Problem: the memory limit is reached (503).
        """
        if count > self._free_bytes:
            raise unavailable("busy", "too many request bodies are being read; send again later", 1.0)
        self._free_bytes -= count

    def release(self, count: int) -> None:
        """Release bytes."""
        self._free_bytes += count


class MemoryReservation:
    """Counts the memory (in bytes) that one request uses."""

    def __init__(self, budget: MemoryBudget) -> None:
        self._budget, self._bytes = budget, 0

    def add(self, count: int) -> None:
        """Reserve more bytes.

        Raises:
            Problem: the memory limit is reached (503).
        """
        self._budget.reserve(count)
        self._bytes += count

    def __enter__(self) -> MemoryReservation:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._budget.release(self._bytes)


async def read_body(request: Request, reservation: MemoryReservation) -> bytes:
    """Return the decompressed body.

    Raises:
        Problem: the body is too large (413) or damaged (400), its encoding is unknown (415), or memory is full (503).
        ClientDisconnect: the client disconnected.
    """
    return await decompress_body(request, await receive_body(request, reservation), reservation)


async def decompress_body(request: Request, body: bytes, reservation: MemoryReservation) -> bytes:
    """Return the body of a request, decompressed as its Content-Encoding header says.

    Raises:
        Problem: the body is too large (413) or damaged (400), its encoding is unknown (415), or the memory limit
            is reached (503).
    """
    encoding = request.headers.get("content-encoding", "")
    if len(body) > _INLINE_BYTES and encoding:
        plain = await asyncio.to_thread(decompress, body, encoding)
    else:
        plain = decompress(body, encoding)
    if plain is not body:
        reservation.add(len(plain))
    return plain


async def receive_body(request: Request, reservation: MemoryReservation) -> bytes:
    """Return the body as sent by the client.

    Raises:
        Problem: the body is too large (413), or the memory limit is reached (503).
        ClientDisconnect: the client disconnected.
    """
    content_length = request.headers.get("content-length", "")
    if content_length.isdecimal() and int(content_length) > MAX_BODY_BYTES and "expect" in request.headers:
        raise _too_large_and_close()
    chunks: list[bytes] = []
    size = 0
    async for chunk in request.stream():
        size += len(chunk)
        if size <= MAX_BODY_BYTES:
            reservation.add(len(chunk))
            chunks.append(chunk)
        elif size > _DRAINED_BYTES:
            break
        else:
            chunks.clear()
    if size > MAX_BODY_BYTES:
        raise _too_large_and_close()
    return chunks[0] if len(chunks) == 1 else b"".join(chunks)


def _too_large_and_close() -> Problem:
    problem = too_large()
    problem.headers["connection"] = "close"
    return problem
