"""What a request can be refused with. Raised anywhere, answered as RFC 9457 problem details at the edge."""

from __future__ import annotations

import math
import random
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from tidemill_chassis.asgi import PROBLEM_TYPE, problem


class Problem(Exception):
    """A request cannot be answered as it is.

    Attributes:
        status: HTTP status code.
        code: stable identifier, in snake case.
        title: the kind of problem.
        detail: this occurrence, and what to do about it.
        headers: further headers of the answer.
        extra: further members of the body, e.g. `parameter`.
    """

    def __init__(
        self, status: int, code: str, title: str, detail: str, *, headers: dict[str, str] | None = None, **extra: Any
    ) -> None:
        super().__init__(f"{code}: {detail}")
        self.status, self.code, self.title, self.detail = status, code, title, detail
        self.headers, self.extra = headers or {}, extra

    @property
    def body(self) -> bytes:
        """The problem details."""
        return problem(self.status, self.code, self.title, self.detail, **self.extra)

    def response(self) -> Response:
        """The HTTP answer."""
        headers = {"cache-control": "no-store", **self.headers}
        return Response(self.body, self.status, headers, media_type=PROBLEM_TYPE)


def bad_parameter(name: str, detail: str, *, code: str = "invalid_parameter") -> Problem:
    """400: a parameter is unknown or wrong; `detail` says what to write instead."""
    return Problem(400, code, "Invalid Parameter", f"{name}: {detail}", parameter=name)


def not_found(code: str, detail: str) -> Problem:
    """404."""
    return Problem(404, code, "Not Found", detail)


def unauthorized(detail: str) -> Problem:
    """401: no key, or not one of the pipeline's."""
    return Problem(401, "unauthorized", "Unauthorized", detail, headers={"www-authenticate": 'Bearer realm="tidemill"'})


def forbidden(detail: str) -> Problem:
    """403: the key is good, but not for this."""
    return Problem(403, "forbidden", "Forbidden", detail)


def unavailable(detail: str, retry_after_seconds: float, *, code: str = "database_unavailable") -> Problem:
    """503 with a jittered Retry-After, so that clients do not come back all at once."""
    wait = max(1, math.ceil(retry_after_seconds * random.uniform(1.0, 1.2)))  # noqa: S311 - spreads load, no secret
    return Problem(503, code, "Service Unavailable", detail, headers={"retry-after": str(wait)})


async def answer_problem(request: Request, error: Exception) -> Response:
    """The exception handler of the application for `Problem`."""
    assert isinstance(error, Problem)  # noqa: S101 - registered for this class alone
    return error.response()
