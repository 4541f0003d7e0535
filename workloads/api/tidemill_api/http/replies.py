"""Makes HTTP answers, with headers, conditional requests, cache times, stale answers and streams."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import aclosing

from starlette.responses import Response, StreamingResponse

from tidemill_api import metrics
from tidemill_api.cache import Answer, CacheEntry
from tidemill_api.formats.json import JSON
from tidemill_chassis.web.asgi import Receive, Scope, Send

log = logging.getLogger(__name__)

Headers = list[tuple[bytes, bytes]]
# Clients cache an answer about closed windows for only a minute. A replay can still change these windows.
FINAL = "max-age=60"
OPEN = "max-age=1, stale-while-revalidate=5"
PART_BYTES = 64 * 1024
MAX_PAUSE_SECONDS, MIN_BYTES_PER_SECOND = 8.0, 64 * 1024
"""The API disconnects clients that stop reading for MAX_PAUSE_SECONDS, or read below MIN_BYTES_PER_SECOND."""
NEXT_CURSOR = "tidemill-next-cursor"
"""The header of an incomplete stream. Its value is the cursor of the next rows."""
STALE_WARNING = '110 - "Response is Stale"'


def entry_headers(entry: CacheEntry, *, shared: bool) -> Headers:
    """Return the encoded headers of a fresh answer."""
    if not entry.headers:
        answer = entry.answer
        entry.headers = [
            (b"content-type", JSON.encode()),
            (b"content-length", b"%d" % len(answer.body)),
            *cache_headers(answer, shared=shared),
        ]
    return entry.headers


def cache_headers(answer: Answer, *, shared: bool) -> Headers:
    """Return the headers that the statuses 200 and 304 have in common, such as ETag."""
    control = f"{'public' if shared else 'private'}, {FINAL if answer.final else OPEN}"
    return [(b"etag", answer.etag.encode()), (b"cache-control", control.encode()), (b"vary", b"accept")]


def etag_matches(if_none_match: str | None, etag: str) -> bool:
    """Return whether the client already has the answer with this ETag (weak comparison)."""
    if not if_none_match:
        return False
    if if_none_match.strip() == "*":
        return True
    expected = etag.removeprefix("W/")
    return any(tag.strip().removeprefix("W/") == expected for tag in if_none_match.split(","))


def json_reply(
    cached: tuple[CacheEntry, bool], if_none_match: str | None, *, shared: bool, cacheable: bool = True
) -> Response:
    """Return the HTTP response with a JSON answer.

    Args:
        cached: the cache entry, and whether its answer is stale.
        if_none_match: the header If-None-Match of the request.
        shared: whether everybody may see the answer, so that shared caches may store it.
        cacheable: whether the answer can be cached; false for answers to POST.
    """
    entry, stale = cached
    if stale:
        return _stale_reply(entry.answer)
    if cacheable and etag_matches(if_none_match, entry.answer.etag):
        response = Response(status_code=304)
        response.raw_headers = cache_headers(entry.answer, shared=shared)
        return response
    response = Response(entry.answer.body)
    response.raw_headers = list(entry_headers(entry, shared=shared))
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


class SlowClient(Exception):
    """The error for a client that reads a stream too slowly."""


class SendBudget:
    """Detects clients that read a streamed answer too slowly.

    Each byte that the client reads adds time. The remaining time is at most MAX_PAUSE_SECONDS.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._seconds_left = clock, MAX_PAUSE_SECONDS

    async def await_send(self, send: Awaitable[None], size: int) -> None:
        """Wait until `send` has sent `size` bytes to the client.

        Raises:
            SlowClient: the client reads too slowly.
        """
        started = self._clock()
        try:
            async with asyncio.timeout(self._seconds_left):
                await send
        except TimeoutError:
            raise SlowClient from None
        waited = self._clock() - started
        self._seconds_left = min(MAX_PAUSE_SECONDS, max(0.0, self._seconds_left - waited) + size / MIN_BYTES_PER_SECOND)


class StreamReply(StreamingResponse):
    """A streamed answer. If the client disconnects or reads too slowly, the answer frees Postgres at once."""

    def __init__(self, pieces: AsyncGenerator[bytes, None], content_type: str, headers: Mapping[str, str]) -> None:
        super().__init__(pieces, headers={"cache-control": "no-store", "vary": "accept", **headers})
        self.headers["content-type"] = content_type
        self._pieces = pieces

    async def stream_response(self, send: Send) -> None:
        """Send the answer in small parts. An answer to a slow client ends early, without the last chunk."""
        budget = SendBudget()
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        try:
            async for piece in self._pieces:
                for at in range(0, len(piece), PART_BYTES):
                    part = piece[at : at + PART_BYTES]
                    await budget.await_send(
                        send({"type": "http.response.body", "body": part, "more_body": True}), len(part)
                    )
        except SlowClient:
            metrics.SLOW_READERS.inc()
            log.warning("a stream was ended: its client read less than %d bytes per second", MIN_BYTES_PER_SECOND)
            return
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the answer."""
        async with aclosing(self._pieces):
            await super().__call__(scope, receive, send)
