"""The live routes in the OpenAPI document: server-sent events, and in words the WebSocket on the same path."""

from __future__ import annotations

from typing import Any

from tidemill_api.formats.json import JSON
from tidemill_api.http.openapi_answers import headers, problem
from tidemill_api.http.openapi_parameters import live_parameters, path
from tidemill_api.http.openapi_schemas import (
    BOOLEAN,
    INTEGER,
    NUMBER,
    STRING,
    TIME,
    Schema,
    array,
    maybe,
    ref,
    structure,
)
from tidemill_api.live.events import MEDIA
from tidemill_api.live.query import RESERVED

_DESCRIPTION = """
Server-sent events; the same path takes a WebSocket, whose text messages are the `data` of these events.

| Message | When | Members |
|---|---|---|
| `hello` | first | `protocol`, `namespace`, `pipeline`, `aggregations` (as in the pipeline's description), `heartbeat_seconds` |
| `snapshot` | without `resume`, and after a `reset` | `aggregation`, `rev`, `rows` (the latest 1000 windows, oldest first), `truncated` (there are older ones), `watermark`, `closed_until` |
| `upsert` | windows have changed | `aggregation`, `rev`, `rows`: replace those with the same group columns and `window_start` |
| `progress` | after changes, and every 15 s | `watermark`, `closed_until` by aggregation, `resume`, `degraded` (changes are polled for and come later) |
| `reset` | changes were missed | `aggregation`, `reason`; forget its rows, a `snapshot` follows |
| `error` | before the end, or after a message that is not understood; with `aggregation` only this one cannot be read, and the others go on | `code`, `detail`, `aggregation` |

Rows are those of the aggregates route. A row with a `rev` below one already seen of its window is older: keep the other.
A window is closed once its `window_end` is not after `closed_until`; a window that closes without a new event is not
sent again. A session that has joined an earlier one is sent once more, empty: its `window_end` is its `window_start`;
forget it. Changes that come faster than they are read are conflated: the newest of each window is sent.

`resume` of the latest `progress` (for server-sent events its `id`) continues after a break, with the same parameters:
only what has changed since is sent, and a `reset` where that cannot be told.

WebSocket: the key is sent in the header `Authorization` or as the first message `{"type": "auth", "token": "tm_…"}`
within 5 s. A page may connect from the same host or from an origin in `TIDEMILL_API_CORS_ORIGINS`. Close codes: 1001
the server stops, 1012 the pipeline has changed, 1013 the client was too slow or the database is away, 4400 bad
parameter, 4401 no valid key, 4403 the key lacks `query:read`, 4404 no such pipeline. Connections that no key stands for
are bounded, of an address (429 in place of the handshake) and in all (503).
"""  # noqa: E501 - a Markdown table
_PROBLEMS = {
    400: "A parameter is unknown or wrong.",
    401: "No valid key.",
    403: "The key lacks the scope query:read.",
    404: "No such pipeline.",
    429: "Too many connections of one address without a key.",
    503: "The process stops, or has too many connections without a key; connect again.",
}


def _message(kind: str, description: str, members: dict[str, Schema], optional: dict[str, Schema] | None = None) -> Any:
    found = structure(description, {"type": {"const": kind}, **members}, optional)
    return {**found, "title": kind}


_ROWS = {"aggregation": STRING, "rev": INTEGER, "rows": array(ref("Window"))}
LIVE_SCHEMAS: dict[str, Schema] = {
    "LiveMessage": {
        "description": "A message of a live connection.",
        "oneOf": [
            _message(
                "hello",
                "Which aggregations are told of.",
                {
                    "protocol": INTEGER, "namespace": STRING, "pipeline": STRING,
                    "aggregations": array(ref("Aggregation")), "heartbeat_seconds": NUMBER,
                },
            ),
            _message(
                "snapshot",
                "The latest windows, oldest first.",
                {**_ROWS, "truncated": BOOLEAN, "watermark": maybe(TIME), "closed_until": maybe(TIME)},
            ),
            _message("upsert", "Windows that have changed.", _ROWS),
            _message(
                "progress",
                "How far what was sent goes.",
                {
                    "watermark": maybe(TIME), "resume": STRING, "degraded": BOOLEAN,
                    "closed_until": {"type": "object", "additionalProperties": maybe(TIME)},
                },
            ),
            _message("reset", "Changes were missed.", {"aggregation": STRING, "reason": STRING}),
            _message("error", "What went wrong.", {"code": STRING, "detail": STRING}, {"aggregation": STRING}),
        ],
    },
    "LiveEvent": structure(
        "A server-sent event.",
        {
            "event": {"enum": ["hello", "snapshot", "upsert", "progress", "reset", "error"]},
            "data": {"type": "string", "contentMediaType": JSON, "contentSchema": ref("LiveMessage")},
        },
        {"id": {"type": "string", "description": "Of `progress`: its `resume`."}, "retry": INTEGER},
    ),
}  # fmt: skip


def live_paths() -> dict[str, Any]:
    """The path."""
    answer = {
        "description": "Events until either side leaves.",
        "headers": headers(required=["Cache-Control"]),
        "content": {MEDIA: {"itemSchema": ref("LiveEvent")}},
    }
    operation = {
        "operationId": "live",
        "summary": "Live changes",
        "description": _DESCRIPTION,
        "tags": ["live"],
        "parameters": [path("pipeline", "Name of a pipeline."), *live_parameters(RESERVED)],
        "responses": {"200": answer, **{str(status): problem(status, text) for status, text in _PROBLEMS.items()}},
    }
    return {"/v1/pipelines/{pipeline}/live": {"get": operation}}
