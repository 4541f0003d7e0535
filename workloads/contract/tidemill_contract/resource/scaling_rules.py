"""The rules of `scaling`: the number of replicas, the durations, and the freshness target."""

from __future__ import annotations

from collections.abc import Iterator

from tidemill_contract.duration import format_ms, parse_ms
from tidemill_contract.resource.faults import Fault
from tidemill_contract.resource.spec import ScalingSpec

_BOUNDS = {
    "catchUp": ("10s", "1d"),
    "scaleUpCooldown": ("0s", "1h"),
    "scaleDownStabilization": ("0s", "1d"),
    "pollInterval": ("1s", "5m"),
    "lookback": ("2s", "1h"),
    "scaleToZeroAfter": ("10s", "30d"),
}


def scaling_faults(
    scaling: ScalingSpec, partitions: int | None, *, flush_ms: int, path: str = "spec.processor.scaling"
) -> Iterator[Fault]:
    """Yield a fault for each broken rule about scaling. `partitions` is None if the spec does not set it."""
    for member, value in (("minReplicas", scaling.min_replicas), ("maxReplicas", scaling.max_replicas)):
        if partitions is not None and value is not None and value > partitions:
            message = f"is more than the topic's {partitions} partitions"
            yield Fault(f"{path}.{member}", value, message, f"write at most {partitions}")
    if scaling.max_replicas is not None and scaling.min_replicas > scaling.max_replicas:
        message = f"is more than maxReplicas {scaling.max_replicas}"
        yield Fault(f"{path}.minReplicas", scaling.min_replicas, message, "lower minReplicas, or raise maxReplicas")
    if scaling.min_replicas == 0 and scaling.scale_to_zero_after is None and scaling.mode == "lag":
        remedy = "write 1, or add scaleToZeroAfter, such as 15m"
        yield Fault(f"{path}.minReplicas", 0, "is 0, but scaleToZeroAfter is not set", remedy)
    durations = {
        "catchUp": scaling.catch_up,
        "scaleUpCooldown": scaling.scale_up_cooldown,
        "scaleDownStabilization": scaling.scale_down_stabilization,
        "pollInterval": scaling.poll_interval,
        "lookback": scaling.lookback,
        "scaleToZeroAfter": scaling.scale_to_zero_after,
    }
    for member, text in durations.items():
        least, most = _BOUNDS[member]
        if text is not None and not parse_ms(least) <= parse_ms(text) <= parse_ms(most):
            yield Fault(f"{path}.{member}", text, "is out of bounds", f"write {least} to {most}")
    if parse_ms(scaling.lookback) < 2 * parse_ms(scaling.poll_interval):
        message = f"is too short for two polls: pollInterval is {scaling.poll_interval}"
        yield Fault(
            f"{path}.lookback", scaling.lookback, message, "make lookback at least twice as long as pollInterval"
        )
    if scaling.target is not None and parse_ms(scaling.target.freshness) < 2 * flush_ms:
        message = "cannot be met: results are committed once per spec.processor.flushInterval"
        remedy = f"write {format_ms(2 * flush_ms)} or more, or shorten flushInterval"
        yield Fault(f"{path}.target.freshness", scaling.target.freshness, message, remedy)
