"""Filters, order, limit and cursor of a request, as SQL over a relation.

A relation is a SELECT with known columns. Names in the SQL are always columns of the relation. Values are always SQL
parameters.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from tidemill_api.query.parameters import Parameters
from tidemill_api.query.values import cast_type, parse_integer, parse_value, to_text
from tidemill_chassis.web.problems import bad_parameter
from tidemill_contract.functions.partials import quote

OPERATORS = ("eq", "ne", "in", "gte", "gt", "lte", "lt", "isnull")
_SQL = {"eq": "=", "gte": ">=", "gt": ">", "lte": "<=", "lt": "<"}
MAX_IN = 1_000


@dataclass(frozen=True)
class Column:
    """A column of an answer.

    Attributes:
        kind: the values' type: `object`, `array` or a type of the pipeline's spec.
        decode: the function that decodes a database value, or None if values need no decoding.
        members: the members of each object, if the values are arrays of objects.
    """

    name: str
    kind: str
    nullable: bool = True
    decode: Callable[[Any], Any] | None = None
    members: tuple[Column, ...] = ()
    decimals_as_numbers: bool = False

    @property
    def comparable(self) -> bool:
        """Whether requests can filter and sort by the column. Objects, arrays and sketches cannot be compared."""
        return self.kind not in ("object", "array") and self.decode is None


@dataclass(frozen=True)
class Filter:
    """A filter `column operator values` with parsed values."""

    column: str
    kind: str
    operator: str
    values: tuple[Any, ...]


class Binder:
    """Collects the parameters of a statement."""

    def __init__(self) -> None:
        self.values: dict[str, str] = {}

    def bind(self, value: Any, kind: str) -> str:
        """Add a value of the type `kind` as a parameter, and return the placeholder with a cast."""
        return self.bind_as(to_text(value), cast_type(value, kind))

    def bind_as(self, text: str, sql_type: str) -> str:
        """Add a parameter, and return the placeholder with a cast, such as `%(p0)s::bigint`."""
        name = f"p{len(self.values)}"
        self.values[name] = text
        return f"%({name})s::{sql_type}"


def parse_filters(parameters: Parameters, columns: Mapping[str, Column], reserved: Collection[str]) -> list[Filter]:
    """Return the filters among the parameters, such as `column=` and `column__gte=`.

    Raises:
        Problem: a value has the wrong type, or a column does not support filters.
    """
    filters = []
    for name in list(parameters.unread):
        if name in reserved:
            continue
        column, operator = (name, "eq") if name in columns else (name.rpartition("__")[0], name.rpartition("__")[2])
        if column not in columns or operator not in OPERATORS:
            continue
        if not columns[column].comparable:
            raise bad_parameter(name, f"the column {column} cannot be filtered by")
        filters.append(_parse_filter(parameters, name, columns[column], operator))
    return filters


def _parse_filter(parameters: Parameters, name: str, column: Column, operator: str) -> Filter:
    kind = "boolean" if operator == "isnull" else column.kind
    texts = parameters.pop_list(name) if operator == "in" else [parameters.pop_one(name) or ""]
    if len(texts or ()) > MAX_IN:
        raise bad_parameter(name, f"{len(texts or ())} values; at most {MAX_IN}")
    try:
        values = tuple(parse_value(text, kind) for text in texts or ())
    except ValueError as error:
        raise bad_parameter(name, str(error)) from None
    return Filter(column.name, column.kind, operator, values)


def condition(column_filter: Filter, binder: Binder, expression: str | None = None) -> str:
    """Return the SQL of a filter. Only `ne` and `isnull` can match a null."""
    column = expression or quote(column_filter.column)
    if column_filter.operator == "isnull":
        return f"{column} IS {'' if column_filter.values[0] else 'NOT '}NULL"
    placeholders = [binder.bind(value, column_filter.kind) for value in column_filter.values]
    if column_filter.operator == "in":
        return f"{column} IN ({', '.join(placeholders)})" if placeholders else "false"
    if column_filter.operator == "ne":
        return f"{column} IS DISTINCT FROM {placeholders[0]}"
    return f"{column} {_SQL[column_filter.operator]} {placeholders[0]}"


@dataclass(frozen=True)
class Order:
    """A column to sort by, with nulls last in both directions."""

    column: Column
    descending: bool = False

    @property
    def sql(self) -> str:
        """The SQL for ORDER BY."""
        nulls = " NULLS LAST" if self.column.nullable and self.descending else ""
        return f"{quote(self.column.name)}{' DESC' if self.descending else ''}{nulls}"


@dataclass(frozen=True)
class Page:
    """The order, the limit and the start of a page of rows.

    Attributes:
        order: the columns to sort by: the requested columns, and then the columns that identify a row.
        limit: the maximum number of rows.
        after: the values of the `order` columns in the previous page's last row, or None on the first page.
        fingerprint: a text that identifies the query, so that a cursor is valid only for this query.
    """

    order: tuple[Order, ...]
    limit: int
    after: tuple[Any, ...] | None
    fingerprint: str

    def keyset_condition(self, binder: Binder) -> str:
        """Return the SQL condition for the rows after the cursor."""
        if self.after is None:
            return "true"
        branches, equal = [], []
        for order, value in zip(self.order, self.after, strict=True):
            column = quote(order.column.name)
            if value is None:
                equal.append(f"{column} IS NULL")
                continue
            bound = binder.bind(value, order.column.kind)
            later = f"{column} {'<' if order.descending else '>'} {bound}"
            if order.column.nullable:
                later = f"({later} OR {column} IS NULL)"
            branches.append(" AND ".join([*equal, later]))
            equal.append(f"{column} = {bound}")
        return f"({' OR '.join(f'({branch})' for branch in branches)})" if branches else "false"

    def order_and_limit_sql(self) -> str:
        """Return ORDER BY and LIMIT, for the rows of the page and one more row."""
        return f"ORDER BY {', '.join(order.sql for order in self.order)} LIMIT {self.limit + 1}"

    def cursor(self, row: Mapping[str, Any]) -> str:
        """Return the cursor for the rows that follow `row`. `row` has the values from psycopg."""
        values = [None if row[o.column.name] is None else to_text(row[o.column.name]) for o in self.order]
        packed = msgspec.msgpack.encode([1, self.fingerprint, values])
        return base64.urlsafe_b64encode(packed).rstrip(b"=").decode()


def parse_page(
    parameters: Parameters,
    columns: Mapping[str, Column],
    *,
    default_order: Sequence[tuple[str, bool]],
    unique: Sequence[str],
    default_limit: int,
    max_limit: int,
    fingerprint: str,
) -> Page:
    """Read the parameters `order`, `limit` and `cursor` of a request.

    Raises:
        Problem: a column is unknown, the limit is too high or too low, or the cursor belongs to another query.
    """
    order = _parse_order(parameters, columns, default_order, unique)
    limit = parameters.pop_parsed("limit", lambda text: _parse_limit(text, max_limit)) or default_limit
    digest = hashlib.sha256(repr((fingerprint, [(o.column.name, o.descending) for o in order])).encode()).hexdigest()
    text = parameters.pop_one("cursor")
    after = None if not text else _read_cursor(text, order, digest[:16])
    return Page(tuple(order), limit, after, digest[:16])


def _parse_order(
    parameters: Parameters,
    columns: Mapping[str, Column],
    default: Sequence[tuple[str, bool]],
    unique: Sequence[str],
) -> list[Order]:
    requested = list(default)
    texts = parameters.pop_list("order")
    if texts is not None:
        requested = [(text.removeprefix("-"), text.startswith("-")) for text in texts]
    for name, _ in requested:
        if name not in columns or not columns[name].comparable:
            column_names = ", ".join(c.name for c in columns.values() if c.comparable)
            raise bad_parameter(
                "order",
                f"{name!r} is not a column to order by; write one of {column_names}, or -column for descending order",
            )
    if len({name for name, _ in requested}) != len(requested):
        raise bad_parameter("order", "a column is named twice; name each column once")
    requested_names = {name for name, _ in requested}
    # Sort the columns of `unique` in the same direction as the last requested column.
    last_descending = requested[-1][1] if requested else False
    requested += [(name, last_descending) for name in unique if name not in requested_names]
    return [Order(columns[name], descending) for name, descending in requested]


def _parse_limit(text: str, maximum: int) -> int:
    number = parse_integer(text) if text[:1].isdigit() else None
    if number is None or not 1 <= number <= maximum:
        raise ValueError(f"{text[:20]!r} is not a whole number from 1 to {maximum}")
    return number


def _read_cursor(text: str, order: Sequence[Order], fingerprint: str) -> tuple[Any, ...]:
    try:
        packed = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
        version, cursor_fingerprint, texts = msgspec.msgpack.decode(packed, type=tuple[int, str, list[str | None]])
        if version != 1:
            raise ValueError("the cursor has another version")
    except (ValueError, msgspec.DecodeError):
        raise bad_parameter(
            "cursor", "the value is not a cursor; send the next_cursor of an answer unchanged", code="bad_cursor"
        ) from None
    if cursor_fingerprint != fingerprint or len(texts) != len(order):
        raise bad_parameter(
            "cursor",
            "the cursor belongs to another query; keep all parameters except limit unchanged, or leave the cursor out",
            code="bad_cursor",
        )
    try:
        return tuple(
            None if value is None else _parse_cursor_value(value, item.column)
            for value, item in zip(texts, order, strict=True)
        )
    except ValueError:
        raise bad_parameter(
            "cursor", "the value is not a cursor; send the next_cursor of an answer unchanged", code="bad_cursor"
        ) from None


def _parse_cursor_value(text: str, column: Column) -> Any:
    if column.kind == "number" and text in ("inf", "-inf", "nan"):
        return float(text)
    return parse_value(text, column.kind)
