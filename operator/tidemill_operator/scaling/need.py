"""Computes how many replicas a load requires, with partitions assigned in blocks.

    need = max(ceil(L / lagThreshold), ceil((in + L / catchUp) / (targetUtilization · ratePerReplica)))

L is the lag, and `in` the number of arriving events per second. The useful number is the sum over all partitions, where
each partition counts for at most one replica. Only one replica can read a partition, so more of them would not help
with a hot or stuck partition.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import TypeVar

from tidemill_operator.scaling.model import Load, Need, Settings

T = TypeVar("T")
# The load of a replica may exceed the target utilisation by this much without a change, so that noise has no effect.
BAND = 0.15
# After a reduction, the load may exceed the target utilisation only by this much, so that small variations stay within
# BAND.
ROOMY_BAND = 0.05
# For unevenly loaded partitions, up to this many times the replicas for an even load are allowed. Beyond that, only
# spreading the keys helps.
UNEVEN_FACTOR = 2
LEAST_STEP = 4
# While arrivals rise, a step up plans for the rate that is expected after this many `lookback` periods.
RISE_LOOKBACKS = 2


def need(settings: Settings, load: Load, *, current: int) -> Need:
    """Return the need, computed by the formula above."""
    by_lag = _by_lag(settings, load)
    by_rate = _by_rate(settings, load, load.rate_per_replica or 0.0)
    if load.rate_per_replica:
        return _summed(settings, by_lag, by_rate)
    target = settings.freshness_seconds
    if target is not None and any(load.lags.values()) and (load.freshness_seconds or 0.0) > target:
        # Without a known speed, lag cannot be converted to time, so ask for one replica more.
        by_lag = [(current + 1) / len(load.partitions)] * len(load.partitions)
    wanted = _summed(settings, by_lag, [])
    # Without a known speed, remove replicas only if the others do not have to be faster than the fastest replica so
    # far.
    kept = min(current, _summed(settings, [], _by_rate(settings, load, load.proven)).useful)
    return replace(wanted, replicas=max(wanted.replicas, kept), useful=max(wanted.useful, kept))


def rise_seconds(settings: Settings) -> float:
    """Return how many seconds ahead a step up extrapolates the arrivals."""
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
    """Return the highest allowed load of a replica, as a multiple of its target load."""
    return (utilisation + band) / utilisation + 1e-9


def _ceil(number: float) -> int:
    """Round up, but tolerate the floating-point errors of a sum."""
    return math.ceil(number - 1e-9)


def shares(partitions: Sequence[T], replicas: int) -> list[Sequence[T]]:
    """Return the partitions of each replica, as Kafka's range assignor assigns them to processors.

    Each replica gets a block of consecutive partitions. If the division leaves a remainder, the first blocks have one
    more.
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
    """Return the lowest number of replicas within the bounds that carries the load and makes a difference.

    With 12 partitions, 7 replicas are as slow as 6, because one replica still has two partitions. So first try the
    lowest number with the same largest block. If it does not carry the load, return the next number that does. If no
    number in reach carries the load, return the needed number.
    """
    replicas = min(max(wanted.useful, floor), ceiling)
    even = -(-partitions // -(-partitions // replicas))
    if even >= floor and fits(wanted, even, band=band):
        return even
    reach = range(replicas, min(ceiling, UNEVEN_FACTOR * replicas) + 1)
    return next((number for number in reach if fits(wanted, number, band=band)), replicas)


def stepped(current: int, target: int, *, up: int | None, down: int | None, partitions: int) -> int:
    """Return the number of replicas after one step towards a target.

    Each step causes one rebalance, whatever its size. So without a limit, a step down goes to the target at once.
    Without a limit, a step up at most doubles the number, or adds four if that is more. It then goes on to the next
    number that makes a difference: with 12 partitions, 5 replicas are as slow as 4.
    """
    if target < current:
        return target if down is None else max(target, current - down)
    if up is not None:
        return min(target, current + up)
    most = max(2 * current, current + LEAST_STEP)
    while most < partitions and -(-partitions // most) == -(-partitions // (most - 1)):
        most += 1
    return min(target, most)
