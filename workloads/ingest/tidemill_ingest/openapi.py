"""The OpenAPI description of the events route. It is no FastAPI route, because bodies go to Kafka without a model."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI

from tidemill_contract.events.decoder import Reason
from tidemill_contract.events.fields import MAX_EVENT_BYTES
from tidemill_ingest.body import CLOUD_EVENT, CLOUD_EVENTS, MAX_BODY_BYTES, MAX_EVENTS
from tidemill_ingest.idempotency.requests import MAX_KEY_CHARACTERS

EVENTS_PATH = "/v1/pipelines/{pipeline}/events"

_DESCRIPTION = f"""Each event is validated separately. A valid event is written to the topic unchanged. An invalid
event becomes a dead letter with its reason (`quarantined`). An event with status `retry` was not acknowledged and has
to be sent again. An event has at most {MAX_EVENT_BYTES} bytes, a body {MAX_BODY_BYTES} bytes (unpacked) and
{MAX_EVENTS} events.

A request with an `Idempotency-Key` is executed once, whichever process gets the repeated request. While its events are
on their way, a repeated request is answered with 503 `batch_under_way`, and afterwards with their outcome
(`idempotency-replayed: true`); only events with status `retry` are sent again. `idempotency-unsure: true` means that a
process ended during the batch, and an event may be written twice."""

_INTEGER, _STRING = {"type": "integer", "minimum": 0}, {"type": "string"}
_EVENT = {"type": "object", "description": "An event: the members that `source.fields` are read from."}
_CLOUD_EVENT = {
    "type": "object",
    "required": ["specversion", "id", "source", "type"],
    "properties": {
        "specversion": {"const": "1.0"},
        "id": _STRING,
        "source": _STRING,
        "type": _STRING,
        "datacontenttype": {"type": "string", "pattern": r"^$|^ *([^;]*\+json|(application|text)/json) *(;|$)"},
        "data": _EVENT,
        "data_base64": {
            "type": "string",
            "contentEncoding": "base64",
            "pattern": "^([A-Za-z0-9+/]{4})*([A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?$",
            "description": "In place of `data`.",
        },
    },
}
_COUNTS = {
    "accepted": {**_INTEGER, "description": "Valid events, acknowledged by Kafka (`wait=false`: queued)."},
    "quarantined": {**_INTEGER, "description": "Invalid events, written as dead letters."},
    "retry": {**_INTEGER, "description": "Events that were not acknowledged: send them again."},
    "results": {
        "type": "array",
        "items": {"$ref": "#/components/schemas/EventResult"},
        "description": "A row for each event that is not accepted; for each event with `results=all`.",
    },
}

SCHEMAS: dict[str, Any] = {
    "EventResult": {
        "type": "object",
        "required": ["index", "status"],
        "properties": {
            "index": {**_INTEGER, "description": "Index of the event in the request, from 0."},
            "id": {**_STRING, "description": "The CloudEvents id."},
            "status": {"enum": ["accepted", "quarantined", "retry", "rejected"]},
            "code": {**_STRING, "description": f"Why: {', '.join(Reason)}, or Kafka's error, `kafka_…`."},
            "field": {**_STRING, "description": "The faulty field."},
            "partition": {**_INTEGER, "description": "Partition of its record (`results=all`)."},
            "offset": _INTEGER,
        },
    },
    "EventResults": {"type": "object", "required": list(_COUNTS), "properties": _COUNTS},
    "Problem": {
        "type": "object",
        "description": "RFC 9457 problem details. Answers about events hold the members of EventResults as well.",
        "required": ["type", "title", "status", "code"],
        "properties": {
            "type": {"type": "string", "format": "uri"},
            "title": _STRING,
            "status": {"type": "integer"},
            "code": {**_STRING, "description": "Stable identifier of the kind of problem."},
            "detail": _STRING,
            **_COUNTS,
        },
    },
}
_RETRY_AFTER = {
    "Retry-After": {
        "description": "Seconds to wait before a retry.",
        "schema": {"type": "integer", "minimum": 1},
    }
}
_WAIT = {name: {**header, "required": True} for name, header in _RETRY_AFTER.items()}
_AUTHENTICATE = {"WWW-Authenticate": {"description": "How to send the key.", "required": True, "schema": _STRING}}
_NOT_KEPT = {"Cache-Control": {"description": "Nobody keeps it.", "required": True, "schema": {"const": "no-store"}}}
_MARKS = {
    "RateLimit": {"description": "The remaining quota of the pipeline.", "schema": _STRING},
    "RateLimit-Policy": {"description": "The pipeline's limits.", "schema": _STRING},
    "Idempotency-Replayed": {
        "description": "True: the answer is that of an earlier request with this key.",
        "schema": {"const": "true"},
    },
    "Idempotency-Unsure": {
        "description": "True: a process ended during the batch, so an event may be written twice.",
        "schema": {"const": "true"},
    },
}


def _results(description: str, headers: dict[str, Any] | None = None) -> dict[str, Any]:
    content = {"application/json": {"schema": {"$ref": "#/components/schemas/EventResults"}}}
    return {"description": description, "headers": {**_NOT_KEPT, **_MARKS, **(headers or {})}, "content": content}


def _problem(description: str, headers: dict[str, Any] | None = None) -> dict[str, Any]:
    content = {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}}
    return {"description": description, "headers": {**_NOT_KEPT, **(headers or {})}, "content": content}


def _flag(name: str, description: str) -> dict[str, Any]:
    return {"name": name, "in": "query", "description": description, "schema": {"type": "boolean", "default": True}}


_PARAMETERS = [
    {"name": "pipeline", "in": "path", "required": True, "description": "The pipeline's name.", "schema": _STRING},
    _flag("wait", "Answer when Kafka has acknowledged; `false`: when the events are queued (202)."),
    _flag("accept_partial", "`false`: if one event is invalid, none is sent (422)."),
    {
        "name": "results",
        "in": "query",
        "description": "Which events get a row in the answer.",
        "schema": {"enum": ["failed", "all"], "default": "failed"},
    },
    {
        "name": "Idempotency-Key",
        "in": "header",
        "description": "A name for this batch, chosen by the sender; a new one for each.",
        "schema": {"type": "string", "minLength": 1, "maxLength": MAX_KEY_CHARACTERS, "pattern": "^[!-~]+$"},
    },
]
_BODY = {
    "required": True,
    "description": f"At most {MAX_EVENTS} events; compressed as `Content-Encoding` says, gzip or zstd.",
    "content": {
        "application/x-ndjson": {
            "schema": {"type": "string", "pattern": r"[^ \t\r\n\uFEFF]", "description": "One event per line."}
        },
        "application/json": {"schema": {"oneOf": [_EVENT, {"type": "array", "items": _EVENT, "minItems": 1}]}},
        CLOUD_EVENT: {"schema": _CLOUD_EVENT},
        CLOUD_EVENTS: {"schema": {"type": "array", "items": _CLOUD_EVENT, "minItems": 1}},
    },
}
_RESPONSES = {
    "200": _results("All events are valid and acknowledged by Kafka."),
    "202": _results("`wait=false`: the events are queued."),
    "207": _results("Mixed: see the rows.", _RETRY_AFTER),
    "400": _problem("The body or a parameter cannot be read."),
    "401": _problem("No API key of this pipeline.", _AUTHENTICATE),
    "403": _problem("The API key lacks the scope events:append.", _AUTHENTICATE),
    "404": _problem("No such pipeline, or it takes no events over HTTP."),
    "413": _problem("The body is too large, or holds too many events."),
    "415": _problem("An unsupported media type, encoding or charset."),
    "422": _problem(
        "No event is valid; or one is invalid and `accept_partial=false`; or the key was used for another request.",
        _MARKS,
    ),
    "429": _problem("A limit of the pipeline is exceeded; the problem names it.", {**_WAIT, **_MARKS}),
    "503": _problem("Kafka, or the buffer before it, is unavailable.", {**_WAIT, **_MARKS}),
    "504": _problem("The request took too long."),
}


def describe(app: FastAPI) -> dict[str, Any]:
    """Return the whole OpenAPI document of an application."""
    document: dict[str, Any] = FastAPI.openapi(app)
    operation = {
        "operationId": "append_events",
        "summary": "Append events",
        "description": _DESCRIPTION,
        "tags": ["events"],
        "parameters": _PARAMETERS,
        "requestBody": _BODY,
        "responses": _RESPONSES,
        "security": [{"apiKey": []}, {}],
    }
    document["paths"][EVENTS_PATH] = {"post": operation}
    components = document.setdefault("components", {})
    components.setdefault("schemas", {}).update(SCHEMAS)
    components["securitySchemes"] = {
        "apiKey": {"type": "http", "scheme": "bearer", "description": "`tm_<id>_<secret>`, if the pipeline needs one."}
    }
    return document
