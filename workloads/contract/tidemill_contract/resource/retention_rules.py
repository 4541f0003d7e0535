"""The rules of `spec.deadLetters` and `spec.anomalyHistory`: the minimum retention and the minimum quota."""

from __future__ import annotations

from collections.abc import Iterator

from tidemill_contract.duration import parse_ms
from tidemill_contract.resource.amounts import parse_bytes
from tidemill_contract.resource.faults import Fault
from tidemill_contract.resource.parts import Parts

MIN_RETENTION, MIN_QUOTA = "1m", "1Mi"


def retention_faults(parts: Parts, _columns: object, _limits: object) -> Iterator[Fault]:
    """Yield a fault for each retention or quota that is too small."""
    for path, settings in (("spec.deadLetters", parts.dead_letters), ("spec.anomalyHistory", parts.anomaly_history)):
        if settings is None:
            continue
        if parse_ms(settings.retention) < parse_ms(MIN_RETENTION):
            yield Fault(
                f"{path}.retention",
                settings.retention,
                "is too short: rows would expire before anybody reads them",
                f"write {MIN_RETENTION} or more",
            )
        if parse_bytes(settings.quota) < parse_bytes(MIN_QUOTA):
            yield Fault(f"{path}.quota", settings.quota, "is too small to store records", f"write {MIN_QUOTA} or more")
