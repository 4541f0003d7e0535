"""Requests that a service may refuse although its OpenAPI document allows them, each with a reason.

schemathesis loads this module as its hooks. All exceptions but one are for the check `positive_data_acceptance`. The
document cannot describe the names of a pipeline's members, nor a rule that compares two parameters.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import schemathesis
from schemathesis.core.failures import AcceptedNegativeData
from schemathesis.openapi.checks import RejectedPositiveData

_WINDOWS = r"(GET|POST) /v1/pipelines/\{pipeline\}/aggregates/\{aggregation\}(\.\w+|/query)?"
_ROWS = rf"{_WINDOWS}|GET /v1/pipelines/\{{pipeline\}}/(anomalies|dead-letters|events)(\.\w+)?"
_EVENTS = r"GET /v1/pipelines/\{pipeline\}/events(\.\w+)?"
_LIVE = r"GET /v1/pipelines/\{pipeline\}/live"
_APPEND = r"POST /v1/pipelines/\{pipeline\}/events"


@dataclass(frozen=True)
class Excepted:
    """A correct refusal.

    Attributes:
        operation: a pattern of `METHOD path`.
        code: the code of the problem.
        detail: a pattern of the beginning of the problem's detail.
        why: the rule that the OpenAPI document cannot express.
    """

    operation: str
    status: int
    code: str
    detail: str
    why: str

    def covers(self, operation: str, status: int, problem: dict[str, Any]) -> bool:
        """Return True if an answer is this refusal."""
        return (
            (status, problem.get("code")) == (self.status, self.code)
            and re.fullmatch(self.operation, operation) is not None
            and re.match(self.detail, problem.get("detail", "")) is not None
        )


def _bad(operation: str, detail: str, why: str, *, code: str = "invalid_parameter") -> Excepted:
    return Excepted(operation, 400, code, detail, why)


EXCEPTED = (
    _bad(
        _ROWS,
        r"to: the end must be later than the start \(the parameter from\)",
        "the bound depends on another parameter",
    ),
    _bad(
        _ROWS,
        "cursor: the (value is not a cursor|cursor belongs to another query)",
        "a cursor is opaque, and belongs to one query",
        code="bad_cursor",
    ),
    _bad(_ROWS, "order: a column is named twice", "`a` and `-a` are different items of the list"),
    _bad(_WINDOWS, "group_by: .* is not a dimension of", "a pipeline defines its dimensions"),
    _bad(_WINDOWS, "metrics: .* is not a metric of", "a pipeline defines its metrics"),
    _bad(_WINDOWS, "order: .* is not a column to order by", "a pipeline defines its columns"),
    _bad(_WINDOWS, "granularity: .* is not a multiple of", "a pipeline defines the length of stored windows"),
    _bad(_WINDOWS, "tz: .* is not a time zone", "the machine defines its time zones"),
    _bad(
        _WINDOWS,
        "tz: a time zone (needs a granularity in whole days|has no meaning with granularity=all)",
        "the rule depends on granularity",
    ),
    _bad(_WINDOWS, "fill: ", "the rule depends on from, to, granularity and filters on metrics"),
    _bad(f"{_WINDOWS}|{_EVENTS}|{_LIVE}", "", "a pipeline defines its columns", code="unknown_parameter"),
    _bad(f"{_WINDOWS}|{_EVENTS}|{_LIVE}", r"\w+: .* is no (integer|number|boolean|time)", "a pipeline defines types"),
    _bad(f"{_WINDOWS}|{_EVENTS}", r"\w+: the column \w+ cannot be filtered by", "a pipeline defines types"),
    _bad(_LIVE, "aggregations: .* has no aggregation", "a pipeline defines its aggregations"),
    Excepted(_APPEND, 422, "no_valid_event", "", "a pipeline defines the fields of events"),
    Excepted(_APPEND, 422, "batch_rejected", "", "a pipeline defines the fields of events"),
    Excepted(_APPEND, 422, "idempotency_key_reused", "", "the rule depends on an earlier request with the key"),
)


@schemathesis.hook
def filter_failure(context: Any, failure: Any, case: Any, response: Any) -> bool:
    """Return True if schemathesis must report a failure, False if the failure is excepted."""
    if isinstance(failure, AcceptedNegativeData):
        # In a query string, a null in place of a string is the string `null`, so the request is valid.
        sent = parse_qsl(urlsplit(response.request.url).query)
        return not (case.operation.label.startswith("GET ") and "null" in dict(sent).values())
    if not isinstance(failure, RejectedPositiveData):
        return True
    try:
        problem = json.loads(response.content)
    except ValueError:
        return True
    return not any(refusal.covers(case.operation.label, response.status_code, problem) for refusal in EXCEPTED)
