"""The OpenAPI document, with all REST routes, live routes and status routes."""

from __future__ import annotations

from typing import Any

from tidemill_api.formats.json import JSON
from tidemill_api.formats.registry import FORMATS
from tidemill_api.http.openapi_answers import (
    RESPONSES,
    format_response,
    not_modified_response,
    problems,
    query_response,
    uncached_response,
)
from tidemill_api.http.openapi_live import LIVE_SCHEMAS, live_paths
from tidemill_api.http.openapi_parameters import (
    PARAMETER_SCHEMAS,
    listing_parameters,
    path_parameter,
    window_parameters,
)
from tidemill_api.http.openapi_schemas import SCHEMAS, STRING, ref
from tidemill_api.query import listings

TITLE, VERSION = "Tidemill API", "0.1.0"
Operation = dict[str, Any]


def document() -> dict[str, Any]:
    """Return the OpenAPI document. OpenAPI 3.2 is needed to describe streamed answers (`itemSchema`)."""
    return {
        "openapi": "3.2.0",
        "info": {
            "title": TITLE,
            "version": VERSION,
            "description": "The windows, anomalies, dead letters and kept events of pipelines, and live changes.",
            "license": {"name": "MIT", "identifier": "MIT"},
        },
        "security": [{"key": []}, {}],
        "paths": {**_rest_paths(), **live_paths(), **_status_paths()},
        "components": {
            "schemas": {**PARAMETER_SCHEMAS, **LIVE_SCHEMAS, **SCHEMAS},
            "responses": RESPONSES,
            "securitySchemes": {
                "key": {"type": "http", "scheme": "bearer", "description": "An API key, `tm_<id>_<secret>`."}
            },
        },
    }


def _rest_paths() -> dict[str, Any]:
    pipeline = [path_parameter("pipeline", "Name of a pipeline.")]
    aggregation = [*pipeline, path_parameter("aggregation", "Name of an aggregation.")]
    base = "/v1/pipelines/{pipeline}"
    aggregate = f"{base}/aggregates/{{aggregation}}"
    operation = _get("pipeline", "A pipeline and its progress", pipeline, query_response("Pipeline"))
    paths: dict[str, Any] = {
        "/v1/pipelines": {"get": _pipelines()},
        base: {"get": operation},
        f"{aggregate}/query": {"post": _post(aggregation)},
    }
    what = "Windows of an aggregation"
    paths |= _format_paths(aggregate, "windows", what, "Window", [
        (aggregation + window_parameters()), (aggregation + window_parameters(stream=True)),
    ])  # fmt: skip
    lists = {
        "anomalies": ("Anomalies, newest windows first", "Anomaly", listings.ANOMALIES),
        "dead-letters": ("Dead letters, newest first", "DeadLetter", listings.DEAD_LETTERS),
        "events": ("Events that the pipeline keeps, newest first", "Event", None),
    }
    for name, (summary, row, listing) in lists.items():
        parameters = [pipeline + listing_parameters(listing, stream=stream) for stream in (False, True)]
        paths |= _format_paths(f"{base}/{name}", name.replace("-", "_"), summary, row, parameters)
    return paths


def _format_paths(base_path: str, name: str, summary: str, row: str, parameters: list[list[Any]]) -> dict[str, Any]:
    page = f"{row}Page"
    paths = {base_path: {"get": _get(name, summary, parameters[0], query_response(page, row))}}
    for suffix, fmt in FORMATS.items():
        streamed = fmt.writer_factory is not None
        operation = _get(
            f"{name}_{suffix}",
            f"{summary}; as {fmt.name}",
            parameters[streamed],
            format_response(fmt, page, row),
            cached=not streamed,
        )
        paths[f"{base_path}.{suffix}"] = {"get": operation}
    return paths


def _pipelines() -> Operation:
    summary = "Pipelines that the caller may query"
    responses = {"200": uncached_response("PipelineList", f"{summary}."), **problems(400, 401, 403, 504)}
    return {"operationId": "pipelines", "summary": summary, "responses": responses}


def _get(name: str, summary: str, parameters: list[Any], answer: Any, *, cached: bool = True) -> Operation:
    if_none_match = {
        "name": "If-None-Match", "in": "header", "schema": STRING,
        "description": "The ETag of an earlier answer. If the earlier answer is still current, the status is 304.",
    }  # fmt: skip
    return {
        "operationId": name,
        "summary": summary,
        "parameters": [*parameters, *([if_none_match] if cached else [])],
        "responses": {
            "200": answer,
            **({"304": not_modified_response()} if cached else {}),
            **problems(400, 401, 403, 404, 503, 504),
        },
    }


def _post(parameters: list[Any]) -> Operation:
    return {
        "operationId": "query",
        "summary": "Windows of an aggregation, with the parameters in the body",
        "parameters": parameters,
        "requestBody": {"required": True, "content": {JSON: {"schema": ref("Query")}}},
        "responses": {
            "200": query_response("WindowPage", "Window", cached=False),
            **problems(400, 401, 403, 404, 413, 503, 504),
        },
    }


def _status_paths() -> dict[str, Any]:
    operations = {
        "health": ("The state of the service and of its dependencies", "Health", "The service is unhealthy."),
        "livez": ("Whether the process works", "Flag", "The process must be restarted."),
        "readyz": ("Whether the process can take requests", "Flag", "The process cannot take requests."),
    }
    return {
        f"/{name}": {
            "get": {
                "operationId": name,
                "summary": summary,
                "security": [],
                "tags": ["status"],
                "responses": {
                    "200": uncached_response(schema, f"{summary}."),
                    "503": uncached_response(schema, failure),
                },
            }
        }
        for name, (summary, schema, failure) in operations.items()
    }
