"""How many replicas a load asks for, and which number of replicas carries it as partitions are shared out.

    need = max(ceil(L / lagThreshold), ceil((in + L / catchUp) / (targetUtilization · ratePerReplica)))

What of it is of use is summed over partitions, each of which counts for one replica at most: a partition is read by
one, so a hot or a standing one cannot use more.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import TypeVar

from tidemill_operator.scaling.model import Load, Need, Settings

T = TypeVar("T")
# So far above the target a number of replicas is left, or rounded down to, rather than changed: it keeps noise out.
BAND = 0.15
# Fewer replicas are taken if they carry it so, and then have some of the band left.
ROOMY_BAND = 0.05
# Uneven partitions may ask for more replicas than their sum does; beyond this, keys want spreading, not replicas.
UNEVEN_FACTOR = 2
LEAST_STEP = 4
# For so many lookbacks arrivals that rise are reckoned to go on rising.
RISE_LOOKBACKS = 2


def need(settings: Settings, load: Load, *, current: int) -> Need:
    """The formula."""
    by_lag = _by_lag(settings, load)
    by_rate = _by_rate(settings, load, load.rate_per_replica or 0.0)
    if load.rate_per_replica:
        return _summed(settings, by_lag, by_rate)
    target = settings.freshness_seconds
    if target is not None and any(load.lags.values()) and (load.freshness_seconds or 0.0) > target:
        # Lag cannot be turned into time yet: one more, until it can.
        by_lag = [(current + 1) / len(load.partitions)] * len(load.partitions)
    wanted = _summed(settings, by_lag, [])
    # What was never done is not relied on: without a known speed replicas go only where those left do no more than one
    # has done before.
    kept = min(current, _summed(settings, [], _by_rate(settings, load, load.proven)).useful)
    return replace(wanted, replicas=max(wanted.replicas, kept), useful=max(wanted.useful, kept))


def rise_seconds(settings: Settings) -> float:
    """How far ahead a step up looks."""
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
    """What a replica may have, in shares of what it is chosen for."""
    return (utilisation + band) / utilisation + 1e-9


def _ceil(number: float) -> int:
    """Up, but for the last digits of a sum."""
    return math.ceil(number - 1e-9)


def shares(partitions: Sequence[T], replicas: int) -> list[Sequence[T]]:
    """What is read by the same replica: Kafka's range assignment, which the processors ask for.

    Blocks of neighbours, the first ones longer by one where it does not divide. Who reads which is not told.
    """
    small, larger = divmod(len(partitions), replicas)
    ends = [0]
    for replica in range(replicas):
        ends.append(ends[-1] + small + (replica < larger))
    return [partitions[first:end] for first, end in pairwise(ends) if end > first]


def fits(wanted: Need, replicas: int, *, band: float = BAND) -> bool:
    """Whether so many replicas carry it, the fullest of them used by so much more than it is chosen for."""
    if replicas == 0:
        return wanted.useful == 0
    by_lag = all(sum(share) <= 1 + 1e-9 for share in shares(wanted.by_lag, replicas))
    full = _fullest(wanted.utilisation, band)
    return by_lag and all(sum(share) <= full for share in shares(wanted.by_rate, replicas))


def aligned(wanted: Need, *, floor: int, ceiling: int, partitions: int, band: float = BAND) -> int:
    """The number of replicas within bounds that carries it, with none too many that read nothing of use.

    7 replicas of 12 partitions are as slow as 6, for one still has two: the fewest with the same fullest replica are
    taken if they carry the load, else the next number that does; or just what is needed, if none within reach does.
    """
    replicas = min(max(wanted.useful, floor), ceiling)
    even = -(-partitions // -(-partitions // replicas))
    if even >= floor and fits(wanted, even, band=band):
        return even
    reach = range(replicas, min(ceiling, UNEVEN_FACTOR * replicas) + 1)
    return next((number for number in reach if fits(wanted, number, band=band)), replicas)


def stepped(current: int, target: int, *, up: int | None, down: int | None, partitions: int) -> int:
    """As far towards a target as the steps allow.

    A step is a rebalance whatever its length, so unlimited ones go all the way down, and up by as many as there are: to
    a number that is of use, for 5 replicas of 12 partitions are as slow as 4.
    """
    if target < current:
        return target if down is None else max(target, current - down)
    if up is not None:
        return min(target, current + up)
    most = max(2 * current, current + LEAST_STEP)
    while most < partitions and -(-partitions // most) == -(-partitions // (most - 1)):
        most += 1
    return min(target, most)
