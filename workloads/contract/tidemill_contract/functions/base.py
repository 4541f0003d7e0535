"""The base classes of aggregate functions and of the kinds of columns that they store.

Each function is one object with its parameters, the field types that it takes, the columns that it stores, the SQL of
its answer, and its texts for the documentation. The SQL that merges and rolls up a column belongs to the column's kind,
which several functions can share. The registry lists the functions. The spec's enum, the rules, the CRD, the OpenAPI
schema and the reference pages are generated from the registry.
"""

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

ANY: tuple[str, ...] = get_args(FieldType)
NUMERIC: tuple[str, ...] = ("integer", "number", "decimal", "boolean")
STRINGS = "strings"
"""The type of a field that is an array of strings. A function counts each string in the array."""
WITH_STRINGS: tuple[str, ...] = (*ANY, STRINGS)
ORDERED: tuple[str, ...] = ("integer", "number", "decimal", "timestamp", "string")

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
"""The SQL type for each spec type. Types of decimals include the scale."""


class Metric(Protocol):
    """A metric of the spec. The parameters of its function are further attributes (see `Parameters.of`)."""

    @property
    def name(self) -> str:
        """The metric's name in answers."""

    @property
    def function(self) -> str:
        """The name of the metric's function."""

    @property
    def field(self) -> str | None:
        """The field whose values the function aggregates, or None if the function aggregates events."""

    @property
    def where(self) -> str | None:
        """The condition that an event must fulfil to count in the metric, or None if every event counts."""


class StoredColumn(Protocol):
    """The properties of a stored column from which the SQL of its kind is built."""

    @property
    def kind(self) -> str:
        """The name of the column's kind."""

    @property
    def sql_type(self) -> str:
        """The SQL type of the column's values."""

    @property
    def listed(self) -> int:
        """The maximum number of values that a metric (`topk`) lists from the column, or 0 if no metric lists any."""

    @property
    def bounds(self) -> tuple[float, ...]:
        """The bounds of a histogram; empty for other kinds."""

    @property
    def quoted(self) -> str:
        """The column's name in double quotes."""

    def sibling(self, kind: str) -> str:
        """Return the quoted name of the column that stores `kind` for the same field."""


@dataclass(frozen=True, kw_only=True)
class PartialKind:
    """A kind of stored column: its type, and the SQL that merges its values. This SQL must never raise an error.

    Attributes:
        name: the kind's name, with which the names of its columns begin.
        sql_type: returns the column's SQL type for a field's spec type.
        merge: returns SQL that merges the values of row `old` and row `new` (aliases). Both values may be null.
        rollup: returns an SQL aggregate that merges the values of many rows.
        ordered: whether processors must read events in the order of event time to fill the column.
        refining: whether the column only adds precision to another column. In such a column, null counts as zero.
        sketch: whether the column stores frames of `sketches`.
    """

    name: str
    sql_type: Callable[[str], str]
    merge: Callable[[StoredColumn, str, str], str]
    rollup: Callable[[StoredColumn], str]
    ordered: bool = False
    refining: bool = False
    sketch: bool = False


def always(sql_type: str) -> Callable[[str], str]:
    """Return a function that returns this SQL type for every field type."""
    return lambda _: sql_type


def like_field(field_type: str) -> str:
    """Return the SQL type that stores the values of a field. Decimals are stored as scaled integers."""
    return SQL_TYPES["integer" if scale_of(field_type) is not None else field_type]


@dataclass(frozen=True)
class Need:
    """A stored column that a metric needs.

    Attributes:
        kind: the kind of the column.
        field: the metric's field, or None if the column counts events.
        by: a second field. Columns with the same `field` and a different `by` are different columns.
        source: the field whose values the column stores, or None if the values are those of `field`.
        listed: the maximum number of values that the metric (`topk`) lists.
        bounds: the bounds of a histogram.
        where: the metric's condition in its normal form. It is set by `needed_partials`, not by functions.
    """

    kind: PartialKind
    field: str | None
    by: str | None = None
    source: str | None = None
    listed: int = 0
    bounds: tuple[float, ...] = ()
    where: str | None = None


@dataclass(frozen=True)
class Merged:
    """The merged columns of a metric, from which the SQL of its answer is written.

    Attributes:
        columns: the quoted column names by kind.
        field_type: the spec type of the metric's field, or None if the metric has no field.
        seconds: SQL for the window's length in seconds, a double.
    """

    columns: Mapping[str, str]
    field_type: str | None
    seconds: str


class Parameters(BaseModel):
    """The parameters of a function besides its field. Each parameter is a member of the metric in the spec.

    Attributes:
        fields: the parameters that name a field or derive, each with the types that this field may have.
        remedies: by parameter, the remedy in the error for an absent parameter.
    """

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, extra="forbid", frozen=True, strict=True)

    fields: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    remedies: ClassVar[Mapping[str, str]] = {}

    @classmethod
    def of(cls, metric: Metric) -> Self:
        """Return the parameters of a (validated) metric."""
        given = {name: getattr(metric, name, None) for name in cls.model_fields}
        return cast(Self, cls.model_construct(**{name: value for name, value in given.items() if value is not None}))


@dataclass(frozen=True)
class Item:
    """The OpenAPI schema of the items of an answer that is a list. Each item is an object with these members."""

    name: str
    description: str
    members: Mapping[str, dict[str, Any]]


class Function:
    """An aggregate function.

    Attributes:
        name: the function's name in the spec.
        value: the description of the answer, for the documentation.
        error: the greatest error of the answer, for the documentation.
        takes: the types of fields that the function aggregates.
        alone: whether a metric may use the function without a field.
        parameters: the class of the parameters besides the field.
        example: values of the parameters, for the documentation.
        kinds: the kinds of the columns that the function stores for the metric's field.
        zero_filled: whether an empty window, in a query for empty windows too, is answered with 0 instead of null.
        item: the schema of the answer's items, or None if the answer is not a list.
    """

    name: ClassVar[str]
    value: ClassVar[str] = ""
    error: ClassVar[str] = "exact"
    takes: ClassVar[tuple[str, ...]] = ANY
    alone: ClassVar[bool] = False
    parameters: ClassVar[type[Parameters]] = Parameters
    example: ClassVar[Mapping[str, Any]] = {}
    kinds: ClassVar[tuple[PartialKind, ...]] = ()
    zero_filled: ClassVar[bool] = False
    item: ClassVar[Item | None] = None

    def needs(self, metric: Metric) -> tuple[Need, ...]:
        """Return the stored columns that a metric needs."""
        return tuple(Need(kind, metric.field) for kind in self.kinds)

    def answer(self, merged: Merged) -> str:
        """Return SQL for the metric's value, or for the bytes that `decoder` converts to it.

        A number that is too large for a double becomes null. If the value is a decimal, the SQL returns a scaled
        integer with the scale of the value's type.
        """
        raise NotImplementedError

    def answer_type(self, field_type: str | None) -> str:
        """Return the spec type of the metric's value, or `array`."""
        return str(field_type)

    def answer_range(self, field_type: str | None) -> tuple[float, float]:
        """Return the smallest and the largest possible value of the metric."""
        return -math.inf, math.inf

    def decoder(self, metric: Metric, field_type: str | None) -> Callable[[Any], Any] | None:
        """Return the function that converts the SQL result to the metric's value, or None if it is the value already.

        The function returns null for null.
        """
        return None
