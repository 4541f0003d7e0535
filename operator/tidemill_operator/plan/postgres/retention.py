"""Plan the retention and quotas of system tables."""

from __future__ import annotations

from tidemill_contract.duration import parse_ms
from tidemill_contract.resource.amounts import parse_bytes
from tidemill_contract.resource.spec import PipelineSpec
from tidemill_contract.tables.quotas import quota_message, quota_of
from tidemill_operator.errors import Reason, TidemillError
from tidemill_operator.plan.live import LiveSchema, Owner
from tidemill_operator.plan.model import TableRetention


def table_retentions(spec: PipelineSpec) -> tuple[TableRetention, ...]:
    """Return the retention and quotas of a spec."""
    letters, anomalies = spec.dead_letters, spec.anomaly_history
    return (
        TableRetention("_dead_letters", parse_ms(letters.retention), parse_bytes(letters.quota)),
        TableRetention("_anomalies", parse_ms(anomalies.retention), parse_bytes(anomalies.quota)),
    )


def quota_errors(spec: PipelineSpec, live: LiveSchema | None, owner: Owner) -> list[TidemillError]:
    """Return an error for each quota that was used up recently."""
    errors = []
    for usage in live.stored_totals if live is not None and live.owner == owner else ():
        text, remedy = quota_message(usage, quota_of(spec, usage.kind))
        if text:
            errors.append(TidemillError(Reason.QUOTA_USED_UP, text, remedy))
    return errors
