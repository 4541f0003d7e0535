"""Listings of anomalies, dead letters and kept events."""

from __future__ import annotations

import base64
import codecs
import datetime as dt
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from tidemill_api.catalog import PipelineModel
from tidemill_api.query.parameters import Parameters
from tidemill_api.query.selection import Binder, Column, Filter, Page, condition, parse_filters, parse_page
from tidemill_api.query.values import parse_time
from tidemill_chassis.web.problems import bad_parameter, not_found
from tidemill_contract.functions.partials import SQL_TYPES, quote
from tidemill_contract.tables import anomalies, dead_letters, events
from tidemill_contract.tables.definition import from_ms
from tidemill_contract.times import rfc3339_ms

DEFAULT_LIMIT, MAX_LIMIT, MAX_STREAM_ROWS = 100, 1_000, 10_000_000
RESERVED = ("from", "to", "order", "limit", "cursor")
SHOWN_BYTES, SHOWN_KEY_BYTES = 4_096, 1_024


@dataclass(frozen=True)
class Listing:
    """A table that can be listed.

    Attributes:
        relation: a SELECT of `columns` and `hidden`, in which {schema} stands for the quoted schema.
        unique: the columns that identify a row.
        hidden: columns that filters can use, but that are not part of the answer.
    """

    kind: str
    relation: str
    columns: tuple[Column, ...]
    time_column: str
    unique: tuple[str, ...]
    hidden: tuple[Column, ...] = ()
    converters: Mapping[str, Callable[[Any], Any]] = field(default_factory=dict)


def _text_or_base64(value: bytes | None) -> str | None:
    if value is None:
        return None
    text = _decode_utf8(value)
    return base64.b64encode(value).decode() if text is None else text


def _encoding(value: bytes | None) -> str | None:
    if value is None:
        return None
    return "base64" if _decode_utf8(value) is None else "utf-8"


def _decode_utf8(value: bytes) -> str | None:
    """Return the bytes as text, or None if the bytes are not UTF-8."""
    is_whole = len(value) not in (SHOWN_BYTES, SHOWN_KEY_BYTES)
    try:
        return codecs.getincrementaldecoder("utf-8")().decode(value, final=is_whole)
    except UnicodeDecodeError:
        return None


def _parse_data(text: str) -> Any:
    # Keep numbers as written, because a float would round numbers with many digits.
    return json.loads(text, parse_float=lambda digits: msgspec.Raw(digits.encode()))


def _format_times(values: list[int] | None) -> list[str] | None:
    return None if values is None else [_format_time(value) for value in values]


def _format_time(value: int) -> str:
    try:
        return rfc3339_ms(value)
    except OverflowError:
        return str(value)


ANOMALIES = Listing(
    kind="anomalies",
    relation=anomalies.listing("{schema}"),
    columns=(
        Column("id", "integer", nullable=False),
        Column("anomaly", "string", nullable=False),
        Column("aggregation", "string", nullable=False),
        Column("version", "integer", nullable=False),
        Column("metric", "string", nullable=False),
        Column("group", "object", nullable=False),
        Column("window_start", "timestamp", nullable=False),
        Column("window_end", "timestamp", nullable=False),
        Column("value", "number", nullable=False),
        Column("score", "number", nullable=False),
        Column("severity", "string", nullable=False),
        Column("expected", "number"),
        Column("lower", "number"),
        Column("upper", "number"),
        Column("revision", "integer", nullable=False),
        Column("partition", "integer"),
        Column("offset", "integer"),
        Column("element", "integer"),
        Column("detected_at", "timestamp", nullable=False),
    ),
    time_column="window_start",
    unique=("window_start", "id"),
)

# A record can be larger than 1 MiB. Answers contain only the first bytes of a record.
DEAD_LETTERS = Listing(
    kind="dead_letters",
    relation=dead_letters.listing("{schema}", key_bytes=SHOWN_KEY_BYTES, value_bytes=SHOWN_BYTES),
    columns=(
        Column("epoch", "integer", nullable=False),
        Column("partition", "integer", nullable=False),
        Column("offset", "integer", nullable=False),
        Column("element", "integer"),
        Column("aggregation", "string", nullable=False),
        Column("reason", "string", nullable=False),
        Column("field", "string"),
        Column("detail", "string"),
        Column("key", "object"),
        Column("value", "object"),
        Column("value_encoding", "object"),
        Column("value_bytes", "integer"),
        Column("event_time", "timestamp"),
        Column("windows", "array"),
        Column("created_at", "timestamp", nullable=False),
    ),
    time_column="created_at",
    unique=("created_at", "epoch", "partition", "offset", "aggregation", "element"),
    converters={
        "key": _text_or_base64,
        "value": _text_or_base64,
        "value_encoding": _encoding,
        "windows": _format_times,
    },
)


EVENT_COLUMNS = (
    Column("event_time", "timestamp", nullable=False),
    Column("epoch", "integer", nullable=False),
    Column("partition", "integer", nullable=False),
    Column("offset", "integer", nullable=False),
    Column("data", "object", nullable=False),
)
EVENT_CONVERTERS = {"data": _parse_data}
"""The converter of `data`, which the SELECT returns as text."""
EVENT_ELEMENT = Column("element", "integer", nullable=False)
"""The column with the index of an event in its record's array (`source.array`)."""


def events_listing(model: PipelineModel) -> Listing:
    """Return the listing of a pipeline's kept events, with filters on the fields of the events.

    Raises:
        Problem: the pipeline keeps no events (404).
    """
    if not model.config.spec.events.store:
        raise not_found(
            "events_not_kept", f"{model.name} keeps no events; set events.store: true in its spec to keep them"
        )
    element_columns = (EVENT_ELEMENT,) if model.config.spec.source.array is not None else ()
    fixed_names = {"event_time", "epoch", "partition", "offset", "data", *(column.name for column in element_columns)}
    fields = [f for f in model.config.spec.source.fields if f.name not in fixed_names and f.kind in SQL_TYPES]
    field_columns = "".join(f", {column.name}" for column in element_columns)
    field_columns += "".join(f", {_field_sql(f.name, f.kind)} AS {quote(f.name)}" for f in fields)
    return Listing(
        kind="events",
        relation=events.listing("{schema}", field_columns),
        columns=(*EVENT_COLUMNS, *element_columns),
        time_column="event_time",
        unique=("event_time", "epoch", "partition", "offset", *(column.name for column in element_columns)),
        hidden=tuple(Column(f.name, f.kind) for f in fields),
        converters=EVENT_CONVERTERS,
    )


def _field_sql(name: str, kind: str) -> str:
    text = f"(data ->> '{name}')"
    if kind == "timestamp":
        return from_ms(f"{text}::bigint")
    return f'{text} COLLATE "C"' if kind == "string" else f"{text}::{SQL_TYPES[kind]}"


@dataclass(frozen=True)
class ListingQuery:
    """A query over a listing.

    Attributes:
        since: the start of the time range, inclusive (the parameter `from`).
        until: the end of the time range, exclusive (the parameter `to`).
    """

    listing: Listing
    since: dt.datetime | None
    until: dt.datetime | None
    filters: tuple[Filter, ...]
    page: Page

    @property
    def key(self) -> str:
        """The cache key, which is the same for queries with the same answer."""
        return repr((self.listing.kind, self.page.fingerprint, self.page.limit, self.page.after))

    def statement(self, schema: str, binder: Binder) -> str:
        """Return the SELECT with the columns of the listing."""
        conditions = [condition(column_filter, binder) for column_filter in self.filters]
        time = quote(self.listing.time_column)
        if self.since is not None:
            conditions.append(f"{time} >= {binder.bind(self.since, 'timestamp')}")
        if self.until is not None:
            conditions.append(f"{time} < {binder.bind(self.until, 'timestamp')}")
        conditions.append(self.page.keyset_condition(binder))
        selected = ", ".join(quote(column.name) for column in self.listing.columns)
        relation = self.listing.relation.format(schema=schema)
        order = self.page.order_and_limit_sql()
        return f"SELECT {selected} FROM ({relation}) AS q WHERE {' AND '.join(conditions)} {order}"


def parse_listing_query(listing: Listing, parameters: Parameters, *, stream: bool = False) -> ListingQuery:
    """Return the query of a request. By default, the newest rows come first.

    Raises:
        Problem: a parameter is unknown or wrong.
    """
    since, until = parameters.pop_parsed("from", parse_time), parameters.pop_parsed("to", parse_time)
    if since is not None and until is not None and since >= until:
        raise bad_parameter("to", "the end must be later than the start (the parameter from)")
    columns = {column.name: column for column in (*listing.columns, *listing.hidden)}
    filters = parse_filters(parameters, columns, RESERVED)
    max_rows = MAX_STREAM_ROWS if stream else MAX_LIMIT
    page = parse_page(
        parameters,
        {column.name: column for column in listing.columns},
        default_order=[(listing.time_column, True)],
        unique=listing.unique,
        default_limit=max_rows if stream else DEFAULT_LIMIT,
        max_limit=max_rows,
        fingerprint=repr((listing.kind, since, until, filters)),
    )
    filterable = [name for name, column in columns.items() if column.comparable]
    parameters.refuse_unknown([*RESERVED, *filterable])
    return ListingQuery(listing, since, until, tuple(filters), page)


def row_dict(listing: Listing, row: Sequence[Any]) -> dict[str, Any]:
    """Return the database values of a row by column name."""
    return dict(zip((column.name for column in listing.columns), row, strict=True))
