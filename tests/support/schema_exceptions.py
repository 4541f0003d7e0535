"""What schemathesis may see refused although the OpenAPI documents allow it, each with its reason.

Loaded by schemathesis as its hooks. All but one are of the check `positive_data_acceptance`, for a status and a text:
what a pipeline has is known to that pipeline only, and no schema can hold one parameter against another.
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
    """A refusal that is right.

    Attributes:
        operation: pattern of `METHOD path`.
        code: of the problem.
        detail: pattern of the beginning of its detail.
        why: what the schema cannot say.
    """

    operation: str
    status: int
    code: str
    detail: str
    why: str

    def covers(self, operation: str, status: int, problem: dict[str, Any]) -> bool:
        """Whether an answer is this refusal."""
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
        "a bound against another parameter",
    ),
    _bad(
        _ROWS,
        "cursor: the (value is not a cursor|cursor belongs to another query)",
        "a cursor is opaque, and bound to its query",
        code="bad_cursor",
    ),
    _bad(_ROWS, "order: a column is named twice", "`a` and `-a` are two items of the list"),
    _bad(_WINDOWS, "group_by: .* is not a dimension of", "dimensions are a pipeline's"),
    _bad(_WINDOWS, "metrics: .* is not a metric of", "metrics are a pipeline's"),
    _bad(_WINDOWS, "order: .* is not a column to order by", "columns are a pipeline's"),
    _bad(_WINDOWS, "granularity: .* is not a multiple of", "the stored length is a pipeline's"),
    _bad(_WINDOWS, "tz: .* is not a time zone", "zones are the machine's"),
    _bad(
        _WINDOWS,
        "tz: a time zone (needs a granularity in whole days|has no meaning with granularity=all)",
        "against granularity",
    ),
    _bad(_WINDOWS, "fill: ", "against from, to, granularity and filters on metrics"),
    _bad(f"{_WINDOWS}|{_EVENTS}|{_LIVE}", "", "columns are a pipeline's", code="unknown_parameter"),
    _bad(f"{_WINDOWS}|{_EVENTS}|{_LIVE}", r"\w+: .* is no (integer|number|boolean|time)", "types are a pipeline's"),
    _bad(f"{_WINDOWS}|{_EVENTS}", r"\w+: the column \w+ cannot be filtered by", "types are a pipeline's"),
    _bad(_LIVE, "aggregations: .* has no aggregation", "aggregations are a pipeline's"),
    Excepted(_APPEND, 422, "no_valid_event", "", "fields of events are a pipeline's"),
    Excepted(_APPEND, 422, "batch_rejected", "", "fields of events are a pipeline's"),
    Excepted(_APPEND, 422, "idempotency_key_reused", "", "what came before under a key is no matter of one request"),
)


@schemathesis.hook
def filter_failure(context: Any, failure: Any, case: Any, response: Any) -> bool:
    """Whether a failure is one."""
    if isinstance(failure, AcceptedNegativeData):
        # A null in place of a text is the text `null` in a query string: the request is good.
        sent = parse_qsl(urlsplit(response.request.url).query)
        return not (case.operation.label.startswith("GET ") and "null" in dict(sent).values())
    if not isinstance(failure, RejectedPositiveData):
        return True
    try:
        problem = json.loads(response.content)
    except ValueError:
        return True
    return not any(found.covers(case.operation.label, response.status_code, problem) for found in EXCEPTED)
