"""The parameters in the OpenAPI document, for query strings and for the body of a query."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

from tidemill_api.formats.registry import STREAMED_NAMES
from tidemill_api.http.openapi_schemas import BOOLEAN, INTEGER, NUMBER, STRING, Schema, ref
from tidemill_api.query import aggregate as aggregate_query
from tidemill_api.query import listings
from tidemill_api.query.parameters import MAX_FIELDS
from tidemill_api.query.selection import MAX_IN, OPERATORS, Column
from tidemill_contract.calendars import DAY_MS
from tidemill_contract.duration import MAX_MS, UNITS_MS
from tidemill_contract.events.event_errors import SECONDS_FROM, SECONDS_TO
from tidemill_contract.functions.registry import ZERO_FILLED, join_names

_FIRST_MS, _LAST_MS = -62_135_596_800_000, 253_402_300_799_999
"""The first millisecond of the year 1, and the last millisecond of the year 9999."""
_TIMES = "RFC 3339, a date (midnight in UTC), or epoch milliseconds"
_COLUMN = "[a-z][a-z0-9_]{0,40}"
_FILTER = f"^{_COLUMN}(__({'|'.join(OPERATORS)}))?$"


def _durations() -> str:
    lengths = UNITS_MS | {unit: DAY_MS * days for unit, days in {"w": 7, "mo": 31, "q": 93, "y": 372}.items()}
    units = (f"{_up_to_pattern(min(MAX_MS // length, 999_999_999))}{unit}" for unit, length in lengths.items())
    return f"0({'|'.join(UNITS_MS)})|{'|'.join(units)}"


def _up_to_pattern(maximum: int) -> str:
    """Return a regular expression that matches the whole numbers from 1 to `maximum`."""
    digits = str(maximum)
    patterns = [digits, *([f"[1-9][0-9]{{0,{len(digits) - 2}}}"] if len(digits) > 1 else [])]
    for position, digit in enumerate(digits):
        lowest = 0 if position else 1
        if int(digit) > lowest:
            patterns.append(f"{digits[:position]}[{lowest}-{int(digit) - 1}][0-9]{{{len(digits) - position - 1}}}")
    return f"({'|'.join(patterns)})"


MOMENT: Schema = {
    "description": f"A time in the years 1 to 9999: {_TIMES}. Numbers that look like epoch seconds are refused.",
    "anyOf": [
        {"type": "string", "format": "date-time"},
        {"type": "string", "format": "date"},
        {"type": "integer", "minimum": _FIRST_MS, "maximum": SECONDS_FROM - 1},
        {"type": "integer", "minimum": SECONDS_TO + 1, "maximum": _LAST_MS},
    ],
}
TEXT: Schema = {"type": "string", "pattern": r"^[^\x00]*$"}
CURSOR: Schema = {"type": "string", "pattern": "^[A-Za-z0-9_-]*$"}
GRANULARITY: Schema = {"type": "string", "pattern": f"^({_durations()}|all)$"}
ZONE: Schema = {"type": "string", "maxLength": 64, "pattern": r"^[A-Za-z][A-Za-z0-9_+-]*(/[A-Za-z0-9_+-]+){0,2}$"}
FILL: Schema = {"enum": ["none", "null", "zero"]}
DECIMALS: Schema = {"enum": list(aggregate_query.DECIMALS)}
NAME: Schema = {"type": "string", "pattern": f"^{_COLUMN}$"}
_VALUES: dict[str, Schema] = {
    "string": TEXT, "integer": INTEGER, "number": NUMBER, "boolean": BOOLEAN, "timestamp": ref("Moment"),
}  # fmt: skip


def _list_schema(schema: Schema, *, min_items: int = 0) -> Schema:
    return {"type": "array", "items": schema, **({"minItems": min_items} if min_items else {})}


_NAMES, _ORDER = _list_schema(NAME), _list_schema({"type": "string", "pattern": f"^-?{_COLUMN}$"}, min_items=1)
_SCALAR: Schema = {"anyOf": [TEXT, NUMBER, BOOLEAN]}
_SCALARS: Schema = {"anyOf": [_SCALAR, {"type": "array", "items": _SCALAR, "maxItems": MAX_IN}]}


def path_parameter(name: str, description: str) -> Any:
    """Return the OpenAPI description of a path parameter."""
    return {"name": name, "in": "path", "required": True, "description": description, "schema": STRING}


def query_parameter(name: str, description: str, schema: Schema = STRING, *, example: Any = None) -> Any:
    """Return the OpenAPI description of a query parameter."""
    parameter = {"name": name, "in": "query", "description": description, "schema": schema}
    style = {"style": "form", "explode": False} if schema.get("type") == "array" else {}
    return {**parameter, **style, **({} if example is None else {"example": example})}


def filters_parameter(what: str, schema: Schema) -> Any:
    """Return the OpenAPI description of the filter parameters."""
    operators = ", ".join(f"`__{name}`" for name in OPERATORS if name != "eq")
    how = f"`column=value`, or `column` with an operator: {operators}. The values of `__in` are separated by commas."
    return {
        "name": "filters", "in": "query", "style": "form", "explode": True, "schema": schema,
        "description": f"{what}: {how}",
    }  # fmt: skip


def any_filters(reserved: Iterable[str]) -> Schema:
    """Return a schema that allows filters on any column. `reserved` lists the parameters that are not filters."""
    names = {"pattern": _FILTER, "not": {"enum": list(reserved)}}
    return {"type": "object", "propertyNames": names, "additionalProperties": TEXT}


def column_filters(columns: Iterable[Column]) -> Schema:
    """Return the schema of filters on the given columns."""
    names_by_kind: dict[str, list[str]] = {}
    for column in columns:
        if column.comparable:
            names_by_kind.setdefault(column.kind, []).append(column.name)
    comparisons = "|".join(name for name in OPERATORS if name not in ("in", "isnull"))
    alternatives = {kind: "|".join(names) for kind, names in names_by_kind.items()}
    patterns = {f"^({names})(__({comparisons}))?$": _VALUES[kind] for kind, names in alternatives.items()}
    patterns |= {f"^({names})__in$": _comma_list_schema(kind) for kind, names in alternatives.items()}
    patterns[f"^({'|'.join(alternatives.values())})__isnull$"] = BOOLEAN
    return {"type": "object", "patternProperties": patterns, "additionalProperties": False}


def _comma_list_schema(kind: str) -> Schema:
    """Return the schema for a comma-separated list of values of a type."""
    pattern = {"integer": "[+-]?[0-9]{1,40}", "number": r"[+-]?[0-9]{1,40}(\.[0-9]+)?", "boolean": "(true|false)"}.get(
        kind
    )
    if kind == "timestamp":
        pattern = (
            r"[0-9]{4}-(0[1-9]|1[0-2])-(0[1-9]|1[0-9]|2[0-8])(T([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](\.[0-9]+)?Z)?"
        )
    return TEXT if pattern is None else {"type": "string", "pattern": f"^{pattern}(,{pattern})*$"}


def _limit_schema(default: int, maximum: int) -> Schema:
    return {"type": "integer", "minimum": 1, "maximum": maximum, "default": default}


def _common_parameters(limit: Schema, max_rows: int, order: str, columns: Schema) -> list[Any]:
    return [
        query_parameter("from", f"Earliest time, inclusive: {_TIMES}.", ref("Moment"), example="2013-01-01T05:00:00Z"),
        query_parameter("to", f"Latest time, exclusive, later than `from`: {_TIMES}.", ref("Moment")),
        query_parameter(
            "order",
            f"Columns to sort by, the most significant first. Name each column once. `-` before a column means"
            f" descending order. Default: {order}.",
            columns,
            example=[order],
        ),
        query_parameter(
            "limit",
            f"Maximum number of rows of a JSON page, or of a stream ({STREAMED_NAMES}). Default of streams:"
            f" {max_rows}.",
            limit,
        ),
        query_parameter(
            "cursor",
            "The `next_cursor` of an earlier answer. All other parameters except `limit` must be the same as before.",
            CURSOR,
        ),
    ]


def window_parameters(*, stream: bool = False) -> list[Any]:
    """Return the OpenAPI descriptions of all parameters of window queries."""
    max_rows = aggregate_query.MAX_STREAM_ROWS
    page_limit = _limit_schema(aggregate_query.DEFAULT_LIMIT, aggregate_query.MAX_LIMIT)
    limit = _limit_schema(max_rows, max_rows) if stream else page_limit
    return [
        *_common_parameters(limit, max_rows, "window_start", _ORDER),
        *_roll_up_parameters(),
        query_parameter(
            "decimals",
            "The type of decimals in JSON and NDJSON: `string` (default) or `number`. Both types have all digits. Many"
            " JSON readers lose digits of numbers.",
            DECIMALS,
        ),
        query_parameter(
            "group_by",
            "Dimensions of the answer, separated by commas. An empty list combines all groups into one group.",
            _NAMES,
        ),
        query_parameter(
            "metrics", "Metrics of the answer, separated by commas. Default: all.", _list_schema(NAME, min_items=1)
        ),
        query_parameter(
            "closed",
            "`true` returns only closed windows, and `false` only open windows. A combined window (`granularity`) is"
            " closed when all its stored windows are closed.",
            BOOLEAN,
        ),
        filters_parameter("Filters on dimensions and metrics", any_filters(aggregate_query.RESERVED)),
    ]


def _roll_up_parameters() -> list[Any]:
    return [
        query_parameter(
            "granularity",
            "Length of combined windows, such as `1d`: a multiple of the window size (or the hop). Weeks, months,"
            " quarters and years follow the calendar (`1w`, `1mo`, `1q`, `1y`). `all` combines all windows into one.",
            GRANULARITY,
        ),
        query_parameter(
            "tz",
            "Time zone of days, such as America/New_York, for a granularity in days or longer units. A day starts at"
            " the first instant of its date. Default: the time zone of the stored windows, or else UTC.",
            ZONE,
        ),
        query_parameter(
            "fill",
            "Adds windows without events between `from` and `to`. With `null`, their metrics are null. With `zero`,"
            f" metrics with the functions {join_names(sorted(ZERO_FILLED))} are 0. Other metrics are null even with"
            " `zero`.",
            FILL,
        ),
    ]


def listing_parameters(listing: listings.Listing | None, *, stream: bool = False) -> list[Any]:
    """Return the OpenAPI descriptions of all parameters of a listing."""
    time = listing.time_column if listing else "event_time"
    columns = listing.columns if listing else listings.EVENT_COLUMNS
    names = [column.name for column in columns if column.comparable]
    order = _list_schema({"enum": [*names, *(f"-{name}" for name in names)]}, min_items=1)
    what = f"Filters on {', '.join(names)}" if listing else "Filters on the fields of the events"
    schema = column_filters(columns) if listing else any_filters(listings.RESERVED)
    max_rows = listings.MAX_STREAM_ROWS
    limit = _limit_schema(max_rows, max_rows) if stream else _limit_schema(listings.DEFAULT_LIMIT, listings.MAX_LIMIT)
    return [*_common_parameters(limit, max_rows, f"-{time}", order), filters_parameter(what, schema)]


def live_parameters(reserved: Collection[str]) -> list[Any]:
    """Return the OpenAPI descriptions of all parameters of live routes."""
    what = "Filters on group columns. A filter applies to each aggregation that has the column"
    filter_parameter = filters_parameter(what, any_filters(reserved))
    return [
        query_parameter(
            "aggregations", "Names of aggregations, separated by commas. Default: all.", _list_schema(NAME, min_items=1)
        ),
        query_parameter("resume", "The `resume` of the latest `progress` message."),
        {
            "name": "Last-Event-ID", "in": "header", "schema": STRING,
            "description": "The same value as `resume`. Browsers send this header when an event source reconnects.",
        },
        filter_parameter,
    ]  # fmt: skip


QUERY: Schema = {
    "type": "object",
    "description": 'The same parameters as for GET. All other members are filters, such as `"carrier": "AA"`.',
    "properties": {
        "from": ref("Moment"),
        "to": ref("Moment"),
        "granularity": GRANULARITY,
        "tz": ZONE,
        "fill": FILL,
        "decimals": DECIMALS,
        "group_by": _NAMES,
        "metrics": _NAMES,
        "closed": BOOLEAN,
        "order": _ORDER,
        "limit": _limit_schema(aggregate_query.DEFAULT_LIMIT, aggregate_query.MAX_LIMIT),
        "cursor": CURSOR,
    },
    "maxProperties": MAX_FIELDS,
    "propertyNames": {"pattern": _FILTER},
    "patternProperties": {f"^{_COLUMN}__in$": _SCALARS},
    "additionalProperties": _SCALAR,
    "example": {"from": "2013-01-01T00:00:00Z", "granularity": "1d", "group_by": [], "limit": 10},
}
PARAMETER_SCHEMAS: Mapping[str, Schema] = {"Moment": MOMENT, "Query": QUERY}
