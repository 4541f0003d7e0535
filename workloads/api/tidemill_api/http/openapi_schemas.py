"""The schemas of answers in the OpenAPI document."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, get_args

from tidemill_api.query import listings
from tidemill_api.query.selection import Column
from tidemill_contract.functions.base import FieldType
from tidemill_contract.functions.registry import FUNCTIONS

Schema = dict[str, Any]
TYPES = get_args(FieldType)


def object_schema(description: str, required: dict[str, Schema], optional: dict[str, Schema] | None = None) -> Schema:
    """Return the schema of an object with the given members."""
    return {
        "type": "object",
        "description": description,
        "required": list(required),
        "properties": {**required, **(optional or {})},
    }


def array(items: Schema) -> Schema:
    """Return the schema of a list."""
    return {"type": "array", "items": items}


def ref(name: str) -> Schema:
    """Return an OpenAPI reference to a schema of this name."""
    return {"$ref": f"#/components/schemas/{name}"}


STRING: Schema = {"type": "string"}
INTEGER: Schema = {"type": "integer"}
NUMBER: Schema = {"type": "number"}
BOOLEAN: Schema = {"type": "boolean"}
TIME: Schema = {"type": "string", "format": "date-time", "description": "RFC 3339, UTC."}
OBJECT: Schema = {"type": "object", "additionalProperties": True}


def nullable(schema: Schema) -> Schema:
    """Return a schema that also allows null."""
    return {"anyOf": [schema, {"type": "null"}]}


_SCALE: Schema = {"type": "integer", "minimum": 0, "description": "The number of digits after the decimal point."}
_COLUMN = object_schema("A column.", {"name": STRING, "type": {"enum": [*TYPES, "object", "array"]}}, {"scale": _SCALE})
_STALE: Schema = {
    "type": "boolean",
    "description": "True if the database does not answer, and the API sends an older answer.",
}
_CELL: dict[str, Schema] = {
    "string": STRING, "integer": INTEGER, "number": nullable(NUMBER), "boolean": BOOLEAN, "timestamp": TIME,
    "object": {}, "array": {"type": "array"},
}  # fmt: skip


def _row(description: str, columns: Iterable[Column], optional: Iterable[Column] = ()) -> Schema:
    return object_schema(description, _cells(columns), _cells(optional))


def _cells(columns: Iterable[Column]) -> dict[str, Schema]:
    return {c.name: nullable(_CELL[c.kind]) if c.nullable and _CELL[c.kind] else _CELL[c.kind] for c in columns}


def _page(what: str, row: str, required: dict[str, Schema] | None = None) -> Schema:
    return object_schema(what, {**_PAGE, "data": array(ref(row)), **(required or {})}, {"stale": _STALE})


_PAGE = {
    "meta": array(ref("Column")),
    "next_cursor": {**nullable(STRING), "description": "The `cursor` of the next page, or null on the last page."},
    "truncated": {"type": "boolean", "description": "Whether there are more rows."},
    "stats": object_schema("Statistics of this answer.", {"rows": INTEGER}, {"elapsed_ms": NUMBER}),
}
_SUMMARY = {
    "name": STRING,
    "namespace": STRING,
    "generation": INTEGER,
    "suspended": BOOLEAN,
    "events_kept": BOOLEAN,
    "auth_required": BOOLEAN,
}
_PARTITION = object_schema(
    "The progress of a partition.",
    {"partition": INTEGER, "epoch": INTEGER, "consumed": INTEGER, "filtered": INTEGER, "invalid": INTEGER},
    {
        "duplicates": INTEGER,
        "next_offset": nullable(INTEGER),
        "max_event_time": nullable(TIME),
        "last_event_at": nullable(TIME),
        "end_confirmed_at": nullable(TIME),
    },
)
_AGGREGATION = object_schema(
    "An aggregation, with its dimensions, its measures and its progress.",
    {
        "name": STRING,
        "version": INTEGER,
        "dimensions": array(ref("Column")),
        "measures": array(
            object_schema(
                "A metric.",
                {
                    "name": STRING,
                    "function": STRING,
                    "field": nullable(STRING),
                    "where": nullable(STRING),
                    "expression": nullable(STRING),
                    "type": {"enum": [*TYPES, "array"]},
                },
                {"scale": _SCALE},
            )
        ),
        "window": {
            **OBJECT,
            "description": "The window in the aggregation's spec, with type, size, zone, offset, hop and grace.",
        },
        "late_policy": {"enum": ["deadLetter", "drop", "reopen"]},
        "retention": STRING,
    },
    {
        "rev": INTEGER,
        "closed_until": nullable(TIME),
        "scanned_until": nullable(TIME),
        "published_until": nullable(TIME),
        "late_dead": INTEGER,
        "late_dropped": INTEGER,
    },
)
_DESCRIPTION = object_schema(
    "A pipeline with its state.",
    {
        **_SUMMARY,
        "watermark": nullable(TIME),
        "aggregations": array(ref("Aggregation")),
        "anomalies": array({**OBJECT, "description": "An anomaly rule, as in the pipeline's spec."}),
        "events": object_schema(
            "Whether raw events are kept, and for how long.", {"store": BOOLEAN, "retention": STRING}
        ),
        "fields": array(
            object_schema(
                "A field of events.",
                {"name": STRING, "type": STRING, "required": BOOLEAN, "path": STRING},
                {"scale": _SCALE},
            )
        ),
        "progress": object_schema(
            "The progress of reading the source topic.",
            {
                "consumed": INTEGER,
                "filtered": INTEGER,
                "invalid": INTEGER,
                "duplicates": INTEGER,
                "partitions": array(_PARTITION),
                "lost": array({**OBJECT, "description": "A range of unread offsets that Kafka deleted."}),
            },
        ),
        "counts": object_schema("Totals.", {"anomalies": INTEGER, "dead_letters": INTEGER}),
    },
    {"stale": _STALE},
)
_ITEM_BY_FUNCTION = {name: function.item for name, function in FUNCTIONS.items() if function.item is not None}
_LISTS = ", ".join(f"{name} is a list of {item.name}" for name, item in _ITEM_BY_FUNCTION.items())
_ITEMS = {item.name: object_schema(item.description, dict(item.members)) for item in _ITEM_BY_FUNCTION.values()}
_VALUE: Schema = {
    "anyOf": [STRING, NUMBER, BOOLEAN, {"type": "null"}, *(array(ref(name)) for name in _ITEMS)],
}
SCHEMAS: dict[str, Schema] = {
    "Problem": object_schema(
        "Problem details (RFC 9457).",
        {
            "type": STRING,
            "title": STRING,
            "status": INTEGER,
            "code": {
                "type": "string",
                "description": "The kind of problem, as a stable code for programs.",
            },
        },
        {"detail": STRING, "parameter": STRING},
    ),
    "Column": _COLUMN,
    "Window": {
        **object_schema(
            f"A row with the group columns, window_start, window_end, closed and the metrics; {_LISTS}.",
            {"window_start": TIME, "window_end": TIME, "closed": BOOLEAN},
        ),
        "additionalProperties": _VALUE,
    },
    "WindowPage": _page("Windows.", "Window", {"watermark": nullable(TIME), "closed_until": nullable(TIME)}),
    **_ITEMS,
    "Anomaly": _row("An anomaly.", listings.ANOMALIES.columns),
    "AnomalyPage": _page("Anomalies.", "Anomaly"),
    "DeadLetter": _row("A dead letter (an event that could not be counted).", listings.DEAD_LETTERS.columns),
    "DeadLetterPage": _page("Dead letters.", "DeadLetter"),
    "Event": _row("A kept event.", listings.EVENT_COLUMNS, [listings.EVENT_ELEMENT]),
    "EventPage": _page("Kept events.", "Event"),
    "Aggregation": _AGGREGATION,
    "PipelineSummary": object_schema(
        "A pipeline in a list.", {**_SUMMARY, "aggregations": array(STRING), "anomalies": array(STRING)}
    ),
    "PipelineList": object_schema("Pipelines that the caller may query.", {"pipelines": array(ref("PipelineSummary"))}),
    "Pipeline": _DESCRIPTION,
    "Health": object_schema(
        "The state of the service and of its dependencies.",
        {
            "status": {"enum": ["healthy", "degraded", "unhealthy"]},
            "component": STRING,
            "dependencies": {
                "type": "object",
                "additionalProperties": object_schema(
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
    "Flag": object_schema("The result of a check.", {"ok": BOOLEAN}),
}
