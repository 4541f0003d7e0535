"""The definition of a table: columns, constraints, indexes and privileges in SQL."""

from __future__ import annotations

from dataclasses import dataclass

CLOCK_MS = "(extract(epoch FROM clock_timestamp()) * 1000)::bigint"
"""The SQL of the server's clock, in epoch milliseconds."""


NO_ELEMENT = -1
"""The value of `element` in a row about a whole record. Such a row has no array element."""
ELEMENT = ("element", f"integer NOT NULL DEFAULT {NO_ELEMENT}")
"""The column with the index of the element in the exploded array."""
SHOWN_ELEMENT = f"NULLIF(element, {NO_ELEMENT}) AS element"


@dataclass(frozen=True)
class Column:
    """A column. `definition` has the SQL type, the constraints and the default."""

    name: str
    definition: str


@dataclass(frozen=True)
class Table:
    """The desired state of a table. Columns can be added later, but never dropped or altered.

    Attributes:
        constraints: the SQL of the table constraints, which are created with the table.
        partition_by: the SQL of the partitioning, such as `RANGE ("window_start")`, or None.
        indexes: the name of each index, and the SQL after `ON <table>`.
        added_key_columns: the key columns that a later version of Tidemill added. The key is the first constraint.
    """

    name: str
    columns: tuple[Column, ...]
    constraints: tuple[str, ...] = ()
    partition_by: str | None = None
    storage: str = ""
    indexes: tuple[tuple[str, str], ...] = ()
    writer_privileges: str = ""
    reader_privileges: str = "SELECT"
    added_key_columns: tuple[str, ...] = ()


def columns(*pairs: tuple[str, str]) -> tuple[Column, ...]:
    """Return columns from pairs of name and definition."""
    return tuple(Column(name, definition) for name, definition in pairs)


def to_ms(column: str) -> str:
    """Return SQL that converts a timestamptz to epoch milliseconds."""
    return f"(extract(epoch FROM {column}) * 1000)::bigint"


def from_ms(expression: str) -> str:
    """Return SQL that converts epoch milliseconds to timestamptz. The result is exact for the years 1 to 9999."""
    day = 86_400_000
    days, rest = f"({expression}) / {day} * interval '1 day'", f"mod({expression}, {day}) * interval '1 ms'"
    return f"(timestamptz 'epoch' + {days} + {rest})"
