"""Collects the values of sampled events, by path, such as `user.id`."""

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

MAX_EVENTS = 50_000
MAX_VALUES = 1_000_000
"""Maximum number of values in a sample."""
MAX_FIELDS = 100
STRING, INTEGER, NUMBER, BOOLEAN, TIMESTAMP = "string", "integer", "number", "boolean", "timestamp"
STRINGS, ARRAY, OBJECT, OTHER = "strings", "array", "object", "other"


@dataclass(eq=False)
class Column:
    """The values of one member of the sampled events."""

    steps: Steps
    from_csv: bool = False
    decimal: str = POINT
    values: list[Any] = field(default_factory=list)
    kinds: Counter[str] = field(default_factory=Counter)

    @cached_property
    def distinct(self) -> Counter[Any]:
        """How often each value occurs. Blanks around texts are ignored."""
        return Counter(value.strip() if isinstance(value, str) else value for value in self.values)


@dataclass(frozen=True)
class Sample:
    """Columns that were collected from events of a file or a topic.

    Attributes:
        broken: how many lines were not JSON objects.
        left_out: paths that are invalid or overlap a more frequent path. For example, `a` and `a.b` overlap.
        surplus_paths: the least frequent paths, beyond the maximum number of fields.
    """

    columns: tuple[Column, ...]
    events: int
    broken: int
    is_complete: bool
    left_out: tuple[str, ...] = ()
    surplus_paths: tuple[str, ...] = ()


def collect(events: Iterable[Any], *, decimals: Mapping[str, str] | None = None) -> Sample:
    """Return the columns of the first events.

    Args:
        events: decoded events. Values other than objects count as broken.
        decimals: the decimal mark of each CSV column, or None if the events are not from a CSV file.
    """
    columns: dict[Steps, Column] = {}
    if decimals is not None:
        columns = {(name,): Column((name,), True, mark) for name, mark in decimals.items()}
    count = broken = values = 0
    is_complete = True
    for event in events:
        if count + broken >= MAX_EVENTS or values >= MAX_VALUES:
            is_complete = False
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
    usable, left_out, surplus_paths = _usable(columns.values())
    return Sample(usable, count, broken, is_complete, left_out, surplus_paths)


def _walk(event: Mapping[str, Any], parent: Steps, columns: dict[Steps, Column]) -> None:
    for name, value in event.items():
        if value is None:
            continue
        steps = (*parent, name)
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
        case dt.date():  # dt.datetime is a subclass of dt.date
            return TIMESTAMP
        case dict():
            return OBJECT
        case list():
            return STRINGS if value and all(isinstance(item, str | None) for item in value) else ARRAY
    return OTHER


def _usable(columns: Iterable[Column]) -> tuple[tuple[Column, ...], tuple[str, ...], tuple[str, ...]]:
    """Return the columns for fields, the unusable paths, and the paths beyond the maximum."""
    left_out: list[str] = []
    usable: list[Column] = []
    for column in columns:
        try:
            read_path(list(column.steps))
            usable.append(column)
        except ValueError:
            left_out.append(".".join(map(str, column.steps)))
    frequent = sorted(usable, key=lambda column: -max(len(column.values), column.kinds.total()))[:MAX_FIELDS]
    kept: dict[Steps, Column] = {}
    for column in frequent:
        if any(_overlap(column.steps, steps) for steps in kept):
            left_out.append(".".join(map(str, column.steps)))
        else:
            kept[column.steps] = column
    surplus_paths = [".".join(map(str, column.steps)) for column in usable if column not in frequent]
    return tuple(column for column in usable if column.steps in kept), tuple(left_out), tuple(surplus_paths)


def _overlap(steps: Steps, other: Steps) -> bool:
    short, long = sorted((steps, other), key=len)
    return long[: len(short)] == short
