"""What a request can be refused with: raised anywhere, answered as RFC 9457 problem details at the edge."""

from __future__ import annotations

import math
import random
from http import HTTPStatus
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from tidemill_chassis.asgi import PROBLEM_TYPE, problem


class Refused(Exception):
    """A request is not served.

    Attributes:
        status: HTTP status code.
        code: stable identifier, in snake case.
        detail: this occurrence, and what to do about it.
        headers: further headers of the answer.
        extra: further members of the body.
    """

    def __init__(
        self, status: int, code: str, detail: str, *, headers: dict[str, str] | None = None, **extra: Any
    ) -> None:
        super().__init__(f"{code}: {detail}")
        self.status, self.code, self.detail = status, code, detail
        self.headers, self.extra = headers or {}, extra

    def response(self) -> Response:
        """The HTTP answer."""
        body = problem(self.status, self.code, HTTPStatus(self.status).phrase, self.detail, **self.extra)
        headers = {"cache-control": "no-store", **self.headers}
        return Response(body, self.status, headers, media_type=PROBLEM_TYPE)


def retry_after(seconds: float) -> dict[str, str]:
    """A Retry-After header no sooner than `seconds`, jittered so that clients do not come back all at once."""
    wait = seconds * random.uniform(1.0, 1.2) + random.uniform(0.0, 2.0)  # noqa: S311 - spreads load, no secret
    return {"retry-after": str(max(1, math.ceil(wait)))}


def unavailable(code: str, detail: str, retry_after_seconds: float, **extra: Any) -> Refused:
    """503 with a jittered Retry-After."""
    return Refused(503, code, detail, headers=retry_after(retry_after_seconds), **extra)


async def answer_refused(request: Request, error: Exception) -> Response:
    """The application's exception handler for `Refused`."""
    assert isinstance(error, Refused)  # noqa: S101 - registered for this class alone
    return error.response()
