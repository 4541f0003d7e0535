"""Schemas of the OpenAPI document: what answers hold."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from tidemill_api.query import listings
from tidemill_api.query.selection import Column
from tidemill_contract.functions.registry import FUNCTIONS

Schema = dict[str, Any]
TYPES = ("string", "integer", "number", "boolean", "timestamp")


def structure(description: str, required: dict[str, Schema], optional: dict[str, Schema] | None = None) -> Schema:
    """An object with these members."""
    return {
        "type": "object",
        "description": description,
        "required": list(required),
        "properties": {**required, **(optional or {})},
    }


def array(items: Schema) -> Schema:
    """A list."""
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


_COLUMN = structure("A column.", {"name": STRING, "type": {"enum": [*TYPES, "object", "array"]}})
_STALE: Schema = {
    "type": "boolean",
    "description": "True: the database does not answer; this is the last answer known. Absent otherwise.",
}
_CELL: dict[str, Schema] = {
    "string": STRING, "integer": INTEGER, "number": maybe(NUMBER), "boolean": BOOLEAN, "timestamp": TIME,
    "object": {}, "array": {"type": "array"},
}  # fmt: skip


def _row(description: str, columns: Iterable[Column]) -> Schema:
    """An object by column names; a number that JSON does not have is null."""
    cells = {c.name: maybe(_CELL[c.kind]) if c.nullable and _CELL[c.kind] else _CELL[c.kind] for c in columns}
    return structure(description, cells)


def _page(what: str, row: str, required: dict[str, Schema] | None = None) -> Schema:
    return structure(what, {**_PAGE, "data": array(ref(row)), **(required or {})}, {"stale": _STALE})


_PAGE = {
    "meta": array(ref("Column")),
    "next_cursor": {**maybe(STRING), "description": "Send it as `cursor` for the next page; null: there is none."},
    "truncated": {"type": "boolean", "description": "Whether there are more rows."},
    "stats": structure("Figures of this answer.", {"rows": INTEGER}, {"elapsed_ms": NUMBER}),
}
_SUMMARY = {
    "name": STRING,
    "namespace": STRING,
    "generation": INTEGER,
    "suspended": BOOLEAN,
    "events_kept": BOOLEAN,
    "auth_required": BOOLEAN,
}
_PARTITION = structure(
    "How far a partition has been read.",
    {"partition": INTEGER, "epoch": INTEGER, "consumed": INTEGER, "filtered": INTEGER, "invalid": INTEGER},
    {
        "next_offset": maybe(INTEGER),
        "max_event_time": maybe(TIME),
        "last_event_at": maybe(TIME),
        "end_confirmed_at": maybe(TIME),
    },
)
_AGGREGATION = structure(
    "An aggregation: what can be asked of it, and how far it has come.",
    {
        "name": STRING,
        "version": INTEGER,
        "dimensions": array(ref("Column")),
        "measures": array(
            structure(
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
_DESCRIPTION = structure(
    "A pipeline with its state.",
    {
        **_SUMMARY,
        "watermark": maybe(TIME),
        "aggregations": array(ref("Aggregation")),
        "anomalies": array({**OBJECT, "description": "A rule, as the resource has it."}),
        "events": structure("Whether raw events are kept, and how long.", {"store": BOOLEAN, "retention": STRING}),
        "fields": array(
            structure("A field of events.", {"name": STRING, "type": STRING, "required": BOOLEAN, "path": STRING})
        ),
        "progress": structure(
            "What has been read.",
            {
                "consumed": INTEGER,
                "filtered": INTEGER,
                "invalid": INTEGER,
                "partitions": array(_PARTITION),
                "lost": array({**OBJECT, "description": "Offsets that Kafka had thrown away before they were read."}),
            },
        ),
        "counts": structure("Totals.", {"anomalies": INTEGER, "dead_letters": INTEGER}),
    },
    {"stale": _STALE},
)
_LISTING = {name: function.item for name, function in FUNCTIONS.items() if function.item is not None}
_LISTS = ", ".join(f"{name} is a list of {item.name}" for name, item in _LISTING.items())
_ITEMS = {item.name: structure(item.description, dict(item.members)) for item in _LISTING.values()}
_VALUE: Schema = {
    "anyOf": [STRING, NUMBER, BOOLEAN, {"type": "null"}, *(array(ref(name)) for name in _ITEMS)],
}
SCHEMAS: dict[str, Schema] = {
    "Problem": structure(
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
    "Window": {
        **structure(
            f"Group columns, window_start, window_end, closed, then the metrics; {_LISTS}.",
            {"window_start": TIME, "window_end": TIME, "closed": BOOLEAN},
        ),
        "additionalProperties": _VALUE,
    },
    "WindowPage": _page("Windows.", "Window", {"watermark": maybe(TIME), "closed_until": maybe(TIME)}),
    **_ITEMS,
    "Anomaly": _row("An anomaly.", listings.ANOMALIES.columns),
    "AnomalyPage": _page("Anomalies.", "Anomaly"),
    "DeadLetter": _row("An event that counts nowhere, and why.", listings.DEAD_LETTERS.columns),
    "DeadLetterPage": _page("Dead letters.", "DeadLetter"),
    "Event": _row("An event as it was kept.", listings.EVENT_COLUMNS),
    "EventPage": _page("Kept events.", "Event"),
    "Aggregation": _AGGREGATION,
    "PipelineSummary": structure(
        "A pipeline in a list.", {**_SUMMARY, "aggregations": array(STRING), "anomalies": array(STRING)}
    ),
    "PipelineList": structure("Pipelines that the caller may ask.", {"pipelines": array(ref("PipelineSummary"))}),
    "Pipeline": _DESCRIPTION,
    "Health": structure(
        "What the service and what it needs are like.",
        {
            "status": {"enum": ["healthy", "degraded", "unhealthy"]},
            "component": STRING,
            "dependencies": {
                "type": "object",
                "additionalProperties": structure(
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
    "Flag": structure("Yes or no.", {"ok": BOOLEAN}),
}
