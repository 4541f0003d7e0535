"""Makes HTTP answers, with headers, conditional requests, cache times, stale answers and streams."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import aclosing

from starlette.responses import Response, StreamingResponse

from tidemill_api import metrics
from tidemill_api.cache import Answer, Slot
from tidemill_api.formats.json import JSON
from tidemill_chassis.web.asgi import Receive, Scope, Send

log = logging.getLogger(__name__)

Headers = list[tuple[bytes, bytes]]
# Clients cache an answer about closed windows for only a minute. A replay can still change these windows.
FINAL = "max-age=60"
OPEN = "max-age=1, stale-while-revalidate=5"
PART_BYTES = 64 * 1024
PATIENCE_SECONDS, SLOWEST_BYTES_PER_SECOND = 8.0, 64 * 1024
"""The API disconnects clients that stop reading for PATIENCE_SECONDS, or read below SLOWEST_BYTES_PER_SECOND."""
NEXT_CURSOR = "tidemill-next-cursor"
"""The header of an incomplete stream. Its value is the cursor of the next rows."""
STALE_WARNING = '110 - "Response is Stale"'


def slot_headers(slot: Slot, *, shared: bool) -> Headers:
    """Return the encoded headers of a fresh answer."""
    if not slot.headers:
        answer = slot.answer
        slot.headers = [
            (b"content-type", JSON.encode()),
            (b"content-length", b"%d" % len(answer.body)),
            *validators(answer, shared=shared),
        ]
    return slot.headers


def validators(answer: Answer, *, shared: bool) -> Headers:
    """Return the headers that the statuses 200 and 304 have in common, such as ETag."""
    control = f"{'public' if shared else 'private'}, {FINAL if answer.final else OPEN}"
    return [(b"etag", answer.etag.encode()), (b"cache-control", control.encode()), (b"vary", b"accept")]


def matches(if_none_match: str | None, etag: str) -> bool:
    """Return whether the client already has the answer with this ETag (weak comparison)."""
    if not if_none_match:
        return False
    if if_none_match.strip() == "*":
        return True
    wanted = etag.removeprefix("W/")
    return any(tag.strip().removeprefix("W/") == wanted for tag in if_none_match.split(","))


def json_reply(
    cached: tuple[Slot, bool], if_none_match: str | None, *, shared: bool, cacheable: bool = True
) -> Response:
    """Return the HTTP response with a JSON answer.

    Args:
        cached: the cache entry, and whether its answer is stale.
        if_none_match: the header If-None-Match of the request.
        shared: whether everybody may see the answer, so that shared caches may store it.
        cacheable: whether the answer can be cached; false for answers to POST.
    """
    slot, stale = cached
    if stale:
        return _stale_reply(slot.answer)
    if cacheable and matches(if_none_match, slot.answer.etag):
        response = Response(status_code=304)
        response.raw_headers = validators(slot.answer, shared=shared)
        return response
    response = Response(slot.answer.body)
    response.raw_headers = list(slot_headers(slot, shared=shared))
    if not cacheable:
        response.headers["cache-control"] = "no-store"
        del response.headers["etag"]
    return response


def _stale_reply(answer: Answer) -> Response:
    metrics.STALE_ANSWERS.inc()
    body = answer.body[:-1] + b',"stale":true}'
    headers = {
        "age": str(int(answer.age_seconds)),
        "cache-control": "no-store",
        "warning": STALE_WARNING,
        "tidemill-stale": "true",
    }
    return Response(body, headers=headers, media_type=JSON)


class Slow(Exception):
    """The error for a client that reads a stream too slowly."""


class Allowance:
    """Detects clients that read a streamed answer too slowly.

    Each byte that the client reads adds time. The remaining time is at most PATIENCE_SECONDS.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._left = clock, PATIENCE_SECONDS

    async def take(self, send: Awaitable[None], size: int) -> None:
        """Wait until `send` has sent `size` bytes to the client.

        Raises:
            Slow: the client reads too slowly.
        """
        started = self._clock()
        try:
            async with asyncio.timeout(self._left):
                await send
        except TimeoutError:
            raise Slow from None
        waited = self._clock() - started
        self._left = min(PATIENCE_SECONDS, max(0.0, self._left - waited) + size / SLOWEST_BYTES_PER_SECOND)


class PiecesReply(StreamingResponse):
    """A streamed answer. If the client disconnects or reads too slowly, the answer frees Postgres at once."""

    def __init__(self, pieces: AsyncGenerator[bytes, None], content_type: str, headers: Mapping[str, str]) -> None:
        super().__init__(pieces, headers={"cache-control": "no-store", "vary": "accept", **headers})
        self.headers["content-type"] = content_type
        self._pieces = pieces

    async def stream_response(self, send: Send) -> None:
        """Send the answer in small parts. An answer to a slow client ends early, without the last chunk."""
        allowance = Allowance()
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        try:
            async for piece in self._pieces:
                for at in range(0, len(piece), PART_BYTES):
                    part = piece[at : at + PART_BYTES]
                    await allowance.take(
                        send({"type": "http.response.body", "body": part, "more_body": True}), len(part)
                    )
        except Slow:
            metrics.SLOW_READERS.inc()
            log.warning("a stream was ended: its client read less than %d bytes per second", SLOWEST_BYTES_PER_SECOND)
            return
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the answer."""
        async with aclosing(self._pieces):
            await super().__call__(scope, receive, send)
