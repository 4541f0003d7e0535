"""The OpenAPI document: every path, parameter and answer of the REST routes, and what the live routes say."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastapi.openapi.utils import get_openapi
from starlette.routing import BaseRoute

from tidemill_api import aggregate_query, listings
from tidemill_api.openapi_schemas import BOOLEAN, SCHEMAS, STRING, Schema, ref
from tidemill_api.rows import CSV, JSON, NDJSON
from tidemill_contract.asgi import PROBLEM_TYPE

TITLE, VERSION = "Tidemill API", "0.1.0"
Operation = dict[str, Any]

_PROBLEMS = {
    400: "A parameter is unknown or wrong; `code` and `detail` say which and what to write.",
    401: "No API key, or not one of the pipeline's.",
    403: "The API key lacks the scope query:read.",
    404: "No such pipeline, aggregation or path.",
    413: "The body is too large.",
    503: "The database does not answer and no earlier answer is known; see Retry-After.",
    504: "No answer in time.",
}


def document(live: Sequence[BaseRoute]) -> dict[str, Any]:
    """The document.

    Args:
        live: routes that describe themselves (FastAPI's).
    """
    described = get_openapi(title=TITLE, version=VERSION, routes=list(live))
    components = described.get("components", {})
    return {
        "openapi": "3.1.0",
        "info": {
            "title": TITLE,
            "version": VERSION,
            "description": "Windows, anomalies, dead letters and kept events of pipelines, by REST and live.",
            "license": {"name": "MIT", "identifier": "MIT"},
        },
        "security": [{"key": []}, {}],
        "paths": {**_rest_paths(), **described.get("paths", {}), **_status_paths()},
        "components": {
            "schemas": {**components.get("schemas", {}), **SCHEMAS},
            "securitySchemes": {
                "key": {"type": "http", "scheme": "bearer", "description": "An API key, `tm_<id>_<secret>`."}
            },
        },
    }


def _rest_paths() -> dict[str, Any]:
    pipeline = [_path("pipeline", "Name of a pipeline.")]
    aggregation = [*pipeline, _path("aggregation", "Name of an aggregation.")]
    base = "/v1/pipelines/{pipeline}"
    aggregate = f"{base}/aggregates/{{aggregation}}"
    windows = _get("windows", "Windows of an aggregation", "WindowPage", [*aggregation, *_window_parameters()])
    paths: dict[str, Any] = {
        "/v1/pipelines": {"get": _plain("pipelines", "Pipelines that the caller may ask", "PipelineList")},
        base: {"get": _get("pipeline", "A pipeline and how far it has come", "Pipeline", pipeline, forms=False)},
        **_with_suffixes(aggregate, windows),
        f"{aggregate}/query": {"post": _post(aggregation)},
    }
    lists = {
        "anomalies": ("Anomalies, newest windows first", listings.ANOMALIES),
        "dead-letters": ("Events that count nowhere, and why; newest first", listings.DEAD_LETTERS),
        "events": ("Kept raw events, newest first; where the pipeline keeps them", None),
    }
    for name, (summary, listing) in lists.items():
        operation = _get(name.replace("-", "_"), summary, "Page", [*pipeline, *_listing_parameters(listing)])
        paths |= _with_suffixes(f"{base}/{name}", operation)
    return paths


def _status_paths() -> dict[str, Any]:
    unhealthy = {"503": {"description": "Not so.", "content": {JSON: {"schema": ref("Flag")}}}}
    health = _plain("health", "The service and what it needs", "Health")
    health["responses"]["503"] = {"description": "Unhealthy.", "content": {JSON: {"schema": ref("Health")}}}
    live, ready = (
        _plain("livez", "Whether the process works", "Flag"),
        _plain("readyz", "Whether requests may come", "Flag"),
    )
    live["responses"] |= unhealthy
    ready["responses"] |= unhealthy
    operations = {"/health": health, "/livez": live, "/readyz": ready}
    return {path: {"get": {**operation, "security": [], "tags": ["status"]}} for path, operation in operations.items()}


def _with_suffixes(path: str, operation: Operation) -> dict[str, Any]:
    """The path, and once more with the form as its suffix."""
    form = {
        "name": "form", "in": "path", "required": True, "schema": {"enum": ["json", "ndjson", "csv"]},
        "description": "The form of the answer, in place of the Accept header.",
    }  # fmt: skip
    twin = {
        **operation,
        "operationId": f"{operation['operationId']}_as",
        "parameters": [form, *operation["parameters"]],
    }
    return {path: {"get": operation}, f"{path}.{{form}}": {"get": twin}}


def _plain(name: str, summary: str, schema: str) -> Operation:
    answer = {"description": summary + ".", "content": {JSON: {"schema": ref(schema)}}}
    return {"operationId": name, "summary": summary, "responses": {"200": answer}}


def _get(name: str, summary: str, schema: str, parameters: list[Any], *, forms: bool = True) -> Operation:
    condition = {
        "name": "If-None-Match", "in": "header", "schema": STRING,
        "description": "The ETag of an answer: 304 if it is right still.",
    }  # fmt: skip
    responses = {
        "200": _page(schema, forms=forms),
        "304": {"description": "The answer with that ETag is right still."},
        **_problems(400, 401, 403, 404, 503, 504),
    }
    return {"operationId": name, "summary": summary, "parameters": [*parameters, condition], "responses": responses}


def _post(parameters: list[Any]) -> Operation:
    return {
        "operationId": "query",
        "summary": "Windows of an aggregation, asked for in a body",
        "parameters": parameters,
        "requestBody": {"required": True, "content": {JSON: {"schema": ref("Query")}}},
        "responses": {"200": _page("WindowPage", forms=True), **_problems(400, 401, 403, 404, 413, 503, 504)},
    }


def _page(schema: str, *, forms: bool) -> Any:
    text = {"schema": STRING}
    return {
        "description": "The rows. JSON comes in pages; NDJSON and CSV are streamed whole, up to `limit`.",
        "headers": {
            "ETag": {"schema": STRING, "description": "JSON only; changes with the data."},
            "Cache-Control": {"schema": STRING, "description": "Longer for answers that no event can change any more."},
            "Tidemill-Next-Cursor": {
                "schema": STRING,
                "description": "CSV and NDJSON only: `cursor` for the rows that `limit` cut off.",
            },
            "Warning": {"schema": STRING, "description": "110 when the answer is stale; Age tells how old it is."},
        },
        "content": {JSON: {"schema": ref(schema)}, **({NDJSON: text, CSV: text} if forms else {})},
    }


def _problems(*statuses: int) -> dict[str, Any]:
    content = {PROBLEM_TYPE: {"schema": ref("Problem")}}
    return {str(status): {"description": _PROBLEMS[status], "content": content} for status in statuses}


def _path(name: str, description: str) -> Any:
    return {"name": name, "in": "path", "required": True, "description": description, "schema": STRING}


def _query(name: str, description: str, schema: Schema = STRING, *, example: str = "") -> Any:
    found = {"name": name, "in": "query", "description": description, "schema": schema}
    return {**found, "example": example} if example else found


def _filters(what: str) -> Any:
    operators = ", ".join(f"`__{name}`" for name in ("ne", "in", "gte", "gt", "lte", "lt", "isnull"))
    return {
        "name": "filters", "in": "query", "style": "form", "explode": True,
        "description": f"{what}: `column=value`, or with an operator: {operators}. `__in` takes values between commas.",
        "schema": {"type": "object", "additionalProperties": STRING},
    }  # fmt: skip


def _common(limit: int, most: int, order: str) -> list[Any]:
    times = "RFC 3339, a date alone (its midnight in UTC), or epoch milliseconds"
    return [
        _query("from", f"Earliest time, inclusive; {times}.", example="2013-01-01T05:00:00Z"),
        _query("to", f"Latest time, exclusive; {times}."),
        _query("order", f"Columns, most significant first; `-` descending. Default: {order}.", example=order),
        _query("limit", f"Rows a page, at most {most}; in CSV and NDJSON: rows at all.", {
            "type": "integer", "minimum": 1, "default": limit,
        }),
        _query("cursor", "`next_cursor` of an answer; all other parameters but `limit` stay as they were."),
    ]  # fmt: skip


def _window_parameters() -> list[Any]:
    return [
        *_common(aggregate_query.DEFAULT_LIMIT, aggregate_query.MAX_LIMIT, "window_start"),
        _query(
            "granularity", "Longer windows: a multiple of the stored length, such as `1d`; `all`: one for everything."
        ),
        _query(
            "tz",
            "Time zone whose days are meant, such as America/New_York; with granularity in days. A day starts at the"
            " first instant of its date.",
        ),
        _query(
            "fill",
            "What stands for windows without events; needs from and to. `zero`: 0 for metrics of count, distinct and"
            " sum, null for all others.",
            {"enum": ["none", "null", "zero"]},
        ),
        _query("group_by", "Fewer dimensions, between commas; empty: one group."),
        _query("metrics", "Only these metrics, between commas."),
        _query(
            "closed",
            "Only closed windows, or only open ones. A longer window is closed when all stored windows are that share"
            " events with it.",
            BOOLEAN,
        ),
        _filters("Filters on dimensions and metrics"),
    ]


def _listing_parameters(listing: listings.Listing | None) -> list[Any]:
    time = listing.time if listing else "event_time"
    names = [c.name for c in listing.columns if c.comparable] if listing else []
    what = f"Filters on {', '.join(names)}" if names else "Filters on the fields of the events"
    return [*_common(listings.DEFAULT_LIMIT, listings.MAX_LIMIT, f"-{time}"), _filters(what)]
