"""`_kept`: the numbers and sizes of stored dead letters and anomalies, which have quotas."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tidemill_contract.resource.spec import PipelineSpec
from tidemill_contract.tables.definition import Table, columns

DEAD_LETTERS, ANOMALIES = "_dead_letters", "_anomalies"
TABLE = Table(
    "_kept",
    columns(
        ("kind", "text NOT NULL"),
        ("place", "integer NOT NULL"),
        ("rows", "bigint NOT NULL DEFAULT 0"),
        ("bytes", "bigint NOT NULL DEFAULT 0"),
        ("bare", "bigint NOT NULL DEFAULT 0"),
        ("counted", "bigint NOT NULL DEFAULT 0"),
        ("expired", "bigint NOT NULL DEFAULT 0"),
        ("evicted", "bigint NOT NULL DEFAULT 0"),
        ("full_at", "timestamptz"),
    ),
    ("PRIMARY KEY (kind, place)",),
    storage="fillfactor = 50",
    writer_privileges="SELECT, INSERT, UPDATE",
)
"""The numbers and sizes of rows in `_dead_letters` and `_anomalies`, by `kind` of table and by writer. Each writer has
its own `place`, so that no writer waits for another writer. For batches, `place` is the partition. For the scanner of
aggregation 7, `place` is -8 (-1 - id). For the operator, `place` is -1. The columns count the rows that are stored
(`rows`), stored without their value (`bare`), not stored (`counted`), deleted by retention (`expired`) and deleted by
quota (`evicted`). `full_at` is the time at which the quota last took effect."""

USAGE_QUERY = (
    "SELECT kind, sum(bytes)::bigint, sum(bare)::bigint, sum(counted)::bigint, sum(expired)::bigint,"
    " sum(evicted)::bigint, coalesce(max(full_at) > now() - interval '1 day', false) FROM {} GROUP BY kind"
)
"""The SQL that selects the totals of each kind from `_kept`."""

_LABELS: Mapping[str, tuple[str, str]] = {
    DEAD_LETTERS: ("dead letters", "spec.deadLetters.quota"),
    ANOMALIES: ("anomalies", "spec.anomalyHistory.quota"),
}
_REMEDIES = {
    DEAD_LETTERS: "correct the senders of the refused events, or raise the quota",
    ANOMALIES: "raise the rules' thresholds or cooldowns, or the quota",
}


@dataclass(frozen=True)
class QuotaUsage:
    """The totals of one table.

    Attributes:
        bare: the number of dead letters that were stored without their value.
        counted: the number of rows that were only counted, not stored.
        expired: the number of rows that were deleted after their retention.
        evicted: the number of rows that were deleted because of the quota.
        full: whether the quota took effect within the last day.
    """

    kind: str
    bytes: int
    bare: int
    counted: int
    expired: int
    evicted: int
    full: bool


def stored_bytes(schema: str) -> str:
    """Select the total size of the rows in `_dead_letters` or `_anomalies`.

    Parameter: kind (the table's name). Column: bytes.
    """
    return f"SELECT coalesce(sum(bytes), 0)::bigint FROM {schema}._kept WHERE kind = %s"


def add(schema: str) -> str:
    """Increase the totals of one table and one writer.

    Parameters: kind (the table's name), place (the writer), increases of `rows`, `bytes`, `bare` and `counted`, whether
    the quota took effect.
    """
    return (
        f"INSERT INTO {schema}._kept AS k (kind, place, rows, bytes, bare, counted, full_at)"
        " VALUES (%s, %s, %s, %s, %s, %s, CASE WHEN %s THEN now() END) ON CONFLICT (kind, place) DO UPDATE SET"
        " rows = k.rows + EXCLUDED.rows, bytes = k.bytes + EXCLUDED.bytes, bare = k.bare + EXCLUDED.bare,"
        " counted = k.counted + EXCLUDED.counted, full_at = coalesce(EXCLUDED.full_at, k.full_at)"
    )


def quota_of(spec: PipelineSpec, kind: str) -> str:
    """Return the quota that the spec sets for a table, such as `1Gi`."""
    return spec.dead_letters.quota if kind == DEAD_LETTERS else spec.anomaly_history.quota


def quota_message(usage: QuotaUsage, quota: str) -> tuple[str, str]:
    """Return a message and a remedy. If the quota took no effect within the last day, return empty texts."""
    if not usage.full or usage.kind not in _LABELS:
        return "", ""
    what, field = _LABELS[usage.kind]
    parts = [(usage.counted, "were only counted"), (usage.bare, "kept without value"), (usage.evicted, "removed early")]
    numbers = ", ".join(f"{number:,} {how}" for number, how in parts if number)
    return f"{field} of {quota} is used up: of the {what} so far {numbers}", _REMEDIES[usage.kind]


def read_usage(rows: list[tuple[Any, ...]]) -> tuple[QuotaUsage, ...]:
    """Convert the rows of `USAGE_QUERY` to `QuotaUsage` objects."""
    return tuple(QuotaUsage(*row) for row in sorted(rows) if row[0] in _LABELS)
