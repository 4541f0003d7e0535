"""Converts values of group columns between frames and Postgres.

Times are sent to Postgres as epoch milliseconds, and decimals as scaled integers.
"""

from __future__ import annotations

from tidemill_contract.decimals import scale_of, value_sql
from tidemill_contract.functions.partials import SQL_TYPES
from tidemill_contract.tables.definition import from_ms, to_ms


def transfer_type(kind: str) -> str:
    """Return the SQL type for sending values of a spec type to Postgres."""
    integers = kind == "timestamp" or scale_of(kind) is not None
    return "bigint" if integers else SQL_TYPES[kind]


def to_stored(kind: str, sent: str) -> str:
    """Return SQL that converts a sent value to the type of the column."""
    if kind == "timestamp":
        return from_ms(sent)
    scale = scale_of(kind)
    return sent if scale is None else value_sql(sent, scale)


def to_transfer(kind: str, stored: str) -> str:
    """Return SQL for converting a stored value to the type from `transfer_type`."""
    if kind == "timestamp":
        return to_ms(stored)
    scale = scale_of(kind)
    return stored if scale is None else f"({stored} * 1e{scale}::numeric)::bigint"
