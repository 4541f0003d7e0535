"""Compute how many replicas a load requires.

The formula is need = max(ceil(L / lagThreshold), ceil((in + L / catchUp) / (targetUtilization · ratePerReplica))).
L is the lag. `in` is the number of arriving events per second.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import TypeVar

from tidemill_operator.scaling.model import Load, Need, Settings

T = TypeVar("T")
# How far utilisation may exceed its target before scaling adds replicas. 0.15 is 15 percentage points.
BAND = 0.15
# How far utilisation may exceed its target after replicas are removed. 0.05 is 5 percentage points.
ROOMY_BAND = 0.05
# The maximum factor for raising the number of replicas if the partitions' load is uneven.
UNEVEN_FACTOR = 2
MIN_STEP = 4
# Scaling extrapolates rising arrivals this many `lookback` periods into the future.
RISE_LOOKBACKS = 2


def compute_need(settings: Settings, load: Load, *, current: int) -> Need:
    """Return the number of replicas that the load requires."""
    by_lag = _by_lag(settings, load)
    by_rate = _by_rate(settings, load, load.rate_per_replica or 0.0)
    if load.rate_per_replica:
        return _total_need(settings, by_lag, by_rate)
    target = settings.freshness_seconds
    if target is not None and any(load.lags.values()) and (load.freshness_seconds or 0.0) > target:
        # If the speed of a replica is unknown, lag cannot be converted to time. In this case, add one replica.
        by_lag = [(current + 1) / len(load.partitions)] * len(load.partitions)
    need = _total_need(settings, by_lag, [])
    # Keep the replicas that the load requires even if each replica has the highest measured speed.
    minimum = min(current, _total_need(settings, [], _by_rate(settings, load, load.proven)).useful)
    return replace(need, replicas=max(need.replicas, minimum), useful=max(need.useful, minimum))


def rise_seconds(settings: Settings) -> float:
    """Return for how many seconds into the future scaling extrapolates rising arrivals."""
    return RISE_LOOKBACKS * settings.lookback_seconds


def _total_need(settings: Settings, by_lag: Sequence[float], by_rate: Sequence[float]) -> Need:
    utilisation = settings.target_utilisation
    capped = [tuple(min(1.0, share) for share in shares) for shares in (by_lag, by_rate)]
    return Need(
        replicas=max(_ceil(sum(by_lag)), _ceil(sum(by_rate))),
        useful=max(_ceil(sum(shares)) for shares in capped),
        by_lag=capped[0],
        by_rate=capped[1],
        has_hot_partition=any(share > 1 for share in by_lag)
        or any(share > _max_share(utilisation, BAND) for share in by_rate),
        utilisation=utilisation,
    )


def _by_lag(settings: Settings, load: Load) -> list[float]:
    if settings.freshness_seconds is None:
        capacity = float(settings.lag_threshold)
    elif load.rate_per_replica:
        capacity = settings.freshness_seconds * load.rate_per_replica
    else:
        return []
    return [load.lags.get(p, 0) / capacity for p in load.partitions]


def _by_rate(settings: Settings, load: Load, rate: float) -> list[float]:
    if rate <= 0:
        return []
    speed, seconds = settings.target_utilisation * rate, settings.catch_up_seconds
    required = [
        load.arrival_rates.get(p, 0.0) + load.lags[p] / seconds if p in load.lags else 0.0 for p in load.partitions
    ]
    return [events / speed for events in required]


def _max_share(utilisation: float, band: float) -> float:
    return (utilisation + band) / utilisation + 1e-9


def _ceil(number: float) -> int:
    """Round up, but ignore floating-point errors."""
    return math.ceil(number - 1e-9)


def assign_partitions(partitions: Sequence[T], replicas: int) -> list[Sequence[T]]:
    """Return the partitions of each replica, as Kafka's range assignor assigns them."""
    small, larger = divmod(len(partitions), replicas)
    ends = [0]
    for replica in range(replicas):
        ends.append(ends[-1] + small + (replica < larger))
    return [partitions[first:end] for first, end in pairwise(ends) if end > first]


def fits(need: Need, replicas: int, *, band: float = BAND) -> bool:
    """Return whether `replicas` can process the load. Utilisation may exceed the target by at most `band`."""
    if replicas == 0:
        return need.useful == 0
    by_lag = all(sum(share) <= 1 + 1e-9 for share in assign_partitions(need.by_lag, replicas))
    max_share = _max_share(need.utilisation, band)
    return by_lag and all(sum(share) <= max_share for share in assign_partitions(need.by_rate, replicas))


def fitting_replicas(need: Need, *, floor: int, ceiling: int, partitions: int, band: float = BAND) -> int:
    """Return the lowest number of replicas from `floor` to `ceiling` that can process the load.

    With 12 partitions, 7 replicas are as slow as 6 replicas. The result is therefore 6 instead of 7.
    """
    replicas = min(max(need.useful, floor), ceiling)
    even = -(-partitions // -(-partitions // replicas))
    if even >= floor and fits(need, even, band=band):
        return even
    candidates = range(replicas, min(ceiling, UNEVEN_FACTOR * replicas) + 1)
    return next((number for number in candidates if fits(need, number, band=band)), replicas)


def limited_step(current: int, target: int, *, up: int | None, down: int | None, partitions: int) -> int:
    """Return the number of replicas after one step towards a target.

    If `up` is None, a step doubles the number, or adds four if that is more.
    """
    if target < current:
        return target if down is None else max(target, current - down)
    if up is not None:
        return min(target, current + up)
    limit = max(2 * current, current + MIN_STEP)
    while limit < partitions and -(-partitions // limit) == -(-partitions // (limit - 1)):
        limit += 1
    return min(target, limit)
