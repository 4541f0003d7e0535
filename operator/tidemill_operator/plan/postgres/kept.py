"""Plan the retention and quotas of system tables."""

from __future__ import annotations

from tidemill_contract.duration import parse_ms
from tidemill_contract.resource.amounts import parse_bytes
from tidemill_contract.resource.spec import PipelineSpec
from tidemill_contract.tables.kept import quota_of, told
from tidemill_operator.errors import Reason, TidemillError
from tidemill_operator.plan.live import LiveSchema, Owner
from tidemill_operator.plan.model import KeptRows


def kept_rows(spec: PipelineSpec) -> tuple[KeptRows, ...]:
    """Return the retention and quotas of a spec."""
    letters, anomalies = spec.dead_letters, spec.anomaly_history
    return (
        KeptRows("_dead_letters", parse_ms(letters.retention), parse_bytes(letters.quota)),
        KeptRows("_anomalies", parse_ms(anomalies.retention), parse_bytes(anomalies.quota)),
    )


def used_up(spec: PipelineSpec, live: LiveSchema | None, owner: Owner) -> list[TidemillError]:
    """Return an error for each quota that was used up recently."""
    errors = []
    for kept in live.kept if live is not None and live.owner == owner else ():
        text, remedy = told(kept, quota_of(spec, kept.kind))
        if text:
            errors.append(TidemillError(Reason.QUOTA_USED_UP, text, remedy))
    return errors
