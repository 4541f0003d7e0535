"""Errors of HTTP requests. Any code can raise a `Problem`, which becomes a response with RFC 9457 problem details."""

from __future__ import annotations

import math
import random
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from tidemill_chassis.auth import Forbidden, Unauthorized
from tidemill_chassis.web.asgi import PROBLEM_TYPE, problem_body


class Problem(Exception):
    """The error for a refused request.

    Attributes:
        code: a stable name for the kind of problem, in snake case, that clients can compare.
        extra: additional members of the body, such as `parameter`.
    """

    def __init__(
        self, status: int, code: str, detail: str, *, headers: dict[str, str] | None = None, **extra: Any
    ) -> None:
        super().__init__(f"{code}: {detail}")
        self.status, self.code, self.detail = status, code, detail
        self.headers, self.extra = headers or {}, extra

    @property
    def body(self) -> bytes:
        """The problem details as JSON."""
        return problem_body(self.status, self.code, self.detail, **self.extra)

    def response(self) -> Response:
        """Return the HTTP answer."""
        headers = {"cache-control": "no-store", **self.headers}
        return Response(self.body, self.status, headers, media_type=PROBLEM_TYPE)


def bad_parameter(name: str, detail: str, *, code: str = "invalid_parameter") -> Problem:
    """Return the problem (400) for an unknown or invalid parameter."""
    return Problem(400, code, f"{name}: {detail}", parameter=name)


def denied(error: Unauthorized | Forbidden, scope: str) -> Problem:
    """Return the problem for a missing or wrong API key (401), or for a missing scope (403)."""
    if isinstance(error, Unauthorized):
        return Problem(401, "unauthorized", str(error), headers={"www-authenticate": "Bearer"})
    challenge = f'Bearer error="insufficient_scope", scope="{scope}"'
    return Problem(403, "forbidden", str(error), headers={"www-authenticate": challenge})


def not_found(code: str, detail: str) -> Problem:
    """Return a problem with status 404."""
    return Problem(404, code, detail)


def unavailable(code: str, detail: str, retry_after_seconds: float, **extra: Any) -> Problem:
    """Return a problem with status 503 and a Retry-After header."""
    return Problem(503, code, detail, headers=retry_after(retry_after_seconds), **extra)


def retry_after(seconds: float) -> dict[str, str]:
    """Return a Retry-After header of at least `seconds`. Jitter prevents retries of all clients at once."""
    wait = seconds * random.uniform(1.0, 1.2) + random.uniform(0.0, 2.0)  # noqa: S311 - spreads load, no secret
    return {"retry-after": str(max(1, math.ceil(wait)))}


async def answer_problem(request: Request, error: Exception) -> Response:
    """Return the response for a `Problem` (an exception handler for FastAPI)."""
    assert isinstance(error, Problem)  # noqa: S101 - registered for this class alone
    return error.response()
