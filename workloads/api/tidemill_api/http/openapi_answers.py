"""Descriptions of responses in the OpenAPI document, with headers and problems."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from tidemill_api.formats.base import Format
from tidemill_api.formats.json import JSON
from tidemill_api.formats.registry import STREAMED, STREAMED_NAMES
from tidemill_api.http.openapi_schemas import STRING, Schema, ref
from tidemill_chassis.web.asgi import PROBLEM_TYPE

_PROBLEMS = {
    400: "A parameter is unknown or wrong. `detail` names the parameter and the remedy.",
    401: "The API key is missing or wrong.",
    403: "The API key lacks the scope query:read.",
    404: "There is no such pipeline, aggregation or path.",
    413: "The body is too large.",
    503: "The database does not answer, and the cache has no earlier answer. Retry after the time in Retry-After.",
    504: "There was no answer in time.",
}
_SECONDS: Schema = {"type": "integer", "minimum": 1}
_HEADERS: dict[str, tuple[str, Schema]] = {
    "Age": ("Seconds since a stale answer was last known to be current.", {"type": "integer", "minimum": 0}),
    "Cache-Control": (
        "How long a client can cache the answer. Answers about closed windows can be cached longer.",
        STRING,
    ),
    "Content-Disposition": ("A file name for the answer.", {"type": "string", "pattern": "^attachment; filename="}),
    "ETag": ("The version of the data.", {"type": "string", "pattern": '^W/"[0-9a-f]+"$'}),
    "Retry-After": ("Seconds to wait before the next attempt.", _SECONDS),
    "Tidemill-Next-Cursor": ("Send this `cursor` to get the next rows.", {"type": "string", "minLength": 1}),
    "Tidemill-Stale": ("This header is present if the answer is stale.", {"const": "true"}),
    "Vary": ("The request headers on which the answer depends.", STRING),
    "WWW-Authenticate": ("How to send the API key.", STRING),
    "Warning": ("Only for stale answers: the HTTP warning 110 (stale).", {"type": "string", "pattern": "^110 "}),
}
_STALE = ("Age", "Warning", "Tidemill-Stale")
_PROBLEM_HEADERS = {401: "WWW-Authenticate", 503: "Retry-After"}


def headers(*names: str, required: Collection[str] = ()) -> dict[str, Any]:
    """Return the OpenAPI descriptions of headers, by name."""
    return {
        name: {"description": _HEADERS[name][0], "schema": _HEADERS[name][1], "required": name in required}
        for name in (*names, *required)
    }


def problems(*statuses: int) -> dict[str, Any]:
    """Return OpenAPI references to the shared problem responses, by status."""
    return {str(status): {"$ref": f"#/components/responses/Problem{status}"} for status in statuses}


def problem(status: int, description: str) -> dict[str, Any]:
    """Return the OpenAPI description of a response with problem details."""
    required = ["Cache-Control", *filter(None, [_PROBLEM_HEADERS.get(status)])]
    content = {PROBLEM_TYPE: {"schema": ref("Problem")}}
    return {"description": description, "headers": headers(required=required), "content": content}


def uncached_response(schema: str, description: str) -> dict[str, Any]:
    """Return the OpenAPI description of a JSON response that is never cached."""
    content = {JSON: {"schema": ref(schema)}}
    return {"description": description, "headers": headers(required=["Cache-Control"]), "content": content}


def query_response(schema: str, row: str | None = None, *, cached: bool = True) -> dict[str, Any]:
    """Return the OpenAPI description of a response that may come from the cache of the API."""
    content = _content(schema, row)
    names = (*(("ETag",) if cached else ()), *_STALE, *(("Tidemill-Next-Cursor",) if row else ()), "Vary")
    text = f"A page of rows as JSON. If `Accept` asks for one of {STREAMED_NAMES}, a stream of up to `limit` rows."
    return {
        "description": text if row else "The current state.",
        "headers": headers(*names, required=["Cache-Control"]),
        "content": content if row else {JSON: content[JSON]},
    }


def format_response(fmt: Format, schema: str, row: str) -> dict[str, Any]:
    """Return the OpenAPI description of a response with rows in one format, such as CSV."""
    if fmt.writer_factory is None:
        return {
            **query_response(schema),
            "description": "A page of rows.",
            "content": {JSON: _content(schema, row)[JSON]},
        }
    return {
        "description": "A stream of all rows up to `limit`.",
        "headers": headers("Tidemill-Next-Cursor", required=["Cache-Control", "Content-Disposition", "Vary"]),
        "content": {fmt.media_type: _stream_schema(fmt, row)},
    }


def _content(schema: str, row: str | None) -> dict[str, Any]:
    return {JSON: {"schema": ref(schema)}, **{fmt.media_type: _stream_schema(fmt, row) for fmt in STREAMED}}


def _stream_schema(fmt: Format, row: str | None) -> dict[str, Any]:
    if fmt.has_item_schema:
        return {"itemSchema": ref(row)} if row else {}
    return {"schema": dict(fmt.schema)}


def not_modified_response() -> dict[str, Any]:
    """Return the OpenAPI description of the response 304."""
    return {
        "description": "The answer with this ETag is still current.",
        "headers": headers(required=["ETag", "Cache-Control", "Vary"]),
    }


RESPONSES = {f"Problem{status}": problem(status, description) for status, description in _PROBLEMS.items()}
