"""Computes how many replicas a load requires, with partitions assigned in blocks.

    need = max(ceil(L / lagThreshold), ceil((in + L / catchUp) / (targetUtilization · ratePerReplica)))

L is the lag, and `in` the number of arriving events per second. The useful number is the sum of the shares of all
partitions, where each partition counts for at most one replica. The reason is that one replica reads a whole partition,
so several replicas cannot help a hot or stuck partition.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import TypeVar

from tidemill_operator.scaling.model import Load, Need, Settings

T = TypeVar("T")
# The load may exceed the target utilisation by this much without a change of replicas, so that noise has no effect.
BAND = 0.15
# After a reduction, the remaining replicas may exceed the target by this much only, so that small variations stay
# within BAND.
ROOMY_BAND = 0.05
# Uneven partitions may get up to this many times the replicas that an even load needs. Beyond that, the keys have to be
# spread.
UNEVEN_FACTOR = 2
LEAST_STEP = 4
# If arrivals rise, a step up plans for the rate after this many further `lookback` periods.
RISE_LOOKBACKS = 2


def need(settings: Settings, load: Load, *, current: int) -> Need:
    """Return the need, computed by the formula above."""
    by_lag = _by_lag(settings, load)
    by_rate = _by_rate(settings, load, load.rate_per_replica or 0.0)
    if load.rate_per_replica:
        return _summed(settings, by_lag, by_rate)
    target = settings.freshness_seconds
    if target is not None and any(load.lags.values()) and (load.freshness_seconds or 0.0) > target:
        # Without a known speed, lag cannot be converted to time, so ask for one more replica.
        by_lag = [(current + 1) / len(load.partitions)] * len(load.partitions)
    wanted = _summed(settings, by_lag, [])
    # Without a known speed, replicas are removed only if the others need not be faster than the fastest observed
    # replica.
    kept = min(current, _summed(settings, [], _by_rate(settings, load, load.proven)).useful)
    return replace(wanted, replicas=max(wanted.replicas, kept), useful=max(wanted.useful, kept))


def rise_seconds(settings: Settings) -> float:
    """Return for how many seconds a step up extrapolates the arrivals."""
    return RISE_LOOKBACKS * settings.lookback_seconds


def _summed(settings: Settings, by_lag: Sequence[float], by_rate: Sequence[float]) -> Need:
    utilisation = settings.target_utilisation
    capped = [tuple(min(1.0, share) for share in shares) for shares in (by_lag, by_rate)]
    return Need(
        replicas=max(_ceil(sum(by_lag)), _ceil(sum(by_rate))),
        useful=max(_ceil(sum(shares)) for shares in capped),
        by_lag=capped[0],
        by_rate=capped[1],
        hot=any(share > 1 for share in by_lag) or any(share > _fullest(utilisation, BAND) for share in by_rate),
        utilisation=utilisation,
    )


def _by_lag(settings: Settings, load: Load) -> list[float]:
    if settings.freshness_seconds is None:
        carries = float(settings.lag_threshold)
    elif load.rate_per_replica:
        carries = settings.freshness_seconds * load.rate_per_replica
    else:
        return []
    return [load.lags.get(p, 0) / carries for p in load.partitions]


def _by_rate(settings: Settings, load: Load, rate: float) -> list[float]:
    if rate <= 0:
        return []
    speed, seconds = settings.target_utilisation * rate, settings.catch_up_seconds
    wanted = [load.arriving.get(p, 0.0) + load.lags[p] / seconds if p in load.lags else 0.0 for p in load.partitions]
    return [events / speed for events in wanted]


def _fullest(utilisation: float, band: float) -> float:
    """Return the allowed load of a replica, relative to its target load."""
    return (utilisation + band) / utilisation + 1e-9


def _ceil(number: float) -> int:
    """Round up, but ignore the rounding errors of a sum."""
    return math.ceil(number - 1e-9)


def shares(partitions: Sequence[T], replicas: int) -> list[Sequence[T]]:
    """Return the partitions of each replica. Partitions are assigned by Kafka's range assignor, as for the processors.

    Each replica has a block of neighbouring partitions. If there is a remainder, the first blocks are larger by one.
    """
    small, larger = divmod(len(partitions), replicas)
    ends = [0]
    for replica in range(replicas):
        ends.append(ends[-1] + small + (replica < larger))
    return [partitions[first:end] for first, end in pairwise(ends) if end > first]


def fits(wanted: Need, replicas: int, *, band: float = BAND) -> bool:
    """Return whether `replicas` carry the load: the fullest one is at most `band` above the target utilisation."""
    if replicas == 0:
        return wanted.useful == 0
    by_lag = all(sum(share) <= 1 + 1e-9 for share in shares(wanted.by_lag, replicas))
    full = _fullest(wanted.utilisation, band)
    return by_lag and all(sum(share) <= full for share in shares(wanted.by_rate, replicas))


def aligned(wanted: Need, *, floor: int, ceiling: int, partitions: int, band: float = BAND) -> int:
    """Return the number of replicas within the bounds that carries the load, without replicas that do not help.

    With 12 partitions, 7 replicas are as slow as 6, because one replica still has two partitions. So the lowest number
    with the same largest block is returned if it carries the load, else the next number that carries the load. If no
    allowed number carries it, the needed number is returned.
    """
    replicas = min(max(wanted.useful, floor), ceiling)
    even = -(-partitions // -(-partitions // replicas))
    if even >= floor and fits(wanted, even, band=band):
        return even
    reach = range(replicas, min(ceiling, UNEVEN_FACTOR * replicas) + 1)
    return next((number for number in reach if fits(wanted, number, band=band)), replicas)


def stepped(current: int, target: int, *, up: int | None, down: int | None, partitions: int) -> int:
    """Return the number of replicas after one step towards a target.

    Each step causes one rebalance, whatever its size. So a step down without a limit reaches the target at once. A step
    up at most doubles the number, or adds four if that is more. The step then continues to the next number that makes a
    difference: with 12 partitions, 5 replicas are as slow as 4.
    """
    if target < current:
        return target if down is None else max(target, current - down)
    if up is not None:
        return min(target, current + up)
    most = max(2 * current, current + LEAST_STEP)
    while most < partitions and -(-partitions // most) == -(-partitions // (most - 1)):
        most += 1
    return min(target, most)
