"""System tables whose rows go again: for how long, how much of them, and the table that counts what went."""

from __future__ import annotations

from tidemill_contract.duration import parse_ms
from tidemill_contract.resource.amounts import parse_bytes
from tidemill_contract.resource.spec import PipelineSpec
from tidemill_contract.tables.kept import quota_of, told
from tidemill_operator.errors import Reason, TidemillError
from tidemill_operator.plan.model import Column, KeptRows, LiveSchema, Owner, Table

# What `_dead_letters` and `_anomalies` (`kind`) hold, and what is not in them any more or never was: sums over `place`.
# Whoever stores or removes has a row of its own, so that nobody waits: the batches of a partition, the scanner of an
# aggregation (-1 less its id), the operator (-1). `bare` were stored without their value, `counted` not at all;
# `expired` went by retention, `evicted` by quota. `full_at`: when the quota last took something.
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
    """The bounds that a spec asks for."""
    letters, anomalies = spec.dead_letters, spec.anomaly_history
    return (
        KeptRows("_dead_letters", parse_ms(letters.retention), parse_bytes(letters.quota)),
        KeptRows("_anomalies", parse_ms(anomalies.retention), parse_bytes(anomalies.quota)),
    )


def used_up(spec: PipelineSpec, live: LiveSchema | None, owner: Owner) -> list[TidemillError]:
    """What quotas took lately, in words; of another owner's schema nothing."""
    found = []
    for kept in live.kept if live is not None and live.owner == owner else ():
        text, remedy = told(kept, quota_of(spec, kept.kind))
        if text:
            found.append(TidemillError(Reason.QUOTA_USED_UP, text, remedy))
    return found
