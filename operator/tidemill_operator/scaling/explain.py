"""Explain a scaling decision in words and as `status.scaling`."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass
from typing import Any

from tidemill_contract.duration import format_ms
from tidemill_operator.scaling.model import Decision, Load, Need, ScalingReason, Settings
from tidemill_operator.scaling.need import BAND, rise_seconds
from tidemill_operator.scaling.state import State

MAX_MESSAGE = 1024
_ADVICE: dict[ScalingReason, str] = {
    ScalingReason.SCALED_UP: (
        "Replicas are removed when they have been unnecessary throughout the time in scaleDownStabilization."
    ),
    ScalingReason.SCALED_DOWN: "More lag or more arrivals add replicas again.",
    ScalingReason.STEP_LIMITED: (
        "The rest of the change follows after the cooldown; a larger {limit} allows larger steps."
    ),
    ScalingReason.WITHIN_TARGET: "Replicas are added if lag or arrivals grow, or if a replica becomes slower.",
    ScalingReason.AT_MAXIMUM: "Raise maxReplicas to allow more.",
    ScalingReason.LIMITED_BY_PARTITIONS: (
        "A replica reads whole partitions: raise source.topic.partitions, or spread the events over more keys."
    ),
    ScalingReason.AT_MINIMUM: "Lower minReplicas to allow fewer.",
    ScalingReason.COOLDOWN: "Replicas are added when scaleUpCooldown is over, if they are still needed.",
    ScalingReason.STABILIZING: (
        "Replicas are removed when they have been unnecessary throughout the time in scaleDownStabilization."
    ),
    ScalingReason.REBALANCING: "The change is made when the rebalance is over.",
    ScalingReason.ROLLOUT_IN_PROGRESS: "The change is made when all replicas are ready.",
    ScalingReason.DATABASE_SATURATED: (
        "More replicas would only wait for Postgres: give it more resources, or group by fewer columns."
    ),
    ScalingReason.STAGE_WAITS: "More replicas would not help: the condition ProcessorsReady says what to correct.",
    ScalingReason.FIGURES_MISSING: "Scaling continues when Kafka and Postgres answer.",
    ScalingReason.SCALED_TO_ZERO: "The next event starts a replica; windows do not close until then.",
    ScalingReason.WOKEN_BY_ARRIVAL: "If no events arrive for the time in scaleToZeroAfter, all replicas stop.",
    ScalingReason.DRY_RUN: "Remove dryRun to make the change.",
    ScalingReason.EXTERNAL: "Set mode: lag to let Tidemill decide.",
}


def explain(decision: Decision) -> str:
    """Return a text with the decision's reason, its calculation, and advice."""
    if decision.desired != decision.current:
        what = f"{decision.current} → {decision.desired} replicas"
    else:
        what = f"{decision.current} replica{'s' if decision.current != 1 else ''}"
    limit = f", limited by {decision.limited_by}" if decision.limited_by else ""
    advice = _ADVICE[decision.reason].format(limit=decision.limited_by or "a larger step")
    return "\n".join([f"{what}: {decision.reason}{limit}", *decision.lines, advice])


def scaling_status(settings: Settings, decision: Decision, state: State) -> dict[str, Any]:
    """Return `status.scaling`. Figures are rounded, so that the status seldom changes."""
    status: dict[str, Any] = {
        "mode": settings.mode,
        "current": decision.current,
        "desired": decision.desired,
        "reason": decision.reason.value,
        "message": explain(decision)[:MAX_MESSAGE],
    }
    if decision.need is not None:
        status["need"] = decision.need
    if decision.limited_by:
        status["limitedBy"] = decision.limited_by
    if decision.load is not None:
        status["lag"] = _rounded(decision.load.lag)
        status["rate"] = _rounded(decision.load.rate)
        if decision.load.rate_per_replica is not None:
            status["ratePerReplica"] = _rounded(decision.load.rate_per_replica)
    if state.changed_at is not None:
        moment = dt.datetime.fromtimestamp(state.changed_at, dt.UTC)
        status["lastScaleTime"] = moment.strftime("%Y-%m-%dT%H:%M:%SZ")
    return status


def _rounded(number: float) -> int:
    rounded = round(number)
    return int(float(f"{rounded:.1e}")) if rounded >= 100 else rounded


@dataclass(frozen=True)
class Bounds:
    """The limits and the numbers of replicas behind a decision.

    Attributes:
        floor: lowest allowed number of replicas.
        ceiling: highest allowed number of replicas.
        partitions: number of partitions.
        current: current number of replicas.
        target: number of replicas that the load requires, within the limits.
        recent_max: highest number of replicas needed during the waiting time.
        wait_seconds: waiting time before replicas are removed.
        patience: factor of the waiting time, which doubles if removed replicas are soon needed again.
    """

    floor: int
    ceiling: int
    partitions: int
    current: int
    target: int
    recent_max: int
    wait_seconds: float
    patience: int


EXTERNAL_LINES = ("mode is external: an external autoscaler sets the replicas",)


def calculation_lines(settings: Settings, load: Load, need: Need, bounds: Bounds) -> tuple[str, ...]:
    """Return the calculation, line by line."""
    current, target, recent_max = bounds.current, bounds.target, bounds.recent_max
    rate = load.rate_per_replica
    unknown = "no replica was busy yet, so the speed of a replica is unknown"
    speed = unknown if rate is None else f"a busy replica processes {_rounded(rate):,} events/s"
    lines = [f"lag {_rounded(load.lag):,} events, {_rounded(load.rate):,} events/s arrive, {speed}"]
    lines += _need_lines(settings, load, need)
    allowed = f"allowed {bounds.floor} to {bounds.ceiling} with {bounds.partitions} partitions"
    lines.append(
        f"needed {need.replicas}, {allowed}, now {target}"
        + (f", at most {recent_max} within the waiting time" if recent_max != target else "")
    )
    if target < current:
        removed = current - recent_max or current - target
        lines.append(
            f"{removed} of {current} are removed if not needed for {_duration(bounds.wait_seconds)}; fewer wait longer"
        )
    if target > current and load.arrival_growth:
        ahead = rise_seconds(settings)
        lines.append(
            f"arrivals rise: {_rounded(load.arrival_growth * ahead):,} events/s more in {_duration(ahead)} are included"
        )
    return (*lines, *_limits(load, need, bounds))


def _limits(load: Load, need: Need, bounds: Bounds) -> list[str]:
    lines, target, patience = [], bounds.target, bounds.patience
    if need.has_hot_partition:
        lines.append("an overloaded partition adds at most one replica, because only one replica can read a partition")
    if need.useful > target and target < bounds.ceiling:
        high = need.utilisation + BAND
        lines.append(f"{target} replicas are enough, at no more than {high:.0%} use, if partitions are spread evenly")
    if patience > 1:
        lines.append(f"removed replicas were soon needed again: the next removal waits {patience} times as long")
    if load.stuck:
        shown = ", ".join(str(partition) for partition in load.stuck[:8])
        lines.append(f"partitions {shown} make no progress: more replicas would not help, so their lag does not count")
    return lines


def _need_lines(settings: Settings, load: Load, need: Need) -> list[str]:
    if settings.freshness_seconds is not None:
        fresh = "unknown" if load.freshness_seconds is None else f"{load.freshness_seconds:.1f} s"
        first = f"for freshness {_duration(settings.freshness_seconds)} (now {fresh}): {sum(need.by_lag):.1f} replicas"
    else:
        first = f"for the lag, {settings.lag_threshold:,} events each: {sum(need.by_lag):.1f} replicas"
    within = f"within {_duration(settings.catch_up_seconds)}, at {settings.target_utilisation:.0%} use"
    return [first, f"for arrivals and catching up {within}: {sum(need.by_rate):.1f} replicas"]


def _duration(seconds: float) -> str:
    return format_ms(round(seconds * 1000))
