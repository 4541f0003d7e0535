"""What an aggregate function answers for, and what a kind of stored column does.

A function is one object: its parameters, the fields it takes, the columns it stores, how its answer is read from them
and how it is documented. How columns merge and roll up belongs to their kind, which functions share. The registry lists
the functions; the spec's enum, the rules, the CRD, the OpenAPI schema and the pages are made from it.
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
"""The type of a field that is an array of strings, of which each counts."""
WITH_STRINGS: tuple[str, ...] = (*ANY, STRINGS)
ORDERED: tuple[str, ...] = ("integer", "number", "decimal", "timestamp", "string")

EXACT_INTEGERS = 2**53
"""Integers up to this are doubles."""

SQL_TYPES: dict[str, str] = {
    "string": 'text COLLATE "C"',
    "integer": "bigint",
    "number": "double precision",
    "boolean": "boolean",
    "timestamp": "timestamptz",
    **dict.fromkeys(DECIMALS, "numeric"),
}
"""By the type, with the scale of a decimal."""


class Metric(Protocol):
    """A metric as the spec has it; the parameters of its function are further attributes (see `Parameters.of`)."""

    @property
    def name(self) -> str:
        """Name in answers."""

    @property
    def function(self) -> str:
        """Name of its function."""

    @property
    def field(self) -> str | None:
        """Field that it runs over."""

    @property
    def where(self) -> str | None:
        """Condition that events must fulfil to count; None: all count."""


class StoredColumn(Protocol):
    """A stored column, as the SQL of its kind names it."""

    @property
    def kind(self) -> str:
        """Name of its kind."""

    @property
    def sql_type(self) -> str:
        """Type of its values."""

    @property
    def listed(self) -> int:
        """How many values are listed of it at most."""

    @property
    def bounds(self) -> tuple[float, ...]:
        """Of counts between bounds, these."""

    @property
    def quoted(self) -> str:
        """Its quoted name."""

    def sibling(self, kind: str) -> str:
        """The quoted column of the same field with another kind."""


@dataclass(frozen=True, kw_only=True)
class PartialKind:
    """A kind of stored column: its type, and the SQL by which rows of it become one. No such SQL may raise.

    Attributes:
        name: first part of the columns' names.
        sql_type: by the type of the field.
        merge: the stored value of row `old` with that of row `new` (aliases), null-safe.
        rollup: the value of many rows, as an aggregate.
        ordered: whether processors fill it from events in the order of their times.
        refining: whether it only makes a value more exact, which is right without: a null in it counts as zero.
        sketch: whether it holds frames of `sketches`.
    """

    name: str
    sql_type: Callable[[str], str]
    merge: Callable[[StoredColumn, str, str], str]
    rollup: Callable[[StoredColumn], str]
    ordered: bool = False
    refining: bool = False
    sketch: bool = False


def always(sql_type: str) -> Callable[[str], str]:
    """The same SQL type for fields of every type."""
    return lambda _: sql_type


def like_field(field_type: str) -> str:
    """The SQL type of a field's own values; decimals are stored as scaled integers."""
    return SQL_TYPES["integer" if scale_of(field_type) is not None else field_type]


@dataclass(frozen=True)
class Need:
    """A column that a metric is made of.

    Attributes:
        field: the metric's field; None: the column is of events, not of a field.
        by: a second field that tells columns of the first one apart.
        source: the field whose values the column holds; None: `field`.
        listed: how many values are asked of it at most.
        bounds: of counts between bounds, these.
        where: the metric's condition, normalised. `needed_partials` sets it; functions need not.
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
    """Merged columns, as the SQL of an answer names them.

    Attributes:
        columns: the quoted column by kind.
        field_type: type of the metric's field; None: it has none.
        seconds: SQL of the window's length in seconds, a double.
    """

    columns: Mapping[str, str]
    field_type: str | None
    seconds: str


class Parameters(BaseModel):
    """What a function takes besides a field: members of the metric, each with its bounds and its description.

    Attributes:
        fields: members that name a field or derive, with the types that it may have.
        remedies: what to do about a member that is needed and absent.
    """

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, extra="forbid", frozen=True, strict=True)

    fields: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    remedies: ClassVar[Mapping[str, str]] = {}

    @classmethod
    def of(cls, metric: Metric) -> Self:
        """The parameters of a (validated) metric."""
        given = {name: getattr(metric, name, None) for name in cls.model_fields}
        return cast(Self, cls.model_construct(**{name: value for name, value in given.items() if value is not None}))


@dataclass(frozen=True)
class Item:
    """What a list that is answered holds: the OpenAPI schema of an object, with the schemas of its members."""

    name: str
    description: str
    members: Mapping[str, dict[str, Any]]


class Function:
    """An aggregate function.

    Attributes:
        name: in the spec.
        value: what it answers, for the documentation; `error`: how far off that may be at most.
        takes: types of fields that it runs over; `alone`: whether it also does without a field.
        parameters: what else it takes, with an `example` of it.
        kinds: of the columns that it stores, of the metric's field.
        zero_filled: whether it is zero of a window without events, where a query asks for those.
        item: what its answer is a list of; None: it is no list.
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
        """The columns that a metric is made of."""
        return tuple(Need(kind, metric.field) for kind in self.kinds)

    def answer(self, merged: Merged) -> str:
        """SQL of the answer; a value beyond a double is null. Of what has a decoder, what that reads.

        A decimal is answered as a scaled integer, with the scale of the answer's type.
        """
        raise NotImplementedError

    def answer_type(self, field_type: str | None) -> str:
        """The spec type of the answer, or `array`."""
        return str(field_type)

    def answer_range(self, field_type: str | None) -> tuple[float, float]:
        """The least and the greatest that the answer can be."""
        return -math.inf, math.inf

    def decoder(self, metric: Metric, field_type: str | None) -> Callable[[Any], Any] | None:
        """What makes the answer of what SQL gives, null of null; None: SQL gives the answer itself."""
        return None
