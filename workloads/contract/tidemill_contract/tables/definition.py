"""What a table is: its columns, constraints, indexes and privileges, as text; and how times are read and written."""

from __future__ import annotations

from dataclasses import dataclass

CLOCK_MS = "(extract(epoch FROM clock_timestamp()) * 1000)::bigint"
"""SQL: the server's clock, epoch milliseconds."""


@dataclass(frozen=True)
class Column:
    """A column; `definition` is its SQL type with constraints and default."""

    name: str
    definition: str


@dataclass(frozen=True)
class Table:
    """A table as it should be. Columns may be added later, never dropped or altered.

    Attributes:
        constraints: table constraints, verbatim SQL, made with the table.
        partition_by: verbatim, e.g. `RANGE ("window_start")`; None: not partitioned.
        storage: verbatim storage parameters, e.g. `fillfactor = 70`.
        indexes: (name, verbatim `ON …` definition after the table's name, e.g. `("published") WHERE NOT published`).
        writer / reader: privileges granted to the two roles, e.g. `SELECT, INSERT, UPDATE`; empty: none.
    """

    name: str
    columns: tuple[Column, ...]
    constraints: tuple[str, ...] = ()
    partition_by: str | None = None
    storage: str = ""
    indexes: tuple[tuple[str, str], ...] = ()
    writer: str = ""
    reader: str = "SELECT"


def columns(*pairs: tuple[str, str]) -> tuple[Column, ...]:
    """Columns out of names and definitions."""
    return tuple(Column(name, definition) for name, definition in pairs)


def to_ms(column: str) -> str:
    """SQL: a timestamptz as epoch milliseconds."""
    return f"(extract(epoch FROM {column}) * 1000)::bigint"


def from_ms(expression: str) -> str:
    """SQL: epoch milliseconds as timestamptz, exact for the years 1 to 9999 (a float of seconds is not)."""
    day = 86_400_000
    days, rest = f"({expression}) / {day} * interval '1 day'", f"mod({expression}, {day}) * interval '1 ms'"
    return f"(timestamptz 'epoch' + {days} + {rest})"


def moment(expression: str) -> str:
    """SQL: epoch milliseconds as timestamptz, exactly: `to_timestamp` counts in floats of seconds."""
    days = f"({expression} / 86400000) * interval '1 day'"
    rest = f"mod({expression}, 86400000) * interval '1 millisecond'"
    return f"(timestamptz 'epoch' + {days} + {rest})"
