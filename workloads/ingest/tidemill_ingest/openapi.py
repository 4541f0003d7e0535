"""The OpenAPI description of the events route, which FastAPI cannot generate."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI

from tidemill_contract.events.decoder import Reason
from tidemill_contract.events.fields import MAX_EVENT_BYTES
from tidemill_ingest.body import CLOUD_EVENT, CLOUD_EVENTS, MAX_BODY_BYTES, MAX_EVENTS
from tidemill_ingest.idempotency.requests import MAX_KEY_CHARACTERS
from tidemill_ingest.webhooks.deliveries import KEY_PREFIX

EVENTS_PATH = "/v1/pipelines/{pipeline}/events"
WEBHOOK_PATH = "/v1/pipelines/{pipeline}/webhooks/{webhook}"

_DESCRIPTION = f"""Each event is validated separately. A valid event is written to the topic unchanged. An invalid
event becomes a dead letter with its reason (`quarantined`). An event with status `retry` was not acknowledged and has
to be sent again. An event has at most {MAX_EVENT_BYTES} bytes, a body {MAX_BODY_BYTES} bytes (unpacked) and
{MAX_EVENTS} events.

A request with an `Idempotency-Key` is executed once, whichever process gets the repeated request. While its events are
being sent, a repeated request is answered with 503 `batch_under_way`. Afterwards, it is answered with the outcome of
the events (`idempotency-replayed: true`), and only events with status `retry` are sent again. `idempotency-unsure:
true` means that a process ended during the batch, so an event may be written twice."""

_INTEGER, _STRING = {"type": "integer", "minimum": 0}, {"type": "string"}
_EVENT = {"type": "object", "description": "An event. `source.fields` names the members that are read."}
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
            "description": "The data in base64, instead of `data`.",
        },
    },
}
_COUNTS = {
    "accepted": {**_INTEGER, "description": "Valid events, acknowledged by Kafka or only queued (`wait=false`)."},
    "quarantined": {**_INTEGER, "description": "Invalid events, which become dead letters."},
    "retry": {**_INTEGER, "description": "Events that Kafka did not acknowledge. Send them again."},
    "results": {
        "type": "array",
        "items": {"$ref": "#/components/schemas/EventResult"},
        "description": "A row for each event that is not accepted. With `results=all`, a row for each event.",
    },
}

SCHEMAS: dict[str, Any] = {
    "EventResult": {
        "type": "object",
        "required": ["index", "status"],
        "properties": {
            "index": {**_INTEGER, "description": "The index of the event in the request, starting with 0."},
            "id": {**_STRING, "description": "The CloudEvents id."},
            "status": {"enum": ["accepted", "quarantined", "retry", "rejected"]},
            "code": {**_STRING, "description": f"The reason: {', '.join(Reason)}, or the error of Kafka, `kafka_…`."},
            "field": {**_STRING, "description": "The name of the invalid field."},
            "partition": {**_INTEGER, "description": "The Kafka partition of the event's record, with `results=all`."},
            "offset": _INTEGER,
        },
    },
    "EventResults": {"type": "object", "required": list(_COUNTS), "properties": _COUNTS},
    "Problem": {
        "type": "object",
        "description": "RFC 9457 problem details. Answers about events also have the members of EventResults.",
        "required": ["type", "title", "status", "code"],
        "properties": {
            "type": {"type": "string", "format": "uri"},
            "title": _STRING,
            "status": {"type": "integer"},
            "code": {**_STRING, "description": "The kind of problem, as a stable code for programs."},
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
_RETRY_LATER = {name: {**header, "required": True} for name, header in _RETRY_AFTER.items()}
_AUTHENTICATE = {"WWW-Authenticate": {"description": "How to send the API key.", "required": True, "schema": _STRING}}
_NO_STORE = {"Cache-Control": {"description": "Not cacheable.", "required": True, "schema": {"const": "no-store"}}}
_HEADERS = {
    "RateLimit": {"description": "The remaining quota of the pipeline.", "schema": _STRING},
    "RateLimit-Policy": {"description": "The pipeline's limits.", "schema": _STRING},
    "Idempotency-Replayed": {
        "description": "True if the answer comes from an earlier request with this Idempotency-Key.",
        "schema": {"const": "true"},
    },
    "Idempotency-Unsure": {
        "description": "True if a process ended during the batch, so that an event may be written twice.",
        "schema": {"const": "true"},
    },
}


def _results(description: str, headers: dict[str, Any] | None = None) -> dict[str, Any]:
    content = {"application/json": {"schema": {"$ref": "#/components/schemas/EventResults"}}}
    return {"description": description, "headers": {**_NO_STORE, **_HEADERS, **(headers or {})}, "content": content}


def _problem(description: str, headers: dict[str, Any] | None = None) -> dict[str, Any]:
    content = {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}}
    return {"description": description, "headers": {**_NO_STORE, **(headers or {})}, "content": content}


def _boolean(name: str, description: str) -> dict[str, Any]:
    return {"name": name, "in": "query", "description": description, "schema": {"type": "boolean", "default": True}}


_PARAMETERS = [
    {"name": "pipeline", "in": "path", "required": True, "description": "The pipeline's name.", "schema": _STRING},
    _boolean("wait", "Wait until Kafka has acknowledged the events. If `false`, answer when they are queued (202)."),
    _boolean("accept_partial", "If `false`, one invalid event stops the request (422), and no event is sent."),
    {
        "name": "results",
        "in": "query",
        "description": "Which events have a row in the answer: all events, or only events that are not accepted.",
        "schema": {"enum": ["failed", "all"], "default": "failed"},
    },
    {
        "name": "Idempotency-Key",
        "in": "header",
        "description": "A name for this batch. The sender chooses a new name for each batch.",
        "schema": {
            "type": "string",
            "minLength": 1,
            "maxLength": MAX_KEY_CHARACTERS,
            "pattern": f"^(?!{KEY_PREFIX})[!-~]+$",
        },
    },
]
_BODY = {
    "required": True,
    "description": f"At most {MAX_EVENTS} events. `Content-Encoding` can be gzip or zstd.",
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
    "202": _results("With `wait=false`, the events are queued."),
    "207": _results("Some events are not accepted. The rows of the answer give the reasons.", _RETRY_AFTER),
    "400": _problem("The body or a parameter cannot be read."),
    "401": _problem("The API key is missing or wrong.", _AUTHENTICATE),
    "403": _problem("The API key lacks the scope events:append.", _AUTHENTICATE),
    "404": _problem("There is no such pipeline, or the pipeline accepts no events over HTTP."),
    "413": _problem("The body is too large, or has too many events."),
    "415": _problem("The media type, the encoding or the charset is not supported."),
    "422": _problem(
        "No event is valid, an event is invalid with `accept_partial=false`, or the Idempotency-Key belongs to another"
        " request.",
        _HEADERS,
    ),
    "429": _problem("A limit of the pipeline is exceeded. `detail` names the limit.", {**_RETRY_LATER, **_HEADERS}),
    "503": _problem("Kafka is unavailable, or the queue to Kafka is full.", {**_RETRY_LATER, **_HEADERS}),
    "504": _problem("The request took too long."),
}


_WEBHOOK_DESCRIPTION = """Receives events from a service that signs its requests. `spec.source.webhooks` says how. The
signature takes the place of an API key. It is verified over the body as it was sent. An invalid event becomes a dead
letter, and is no error of the sender. A repeated delivery of GitHub, of Stripe, or with the header `idHeader`, is
written once."""
_WEBHOOK_PARAMETERS = [
    _PARAMETERS[0],
    {"name": "webhook", "in": "path", "required": True, "description": "The webhook's name.", "schema": _STRING},
]
_WEBHOOK_RESPONSES = {
    "200": _results("All events are acknowledged by Kafka, or the request is a ping without events."),
    "400": _RESPONSES["400"],
    "401": _problem(
        "The signature is missing, malformed, wrong or too old. `code` says which.",
        {
            "WWW-Authenticate": {
                "description": "The name of the header with the signature.",
                "required": True,
                "schema": _STRING,
            }
        },
    ),
    "404": _problem("There is no such webhook."),
    **{code: _RESPONSES[code] for code in ("413", "415", "422", "429")},
    "503": _problem("Kafka is unavailable, or the webhook has no secret yet.", {**_RETRY_LATER, **_HEADERS}),
    "504": _RESPONSES["504"],
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
    document["paths"][WEBHOOK_PATH] = {
        "post": {
            "operationId": "receive_webhook",
            "summary": "Receive signed events",
            "description": _WEBHOOK_DESCRIPTION,
            "tags": ["events"],
            "parameters": _WEBHOOK_PARAMETERS,
            "requestBody": {**_BODY, "description": "One or more events. `Content-Encoding` can be gzip or zstd."},
            "responses": _WEBHOOK_RESPONSES,
            "security": [],
        }
    }
    components = document.setdefault("components", {})
    components.setdefault("schemas", {}).update(SCHEMAS)
    components["securitySchemes"] = {
        "apiKey": {
            "type": "http",
            "scheme": "bearer",
            "description": "`tm_<id>_<secret>`, if the pipeline requires a key.",
        }
    }
    return document
