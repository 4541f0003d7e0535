"""The base classes of aggregate functions and of stored columns."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, Protocol, Self, cast, get_args

from pydantic import BaseModel, ConfigDict, StringConstraints
from pydantic.alias_generators import to_camel

from tidemill_contract.decimals import DECIMALS, scale_of

FieldType = Literal["string", "integer", "number", "boolean", "timestamp", "decimal"]
Name = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]{0,40}$", max_length=41)]
Expression = Annotated[str, StringConstraints(min_length=1, max_length=1024)]

ALL_TYPES: tuple[str, ...] = get_args(FieldType)
NUMERIC: tuple[str, ...] = ("integer", "number", "decimal", "boolean")
STRINGS = "strings"
"""The type of a field that is an array of strings. The functions that accept such a field treat each string as one
value."""
ALL_TYPES_AND_STRINGS: tuple[str, ...] = (*ALL_TYPES, STRINGS)
ORDERED_TYPES: tuple[str, ...] = ("integer", "number", "decimal", "timestamp", "string")

EXACT_INTEGERS = 2**53
"""A double represents every integer up to this limit exactly."""

SQL_TYPES: dict[str, str] = {
    "string": 'text COLLATE "C"',
    "integer": "bigint",
    "number": "double precision",
    "boolean": "boolean",
    "timestamp": "timestamptz",
    **dict.fromkeys(DECIMALS, "numeric"),
}
"""The SQL type for each spec type."""


class Metric(Protocol):
    """A metric of the spec. The parameters of the function, such as `q`, are also attributes."""

    @property
    def name(self) -> str:
        """The metric's name in query results."""

    @property
    def function(self) -> str:
        """The name of the metric's function."""

    @property
    def field(self) -> str | None:
        """The field that the function aggregates, or None if the function aggregates events."""

    @property
    def where(self) -> str | None:
        """The condition on events that count in the metric, or None if every event counts."""


class StoredColumn(Protocol):
    """A stored column of a window table."""

    @property
    def kind(self) -> str:
        """The name of the column's kind."""

    @property
    def sql_type(self) -> str:
        """The SQL type of the column's values."""

    @property
    def list_size(self) -> int:
        """The maximum number of values in the list of a `topk` metric, or 0 for other metrics."""

    @property
    def bounds(self) -> tuple[float, ...]:
        """The bounds of a histogram, or an empty tuple for other kinds."""

    @property
    def quoted(self) -> str:
        """The column's name in double quotes."""

    def sibling(self, kind: str) -> str:
        """Return the quoted name of the column of another kind for the same field."""


@dataclass(frozen=True, kw_only=True)
class PartialKind:
    """A kind of stored column: its SQL type, and SQL for merging its values. The SQL raises no error.

    Attributes:
        merge: a function that returns SQL for merging the values (or nulls) of the rows `old` and `new`.
        rollup: a function that returns an SQL aggregate for merging the values of many rows.
        needs_order: whether processors must read events in the order of event time to fill the column.
        optional: whether the column only makes results more precise, so that results exist without the column.
    """

    name: str
    sql_type: Callable[[str], str]
    merge: Callable[[StoredColumn, str, str], str]
    rollup: Callable[[StoredColumn], str]
    needs_order: bool = False
    optional: bool = False
    sketch: bool = False


def fixed_type(sql_type: str) -> Callable[[str], str]:
    """Return a function that returns this SQL type for every field type."""
    return lambda _: sql_type


def field_sql_type(field_type: str) -> str:
    """Return the SQL type for the values of a field. Decimals are stored as scaled integers."""
    return SQL_TYPES["integer" if scale_of(field_type) is not None else field_type]


@dataclass(frozen=True)
class ColumnNeed:
    """A stored column that a metric needs.

    Attributes:
        field: the metric's field, or None if the column counts events.
        by: the parameter `by` of the metric (`min_by` or `max_by`), or None.
        source: the field whose values are stored, or None if the values of `field` are stored.
        list_size: the maximum number of values that the metric (`topk`) lists.
        where: the normal form of the condition on events, or None for a metric without a condition.
    """

    kind: PartialKind
    field: str | None
    by: str | None = None
    source: str | None = None
    list_size: int = 0
    bounds: tuple[float, ...] = ()
    where: str | None = None


@dataclass(frozen=True)
class MergedColumns:
    """The columns from which SQL computes a metric's result, after rows were merged.

    Attributes:
        columns: the quoted column names by kind.
        field_type: the type of the metric's field, such as `integer`, or None if the metric has no field.
        seconds: the SQL of the window's length in seconds, as a double.
    """

    columns: Mapping[str, str]
    field_type: str | None
    seconds: str


class Parameters(BaseModel):
    """The parameters of a function, except the field. Each parameter is a member of the metric in the spec.

    Attributes:
        fields: for each parameter whose value is a field's name, the allowed types of the field.
        remedies: for each required parameter, the remedy in the error message about a missing parameter.
    """

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, extra="forbid", frozen=True, strict=True)

    fields: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    remedies: ClassVar[Mapping[str, str]] = {}

    @classmethod
    def of(cls, metric: Metric) -> Self:
        """Return the parameters of a validated metric."""
        given = {name: getattr(metric, name, None) for name in cls.model_fields}
        return cast(Self, cls.model_construct(**{name: value for name, value in given.items() if value is not None}))


@dataclass(frozen=True)
class Item:
    """The OpenAPI schema of an item, if the result of a function is a list. An item is an object with `members`."""

    name: str
    description: str
    members: Mapping[str, dict[str, Any]]


class Function:
    """An aggregate function.

    Attributes:
        field_optional: whether a metric may use the function without a field.
        kinds: the kinds of the columns that the function stores for the metric's field.
        zero_filled: whether the result for an empty window is 0 instead of null.
        item: the schema of the result's items, or None if the result is not a list.
    """

    name: ClassVar[str]
    description: ClassVar[str] = ""
    accuracy: ClassVar[str] = "exact"
    field_types: ClassVar[tuple[str, ...]] = ALL_TYPES
    field_optional: ClassVar[bool] = False
    parameters: ClassVar[type[Parameters]] = Parameters
    example: ClassVar[Mapping[str, Any]] = {}
    kinds: ClassVar[tuple[PartialKind, ...]] = ()
    zero_filled: ClassVar[bool] = False
    item: ClassVar[Item | None] = None

    def needs(self, metric: Metric) -> tuple[ColumnNeed, ...]:
        """Return the stored columns that a metric needs."""
        return tuple(ColumnNeed(kind, metric.field) for kind in self.kinds)

    def answer_sql(self, merged: MergedColumns) -> str:
        """Return SQL for the metric's value. If the metric has a decoder, return SQL for the decoder's input.

        A number that is too large for a double becomes null. For a decimal, the SQL returns a scaled integer.
        """
        raise NotImplementedError

    def answer_type(self, field_type: str | None) -> str:
        """Return the type of the metric's value, such as `integer` or `array`."""
        return str(field_type)

    def answer_range(self, field_type: str | None) -> tuple[float, float]:
        """Return the smallest and the largest possible value of the metric."""
        return -math.inf, math.inf

    def decoder(self, metric: Metric, field_type: str | None) -> Callable[[Any], Any] | None:
        """Return the function that converts the SQL result to the metric's value, or None for no conversion."""
        return None
