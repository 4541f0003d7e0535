"""The live routes in the OpenAPI document."""

from __future__ import annotations

from typing import Any

from tidemill_api.formats.json import JSON
from tidemill_api.http.openapi_answers import headers, problem
from tidemill_api.http.openapi_parameters import live_parameters, path_parameter
from tidemill_api.http.openapi_schemas import (
    BOOLEAN,
    INTEGER,
    NUMBER,
    STRING,
    TIME,
    Schema,
    array,
    nullable,
    object_schema,
    ref,
)
from tidemill_api.live.events import MEDIA_TYPE
from tidemill_api.live.query import RESERVED

_DESCRIPTION = """
Server-sent events. The same path accepts a WebSocket. Its text messages are the `data` of the events.

| Message | When | Members |
|---|---|---|
| `hello` | first | `protocol`, `namespace`, `pipeline`, `aggregations` (as in the pipeline's description), `heartbeat_seconds` |
| `snapshot` | without `resume`, and after a `reset` | `aggregation`, `rev`, `rows` (the latest 1000 windows, oldest first), `truncated` (whether there are older windows), `watermark`, `closed_until` |
| `upsert` | windows have changed | `aggregation`, `rev`, `rows`: replace the rows with the same group columns and `window_start` |
| `progress` | after changes, and every 15 s | `watermark`, `closed_until` by aggregation, `resume`, `degraded` (whether changes come later than usual, because they are found by polling) |
| `reset` | changes were missed | `aggregation`, `reason`: discard the rows of the aggregation, because a `snapshot` follows |
| `error` | before the connection ends, or after an invalid message from the client. If it has `aggregation`, only this aggregation cannot be read, and the connection continues | `code`, `detail`, `aggregation` |

The rows are the same as in answers of the aggregates route. Ignore a row if you already received a row of the same
window with a higher `rev`. A window is closed if its `window_end` is not after `closed_until`. A window that closes
without new events is not sent again. If a session was joined to an earlier session, it is sent once more, without
events, with `window_end` equal to `window_start`: discard this session. If changes come faster than the client reads,
only the newest row of each window is sent.

To continue after an interruption, send the same parameters and the `resume` of the latest `progress`. For server-sent
events, this is the `id` of the event. Then only later changes are sent, or a `reset` if the later changes are unknown.

WebSocket: send the API key in the header `Authorization`, or as the first message `{"type": "auth", "token": "tm_…"}`
within 5 s. Pages can connect from the same host, or from an origin in `TIDEMILL_API_CORS_ORIGINS`. Close codes: 1001
the server stops, 1012 the pipeline has changed, 1013 the client was too slow or the database is down, 4400 wrong
parameter, 4401 no valid key, 4403 the key lacks `query:read`, 4404 no such pipeline. The number of connections without
an API key is limited. If the limit for an address is reached, the handshake is answered with 429. If the total limit is
reached, it is answered with 503.
"""  # noqa: E501 - a Markdown table
_PROBLEMS = {
    400: "A parameter is unknown or wrong.",
    401: "The API key is missing or wrong.",
    403: "The API key lacks the scope query:read.",
    404: "There is no such pipeline.",
    429: "There are too many connections without an API key from this address.",
    503: "The process is stopping, or has too many connections without an API key. Connect again later.",
}


def _message(kind: str, description: str, members: dict[str, Schema], optional: dict[str, Schema] | None = None) -> Any:
    schema = object_schema(description, {"type": {"const": kind}, **members}, optional)
    return {**schema, "title": kind}


_ROWS = {"aggregation": STRING, "rev": INTEGER, "rows": array(ref("Window"))}
LIVE_SCHEMAS: dict[str, Schema] = {
    "LiveMessage": {
        "description": "A message of a live connection.",
        "oneOf": [
            _message(
                "hello",
                "The first message: the aggregations whose changes this connection sends.",
                {
                    "protocol": INTEGER, "namespace": STRING, "pipeline": STRING,
                    "aggregations": array(ref("Aggregation")), "heartbeat_seconds": NUMBER,
                },
            ),
            _message(
                "snapshot",
                "The latest windows, oldest first.",
                {**_ROWS, "truncated": BOOLEAN, "watermark": nullable(TIME), "closed_until": nullable(TIME)},
            ),
            _message("upsert", "Windows that have changed.", _ROWS),
            _message(
                "progress",
                "How far the pipeline has processed events. The client has all changes up to this point.",
                {
                    "watermark": nullable(TIME), "resume": STRING, "degraded": BOOLEAN,
                    "closed_until": {"type": "object", "additionalProperties": nullable(TIME)},
                },
            ),
            _message("reset", "Changes were missed.", {"aggregation": STRING, "reason": STRING}),
            _message("error", "An error.", {"code": STRING, "detail": STRING}, {"aggregation": STRING}),
        ],
    },
    "LiveEvent": object_schema(
        "A server-sent event.",
        {
            "event": {"enum": ["hello", "snapshot", "upsert", "progress", "reset", "error"]},
            "data": {"type": "string", "contentMediaType": JSON, "contentSchema": ref("LiveMessage")},
        },
        {"id": {"type": "string", "description": "The `resume` of a `progress` message."}, "retry": INTEGER},
    ),
}  # fmt: skip


def live_paths() -> dict[str, Any]:
    """Return the OpenAPI description of the live routes, by path."""
    answer = {
        "description": "A stream of events, until the client or the server ends the connection.",
        "headers": headers(required=["Cache-Control"]),
        "content": {MEDIA_TYPE: {"itemSchema": ref("LiveEvent")}},
    }
    operation = {
        "operationId": "live",
        "summary": "Live changes",
        "description": _DESCRIPTION,
        "tags": ["live"],
        "parameters": [path_parameter("pipeline", "Name of a pipeline."), *live_parameters(RESERVED)],
        "responses": {"200": answer, **{str(status): problem(status, text) for status, text in _PROBLEMS.items()}},
    }
    return {"/v1/pipelines/{pipeline}/live": {"get": operation}}
