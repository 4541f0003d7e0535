"""Answers in the OpenAPI document: their headers, problems and pages."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from tidemill_api.formats.base import Format
from tidemill_api.formats.json import JSON
from tidemill_api.formats.registry import STREAMED, STREAMED_NAMES
from tidemill_api.http.openapi_schemas import STRING, Schema, ref
from tidemill_chassis.web.asgi import PROBLEM_TYPE

_PROBLEMS = {
    400: "A parameter is unknown or wrong; `code` and `detail` say which and what to write.",
    401: "No API key, or not one of the pipeline's.",
    403: "The API key lacks the scope query:read.",
    404: "No such pipeline, aggregation or path.",
    413: "The body is too large.",
    503: "The database does not answer and no earlier answer is known; see Retry-After.",
    504: "No answer in time.",
}
_SECONDS: Schema = {"type": "integer", "minimum": 1}
_HEADERS: dict[str, tuple[str, Schema]] = {
    "Age": ("Of a stale answer: how many seconds ago it was right.", {"type": "integer", "minimum": 0}),
    "Cache-Control": ("Longer for answers that no event can change any more.", STRING),
    "Content-Disposition": ("A name for the file.", {"type": "string", "pattern": "^attachment; filename="}),
    "ETag": ("Changes with the data.", {"type": "string", "pattern": '^W/"[0-9a-f]+"$'}),
    "Retry-After": ("Seconds until it is worth trying again.", _SECONDS),
    "Tidemill-Next-Cursor": ("`cursor` for the rows that `limit` cut off.", {"type": "string", "minLength": 1}),
    "Tidemill-Stale": ("The answer is stale.", {"const": "true"}),
    "Vary": ("What else the answer depends on.", STRING),
    "WWW-Authenticate": ("How to send the key.", STRING),
    "Warning": ("110: the answer is stale.", {"type": "string", "pattern": "^110 "}),
}
_STALE = ("Age", "Warning", "Tidemill-Stale")
_OF_PROBLEMS = {401: "WWW-Authenticate", 503: "Retry-After"}


def headers(*names: str, required: Collection[str] = ()) -> dict[str, Any]:
    """Headers of an answer, those that it always has marked so."""
    return {
        name: {"description": _HEADERS[name][0], "schema": _HEADERS[name][1], "required": name in required}
        for name in (*names, *required)
    }


def problems(*statuses: int) -> dict[str, Any]:
    """References to problems, by status."""
    return {str(status): {"$ref": f"#/components/responses/Problem{status}"} for status in statuses}


def problem(status: int, description: str) -> dict[str, Any]:
    """An answer that tells what is wrong."""
    always = ["Cache-Control", *filter(None, [_OF_PROBLEMS.get(status)])]
    content = {PROBLEM_TYPE: {"schema": ref("Problem")}}
    return {"description": description, "headers": headers(required=always), "content": content}


def plain(schema: str, description: str) -> dict[str, Any]:
    """JSON that nobody keeps."""
    content = {JSON: {"schema": ref(schema)}}
    return {"description": description, "headers": headers(required=["Cache-Control"]), "content": content}


def fresh(schema: str, row: str | None = None, *, cached: bool = True) -> dict[str, Any]:
    """JSON as the cache has it, or, if the client would rather have it, a stream of its rows."""
    forms = _forms(schema, row)
    names = (*(("ETag",) if cached else ()), *_STALE, *(("Tidemill-Next-Cursor",) if row else ()), "Vary")
    text = f"{STREAMED_NAMES} are streamed whole, up to `limit`." if row else ""
    return {
        "description": f"JSON comes in pages, or as `Accept` says: {text}" if row else "As it is now.",
        "headers": headers(*names, required=["Cache-Control"]),
        "content": forms if row else {JSON: forms[JSON]},
    }


def in_format(wanted: Format, schema: str, row: str) -> dict[str, Any]:
    """The same in one format."""
    if wanted.writer is None:
        return {**fresh(schema), "description": "A page of rows.", "content": {JSON: _forms(schema, row)[JSON]}}
    return {
        "description": "The rows, streamed whole, up to `limit`.",
        "headers": headers("Tidemill-Next-Cursor", required=["Cache-Control", "Content-Disposition", "Vary"]),
        "content": {wanted.media_type: _streamed(wanted, row)},
    }


def _forms(schema: str, row: str | None) -> dict[str, Any]:
    return {JSON: {"schema": ref(schema)}, **{found.media_type: _streamed(found, row) for found in STREAMED}}


def _streamed(wanted: Format, row: str | None) -> dict[str, Any]:
    if wanted.of_items:
        return {"itemSchema": ref(row)} if row else {}
    return {"schema": dict(wanted.schema)}


def unchanged() -> dict[str, Any]:
    """304."""
    return {
        "description": "The answer with that ETag is right still.",
        "headers": headers(required=["ETag", "Cache-Control", "Vary"]),
    }


RESPONSES = {f"Problem{status}": problem(status, description) for status, description in _PROBLEMS.items()}
