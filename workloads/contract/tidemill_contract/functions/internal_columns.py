"""Internal columns of window tables. SQL merges internal columns like the columns of metrics."""

from __future__ import annotations

from tidemill_contract.functions.base import PartialKind, StoredColumn, fixed_type
from tidemill_contract.functions.counting import rollup_counts

REVISION = "_revision"
"""The column that counts how often late events changed a closed window."""


def _merge_sum(column: StoredColumn, old: str, new: str) -> str:
    a, b = f"{old}.{column.quoted}", f"{new}.{column.quoted}"
    return f"coalesce({a} + {b}, {a}, {b})"


def _merge_and(column: StoredColumn, old: str, new: str) -> str:
    return f"{old}.{column.quoted} AND {new}.{column.quoted}"


def _rollup_and(column: StoredColumn) -> str:
    return f"bool_and({column.quoted})"


REVISION_KIND = PartialKind(name="revision", sql_type=fixed_type("bigint"), merge=_merge_sum, rollup=rollup_counts)
COMPLETE_KIND = PartialKind(name="whole", sql_type=fixed_type("boolean"), merge=_merge_and, rollup=_rollup_and)
"""Queries compute this boolean column for a metric. If the row counts all events of the metric, the value is true."""
KINDS = (REVISION_KIND, COMPLETE_KIND)
