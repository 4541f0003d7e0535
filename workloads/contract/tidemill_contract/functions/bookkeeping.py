"""Internal columns of window tables. SQL merges internal columns like the columns of metrics."""

from __future__ import annotations

from tidemill_contract.functions.base import PartialKind, StoredColumn, always

REVISION = "_revision"
"""The column that counts how often late events changed a closed window."""


def _added(column: StoredColumn, old: str, new: str) -> str:
    a, b = f"{old}.{column.quoted}", f"{new}.{column.quoted}"
    return f"coalesce({a} + {b}, {a}, {b})"


def _total(column: StoredColumn) -> str:
    return f"sum({column.quoted})::bigint"


def _both(column: StoredColumn, old: str, new: str) -> str:
    return f"{old}.{column.quoted} AND {new}.{column.quoted}"


def _every(column: StoredColumn) -> str:
    return f"bool_and({column.quoted})"


CHANGES = PartialKind(name="revision", sql_type=always("bigint"), merge=_added, rollup=_total)
WHOLE = PartialKind(name="whole", sql_type=always("boolean"), merge=_both, rollup=_every)
"""Queries compute this boolean column for a metric. If the row counts all events of the metric, the value is true."""
KINDS = (CHANGES, WHOLE)
