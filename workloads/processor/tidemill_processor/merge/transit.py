"""How values of group columns get from frames to Postgres: times as epoch milliseconds, decimals as scaled integers.

No text has to be parsed then.
"""

from __future__ import annotations

from tidemill_contract.decimals import scale_of, value_sql
from tidemill_contract.functions.partials import SQL_TYPES
from tidemill_contract.tables.definition import from_ms, to_ms


def sent_as(kind: str) -> str:
    """The SQL type in which values of a type are sent."""
    integers = kind == "timestamp" or scale_of(kind) is not None
    return "bigint" if integers else SQL_TYPES[kind]


def stored(kind: str, sent: str) -> str:
    """SQL of the stored value of a sent one."""
    if kind == "timestamp":
        return from_ms(sent)
    scale = scale_of(kind)
    return sent if scale is None else value_sql(sent, scale)


def sent_again(kind: str, stored: str) -> str:
    """SQL of the sent value of a stored one."""
    if kind == "timestamp":
        return to_ms(stored)
    scale = scale_of(kind)
    return stored if scale is None else f"({stored} * 1e{scale}::numeric)::bigint"
