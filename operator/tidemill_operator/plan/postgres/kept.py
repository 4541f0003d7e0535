"""Retention and quotas of system tables, and the table `_kept` that counts their rows and bytes."""

from __future__ import annotations

from tidemill_contract.duration import parse_ms
from tidemill_contract.resource.amounts import parse_bytes
from tidemill_contract.resource.spec import PipelineSpec
from tidemill_contract.tables.kept import quota_of, told
from tidemill_operator.errors import Reason, TidemillError
from tidemill_operator.plan.model import Column, KeptRows, LiveSchema, Owner, Table

# Counts the rows of `_dead_letters` and `_anomalies` (`kind`), and those that are not stored. Totals are sums over
# `place`. Each writer has its own place, so that none waits: the batches of a partition (its number), the scanner of an
# aggregation (-1 less its id), the operator (-1). `bare` rows were stored without their value, `counted` ones not at
# all; `expired` ones were deleted by retention, `evicted` ones by quota. `full_at`: when the quota last took effect.
KEPT = Table(
    "_kept",
    (
        Column("kind", "text NOT NULL"),
        Column("place", "integer NOT NULL"),
        Column("rows", "bigint NOT NULL DEFAULT 0"),
        Column("bytes", "bigint NOT NULL DEFAULT 0"),
        Column("bare", "bigint NOT NULL DEFAULT 0"),
        Column("counted", "bigint NOT NULL DEFAULT 0"),
        Column("expired", "bigint NOT NULL DEFAULT 0"),
        Column("evicted", "bigint NOT NULL DEFAULT 0"),
        Column("full_at", "timestamptz"),
    ),
    ("PRIMARY KEY (kind, place)",),
    storage="fillfactor = 50",
    writer="SELECT, INSERT, UPDATE",
)


def kept_rows(spec: PipelineSpec) -> tuple[KeptRows, ...]:
    """Return the retention and quotas of a spec."""
    letters, anomalies = spec.dead_letters, spec.anomaly_history
    return (
        KeptRows("_dead_letters", parse_ms(letters.retention), parse_bytes(letters.quota)),
        KeptRows("_anomalies", parse_ms(anomalies.retention), parse_bytes(anomalies.quota)),
    )


def used_up(spec: PipelineSpec, live: LiveSchema | None, owner: Owner) -> list[TidemillError]:
    """Return messages about recent effects of quotas; empty for a schema of another owner."""
    found = []
    for kept in live.kept if live is not None and live.owner == owner else ():
        text, remedy = told(kept, quota_of(spec, kept.kind))
        if text:
            found.append(TidemillError(Reason.QUOTA_USED_UP, text, remedy))
    return found
