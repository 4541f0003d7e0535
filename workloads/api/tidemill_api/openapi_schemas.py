"""Schemas of the OpenAPI document: what answers hold."""

from __future__ import annotations

from typing import Any

Schema = dict[str, Any]
TYPES = ("string", "integer", "number", "boolean", "timestamp")


def _object(description: str, required: dict[str, Schema], optional: dict[str, Schema] | None = None) -> Schema:
    return {
        "type": "object",
        "description": description,
        "required": list(required),
        "properties": {**required, **(optional or {})},
    }


def _array(items: Schema) -> Schema:
    return {"type": "array", "items": items}


def ref(name: str) -> Schema:
    """A reference to one of SCHEMAS."""
    return {"$ref": f"#/components/schemas/{name}"}


STRING: Schema = {"type": "string"}
INTEGER: Schema = {"type": "integer"}
NUMBER: Schema = {"type": "number"}
BOOLEAN: Schema = {"type": "boolean"}
TIME: Schema = {"type": "string", "format": "date-time", "description": "RFC 3339, UTC."}
OBJECT: Schema = {"type": "object", "additionalProperties": True}


def maybe(schema: Schema) -> Schema:
    """The same or null."""
    return {"anyOf": [schema, {"type": "null"}]}


_COLUMN = _object("A column.", {"name": STRING, "type": {"enum": [*TYPES, "object", "array"]}})
_STALE: Schema = {
    "type": "boolean",
    "description": "True: the database does not answer; this is the last answer known. Absent otherwise.",
}
_PAGE = {
    "meta": _array(ref("Column")),
    "data": _array({**OBJECT, "description": "A row by column names, in the order of meta."}),
    "next_cursor": {**maybe(STRING), "description": "Send it as `cursor` for the next page; null: there is none."},
    "truncated": {"type": "boolean", "description": "Whether there are more rows."},
    "stats": _object("Figures of this answer.", {"rows": INTEGER}, {"elapsed_ms": NUMBER}),
}
_SUMMARY = {
    "name": STRING,
    "namespace": STRING,
    "generation": INTEGER,
    "suspended": BOOLEAN,
    "events_kept": BOOLEAN,
    "auth_required": BOOLEAN,
}
_PARTITION = _object(
    "How far a partition has been read.",
    {"partition": INTEGER, "epoch": INTEGER, "consumed": INTEGER, "filtered": INTEGER, "invalid": INTEGER},
    {
        "next_offset": maybe(INTEGER),
        "max_event_time": maybe(TIME),
        "last_event_at": maybe(TIME),
        "end_confirmed_at": maybe(TIME),
    },
)
_AGGREGATION = _object(
    "An aggregation: what can be asked of it, and how far it has come.",
    {
        "name": STRING,
        "version": INTEGER,
        "dimensions": _array(ref("Column")),
        "measures": _array(
            _object(
                "A metric.",
                {"name": STRING, "function": STRING, "field": maybe(STRING), "type": {"enum": [*TYPES, "array"]}},
            )
        ),
        "window": {**OBJECT, "description": "As the resource has it: type, size, hop, grace."},
        "late_policy": {"enum": ["deadLetter", "drop", "reopen"]},
        "retention": STRING,
    },
    {
        "rev": INTEGER,
        "closed_until": maybe(TIME),
        "scanned_until": maybe(TIME),
        "published_until": maybe(TIME),
        "late_dead": INTEGER,
        "late_dropped": INTEGER,
    },
)
_DESCRIPTION = _object(
    "A pipeline with its state.",
    {
        **_SUMMARY,
        "watermark": maybe(TIME),
        "aggregations": _array(ref("Aggregation")),
        "anomalies": _array({**OBJECT, "description": "A rule, as the resource has it."}),
        "events": _object("Whether raw events are kept, and how long.", {"store": BOOLEAN, "retention": STRING}),
        "fields": _array(_object("A field of events.", {"name": STRING, "type": STRING, "required": BOOLEAN})),
        "progress": _object(
            "What has been read.",
            {
                "consumed": INTEGER,
                "filtered": INTEGER,
                "invalid": INTEGER,
                "partitions": _array(_PARTITION),
                "lost": _array({**OBJECT, "description": "Offsets that Kafka had thrown away before they were read."}),
            },
        ),
        "counts": _object("Totals.", {"anomalies": INTEGER, "dead_letters": INTEGER}),
    },
    {"stale": _STALE},
)
_QUERY_PROPERTIES: dict[str, Schema] = {
    "from": {"anyOf": [TIME, INTEGER]},
    "to": {"anyOf": [TIME, INTEGER]},
    "granularity": STRING,
    "tz": STRING,
    "fill": {"enum": ["none", "null", "zero"]},
    "group_by": _array(STRING),
    "metrics": _array(STRING),
    "closed": BOOLEAN,
    "order": _array(STRING),
    "limit": INTEGER,
    "cursor": STRING,
}

SCHEMAS: dict[str, Schema] = {
    "Problem": _object(
        "Problem details (RFC 9457).",
        {
            "type": STRING,
            "title": STRING,
            "status": INTEGER,
            "code": {"type": "string", "description": "Stable: branch on it."},
        },
        {"detail": STRING, "parameter": STRING},
    ),
    "Column": _COLUMN,
    "WindowPage": _object(
        "Windows: group columns, window_start, window_end, closed, then the metrics; topk is a list of FrequentValue.",
        {**_PAGE, "watermark": maybe(TIME), "closed_until": maybe(TIME)},
        {"stale": _STALE},
    ),
    "FrequentValue": _object(
        "A value that a topk metric lists: it occurred at most `count` and at least `count - error` times.",
        {"value": {"description": "Of the field's type."}, "count": INTEGER, "error": INTEGER},
    ),
    "Page": _object("Rows.", _PAGE, {"stale": _STALE}),
    "Aggregation": _AGGREGATION,
    "PipelineSummary": _object(
        "A pipeline in a list.", {**_SUMMARY, "aggregations": _array(STRING), "anomalies": _array(STRING)}
    ),
    "PipelineList": _object("Pipelines that the caller may ask.", {"pipelines": _array(ref("PipelineSummary"))}),
    "Pipeline": _DESCRIPTION,
    "Query": {
        "type": "object",
        "description": 'The parameters of the GET; filters as further members, e.g. `"carrier": "AA"`.',
        "properties": _QUERY_PROPERTIES,
        "additionalProperties": {"anyOf": [STRING, NUMBER, BOOLEAN, _array({"anyOf": [STRING, NUMBER, BOOLEAN]})]},
        "example": {"from": "2013-01-01T00:00:00Z", "granularity": "1d", "group_by": [], "limit": 10},
    },
    "Health": _object(
        "What the service and what it needs are like.",
        {
            "status": {"enum": ["healthy", "degraded", "unhealthy"]},
            "component": STRING,
            "dependencies": {
                "type": "object",
                "additionalProperties": _object(
                    "A dependency.",
                    {
                        "status": {"enum": ["up", "down"]},
                        "required": BOOLEAN,
                        "breaker": {"enum": ["closed", "half_open", "open"]},
                    },
                ),
            },
        },
    ),
    "Flag": _object("Yes or no.", {"ok": BOOLEAN}),
}
