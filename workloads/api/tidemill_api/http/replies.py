"""Answers as HTTP: headers, conditional requests, how long clients may keep them, how a stale one is marked."""

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
# A replay may put another version in force, so that even these change: for a minute nobody notices.
FINAL = "max-age=60"
OPEN = "max-age=1, stale-while-revalidate=5"
PART_BYTES = 64 * 1024
PATIENCE_SECONDS, SLOWEST_BYTES_PER_SECOND = 8.0, 64 * 1024
"""A place for an export is waited for a little longer than a client may keep one without reading."""
NEXT_CURSOR = "tidemill-next-cursor"
"""Of a stream that `limit` has cut: what `next_cursor` is in JSON."""
STALE_WARNING = '110 - "Response is Stale"'


def slot_headers(slot: Slot, *, shared: bool) -> Headers:
    """The headers of a fresh answer, made once.

    Args:
        slot: where the answer is; keeps the headers.
        shared: whether everybody may see the answer, caches on the way included.
    """
    if not slot.headers:
        answer = slot.answer
        slot.headers = [
            (b"content-type", JSON.encode()),
            (b"content-length", b"%d" % len(answer.body)),
            *validators(answer, shared=shared),
        ]
    return slot.headers


def validators(answer: Answer, *, shared: bool) -> Headers:
    """What a 304 repeats of an answer's headers."""
    control = f"{'public' if shared else 'private'}, {FINAL if answer.final else OPEN}"
    return [(b"etag", answer.etag.encode()), (b"cache-control", control.encode()), (b"vary", b"accept")]


def matches(if_none_match: str | None, etag: str) -> bool:
    """Whether the client has this answer already (weak comparison)."""
    if not if_none_match:
        return False
    if if_none_match.strip() == "*":
        return True
    wanted = etag.removeprefix("W/")
    return any(tag.strip().removeprefix("W/") == wanted for tag in if_none_match.split(","))


def json_reply(
    found: tuple[Slot, bool], if_none_match: str | None, *, shared: bool, cacheable: bool = True
) -> Response:
    """The HTTP answer to a query answered as JSON.

    Args:
        found: the answer, and whether it is stale.
        if_none_match: that header of the request.
        shared: whether everybody may see the answer.
        cacheable: false for answers to POST.
    """
    slot, stale = found
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
    """A client reads too slowly."""


class Allowance:
    """How long a client may keep us waiting: what it reads earns time, and so much is given at first.

    Never more than that is saved up: what the network's buffers take at once says nothing of the client.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._left = clock, PATIENCE_SECONDS

    async def take(self, send: Awaitable[None], size: int) -> None:
        """Wait until a client takes so many bytes.

        Raises:
            Slow: it did not in the time that is left.
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
    """A stream, piece by piece; whoever leaves early, or reads too slowly, gives its place back at once."""

    def __init__(self, pieces: AsyncGenerator[bytes, None], content_type: str, headers: Mapping[str, str]) -> None:
        super().__init__(pieces, headers={"cache-control": "no-store", "vary": "accept", **headers})
        self.headers["content-type"] = content_type
        self._pieces = pieces

    async def stream_response(self, send: Send) -> None:
        """Send it in small parts. A client that is too slow sees a chunked body that does not end."""
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
            log.warning("an export was ended: its client took less than %d bytes a second", SLOWEST_BYTES_PER_SECOND)
            return
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it."""
        async with aclosing(self._pieces):
            await super().__call__(scope, receive, send)
