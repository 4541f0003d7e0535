"""Which rows of a relation a request wants, in which order, from where on: filters, order, limit, cursor.

A relation is any SELECT with known columns. Names come from the relation's columns only, values are parameters.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from tidemill_api.query.parameters import Parameters
from tidemill_api.query.values import cast, parse_value, to_text, whole
from tidemill_chassis.web.problems import bad_parameter
from tidemill_contract.functions.partials import quote

OPERATORS = ("eq", "ne", "in", "gte", "gt", "lte", "lt", "isnull")
_SQL = {"eq": "=", "gte": ">=", "gt": ">", "lte": "<=", "lt": "<"}
MAX_IN = 1_000


@dataclass(frozen=True)
class Column:
    """An output column.

    Attributes:
        kind: its spec type; `object` and `array` can be neither compared nor ordered by.
        nullable: whether it may be null.
        decode: what makes its value of what SQL answers, where that is more than a cast; SQL cannot compare it then.
        members: of an array of objects: what each object holds. Other arrays hold texts.
    """

    name: str
    kind: str
    nullable: bool = True
    decode: Callable[[Any], Any] | None = None
    members: tuple[Column, ...] = ()

    @property
    def comparable(self) -> bool:
        """Whether it can be filtered and ordered by."""
        return self.kind not in ("object", "array") and self.decode is None


@dataclass(frozen=True)
class Filter:
    """`column operator values`; `values` are parsed, one but for `in`."""

    column: str
    kind: str
    operator: str
    values: tuple[Any, ...]


class Binder:
    """Collects the parameters of a statement."""

    def __init__(self) -> None:
        self.values: dict[str, str] = {}

    def bind(self, value: Any, kind: str) -> str:
        """The SQL that stands for a value."""
        return self.bind_as(to_text(value), cast(value, kind))

    def bind_as(self, text: str, sql_type: str) -> str:
        """The SQL that stands for a text cast to an SQL type."""
        name = f"p{len(self.values)}"
        self.values[name] = text
        return f"%({name})s::{sql_type}"


def take_filters(parameters: Parameters, columns: Mapping[str, Column], reserved: Collection[str]) -> list[Filter]:
    """The filters among the parameters, such as `column=` and `column__gte=`.

    Raises:
        Problem: a value is not of its column's type.
    """
    found = []
    for name in list(parameters.given):
        if name in reserved:
            continue
        column, operator = (name, "eq") if name in columns else (name.rpartition("__")[0], name.rpartition("__")[2])
        if column not in columns or operator not in OPERATORS:
            continue
        if not columns[column].comparable:
            raise bad_parameter(name, f"the column {column} cannot be filtered by")
        found.append(_filter(parameters, name, columns[column], operator))
    return found


def _filter(parameters: Parameters, name: str, column: Column, operator: str) -> Filter:
    kind = "boolean" if operator == "isnull" else column.kind
    texts = parameters.many(name) if operator == "in" else [parameters.one(name) or ""]
    if len(texts or ()) > MAX_IN:
        raise bad_parameter(name, f"{len(texts or ())} values; at most {MAX_IN}")
    try:
        values = tuple(parse_value(text, kind) for text in texts or ())
    except ValueError as error:
        raise bad_parameter(name, str(error)) from None
    return Filter(column.name, column.kind, operator, values)


def condition(wanted: Filter, binder: Binder, expression: str | None = None) -> str:
    """SQL of a filter. A null is unequal to everything but fits no other comparison."""
    column = expression or quote(wanted.column)
    if wanted.operator == "isnull":
        return f"{column} IS {'' if wanted.values[0] else 'NOT '}NULL"
    bound = [binder.bind(value, wanted.kind) for value in wanted.values]
    if wanted.operator == "in":
        return f"{column} IN ({', '.join(bound)})" if bound else "false"
    if wanted.operator == "ne":
        return f"{column} IS DISTINCT FROM {bound[0]}"
    return f"{column} {_SQL[wanted.operator]} {bound[0]}"


@dataclass(frozen=True)
class Order:
    """One column to sort by; nulls come last either way."""

    column: Column
    descending: bool = False

    @property
    def sql(self) -> str:
        """For ORDER BY."""
        nulls = " NULLS LAST" if self.column.nullable and self.descending else ""
        return f"{quote(self.column.name)}{' DESC' if self.descending else ''}{nulls}"


@dataclass(frozen=True)
class Page:
    """A piece of an ordered relation.

    Attributes:
        order: a total order: the wanted columns, then what makes it unique.
        after: values of the order's columns in the last row already given; None: from the start.
        fingerprint: of the query that a cursor belongs to.
    """

    order: tuple[Order, ...]
    limit: int
    after: tuple[Any, ...] | None
    fingerprint: str

    def keyset(self, binder: Binder) -> str:
        """SQL condition: rows that come after the cursor."""
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

    def sql(self) -> str:
        """ORDER BY and LIMIT; one row more than wanted tells whether there are more."""
        return f"ORDER BY {', '.join(order.sql for order in self.order)} LIMIT {self.limit + 1}"

    def cursor(self, row: Mapping[str, Any]) -> str:
        """The cursor after a row (values as psycopg gives them)."""
        values = [None if row[o.column.name] is None else to_text(row[o.column.name]) for o in self.order]
        packed = msgspec.msgpack.encode([1, self.fingerprint, values])
        return base64.urlsafe_b64encode(packed).rstrip(b"=").decode()


def take_page(
    parameters: Parameters,
    columns: Mapping[str, Column],
    *,
    default_order: Sequence[tuple[str, bool]],
    unique: Sequence[str],
    default_limit: int,
    max_limit: int,
    fingerprint: str,
) -> Page:
    """The order, limit and cursor of a request; `fingerprint` names the rest of the query.

    Raises:
        Problem: a column is unknown, the limit out of bounds, or the cursor of another query.
    """
    order = _take_order(parameters, columns, default_order, unique)
    limit = parameters.parsed("limit", lambda text: _limit(text, max_limit)) or default_limit
    digest = hashlib.sha256(repr((fingerprint, [(o.column.name, o.descending) for o in order])).encode()).hexdigest()
    text = parameters.one("cursor")
    after = None if not text else _read_cursor(text, order, digest[:16])
    return Page(tuple(order), limit, after, digest[:16])


def _take_order(
    parameters: Parameters,
    columns: Mapping[str, Column],
    default: Sequence[tuple[str, bool]],
    unique: Sequence[str],
) -> list[Order]:
    wanted = list(default)
    texts = parameters.many("order")
    if texts is not None:
        wanted = [(text.removeprefix("-"), text.startswith("-")) for text in texts]
    for name, _ in wanted:
        if name not in columns or not columns[name].comparable:
            known = ", ".join(c.name for c in columns.values() if c.comparable)
            raise bad_parameter("order", f"{name!r} is no column to order by; known are {known}; -column: descending")
    if len({name for name, _ in wanted}) != len(wanted):
        raise bad_parameter("order", "a column is named twice")
    named = {name for name, _ in wanted}
    # What makes the order total runs the way of the last column, so that one index serves both.
    down = wanted[-1][1] if wanted else False
    wanted += [(name, down) for name in unique if name not in named]
    return [Order(columns[name], descending) for name, descending in wanted]


def _limit(text: str, most: int) -> int:
    number = whole(text) if text[:1].isdigit() else None
    if number is None or not 1 <= number <= most:
        raise ValueError(f"{text[:20]!r} is not a whole number from 1 to {most}")
    return number


def _read_cursor(text: str, order: Sequence[Order], fingerprint: str) -> tuple[Any, ...]:
    try:
        packed = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
        version, bound_to, texts = msgspec.msgpack.decode(packed, type=tuple[int, str, list[str | None]])
        if version != 1:
            raise ValueError("another version")
    except (ValueError, msgspec.DecodeError):
        raise bad_parameter(
            "cursor", "not a cursor; send next_cursor of an answer as it is", code="bad_cursor"
        ) from None
    if bound_to != fingerprint or len(texts) != len(order):
        raise bad_parameter(
            "cursor",
            "it belongs to another query; keep all parameters but limit as they were, or leave the cursor out",
            code="bad_cursor",
        )
    try:
        return tuple(
            None if value is None else _key_value(value, item.column) for value, item in zip(texts, order, strict=True)
        )
    except ValueError:
        raise bad_parameter(
            "cursor", "not a cursor; send next_cursor of an answer as it is", code="bad_cursor"
        ) from None


def _key_value(text: str, column: Column) -> Any:
    if column.kind == "number" and text in ("inf", "-inf", "nan"):
        return float(text)
    return parse_value(text, column.kind)
