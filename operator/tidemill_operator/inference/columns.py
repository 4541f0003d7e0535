"""Collects the values of each member of sampled events, by the path to the member."""

from __future__ import annotations

import datetime as dt
import decimal
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from tidemill_contract.resource.paths import MAX_STEPS, Steps, read_path
from tidemill_operator.event_files.numbers import POINT

MOST_EVENTS = 50_000
MOST_VALUES = 1_000_000
"""A sample ends at this number of events, or at this number of values, whichever comes first."""
MOST_FIELDS = 100
STRING, INTEGER, NUMBER, BOOLEAN, TIMESTAMP = "string", "integer", "number", "boolean", "timestamp"
STRINGS, ARRAY, OBJECT, OTHER = "strings", "array", "object", "other"


@dataclass(eq=False)
class Column:
    """The values of one member.

    Attributes:
        steps: the path to the member in an event.
        cells: whether the values are texts of a file without types, such as CSV.
        decimal: the decimal mark of the cells.
        values: the values of the events that have the member, in the order of the events.
        kinds: the number of values of each kind.
    """

    steps: Steps
    cells: bool = False
    decimal: str = POINT
    values: list[Any] = field(default_factory=list)
    kinds: Counter[str] = field(default_factory=Counter)

    @cached_property
    def distinct(self) -> Counter[Any]:
        """The number of times that each value occurs. Blanks around texts are removed."""
        return Counter(value.strip() if isinstance(value, str) else value for value in self.values)


@dataclass(frozen=True)
class Sample:
    """Columns that were collected from events of a file or a topic.

    Attributes:
        columns: the columns, in the order in which their members occur first.
        events: how many objects were read.
        broken: how many lines were not JSON objects.
        whole: whether all events were read.
        left_out: the members that no path can name, and those beyond the limit.
    """

    columns: tuple[Column, ...]
    events: int
    broken: int
    whole: bool
    left_out: tuple[str, ...] = ()


def collect(events: Iterable[Any], *, decimals: Mapping[str, str] | None = None) -> Sample:
    """Return the columns of the first events.

    Args:
        events: decoded events. A value that is not an object counts as broken.
        decimals: the decimal marks of the columns of CSV, or None if the values have types.
    """
    columns: dict[Steps, Column] = {}
    if decimals is not None:
        columns = {(name,): Column((name,), True, mark) for name, mark in decimals.items()}
    count = broken = values = 0
    whole = True
    for event in events:
        if count + broken >= MOST_EVENTS or values >= MOST_VALUES:
            whole = False
            break
        if not isinstance(event, Mapping):
            broken += 1
            continue
        count += 1
        values += len(event)
        if decimals is None:
            _walk(event, (), columns)
            continue
        for name, cell in event.items():
            if cell.strip():
                columns[(name,)].values.append(cell)
    kept, left_out = _usable(columns.values())
    return Sample(kept, count, broken, whole, left_out)


def _walk(event: Mapping[str, Any], before: Steps, columns: dict[Steps, Column]) -> None:
    for name, value in event.items():
        if value is None:
            continue
        steps = (*before, name)
        kind = _kind(value)
        if kind == OBJECT and value and len(steps) < MAX_STEPS:
            _walk(value, steps, columns)
            continue
        column = columns.get(steps)
        if column is None:
            column = columns[steps] = Column(steps)
        column.kinds[kind] += 1
        if kind not in (OBJECT, ARRAY, OTHER):
            column.values.append(tuple(value) if kind == STRINGS else value)


def _kind(value: Any) -> str:
    match value:
        case bool():
            return BOOLEAN
        case str():
            return STRING
        case int():
            return INTEGER
        case float() | decimal.Decimal():
            return NUMBER
        case dt.date():  # includes dt.datetime, which is a subclass
            return TIMESTAMP
        case dict():
            return OBJECT
        case list():
            return STRINGS if value and all(isinstance(item, str | None) for item in value) else ARRAY
    return OTHER


def _usable(columns: Iterable[Column]) -> tuple[tuple[Column, ...], tuple[str, ...]]:
    """Return the columns that fields can be read from, and the names of the others.

    If a member is an object in some events and a plain value in others, the more frequent form is kept.
    """
    left_out: list[str] = []
    usable: list[Column] = []
    for column in columns:
        try:
            read_path(list(column.steps))
            usable.append(column)
        except ValueError:
            left_out.append(".".join(map(str, column.steps)))
    frequent = sorted(usable, key=lambda column: -max(len(column.values), column.kinds.total()))[:MOST_FIELDS]
    kept: dict[Steps, Column] = {}
    for column in frequent:
        if any(_overlap(column.steps, steps) for steps in kept):
            left_out.append(".".join(map(str, column.steps)))
        else:
            kept[column.steps] = column
    left_out += [".".join(map(str, column.steps)) for column in usable if column not in frequent]
    return tuple(column for column in usable if column.steps in kept), tuple(left_out)


def _overlap(steps: Steps, other: Steps) -> bool:
    """Return whether the paths are equal, or one of them is a prefix of the other."""
    short, long = sorted((steps, other), key=len)
    return long[: len(short)] == short
