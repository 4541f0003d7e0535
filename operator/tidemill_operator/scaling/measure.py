"""Compute the load from the figures of successive polls.

The speed of a replica is measured between two polls that both show lag.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from statistics import median

from tidemill_operator.scaling.model import Figures, Load, Settings
from tidemill_operator.scaling.need import shares
from tidemill_operator.scaling.state import MAX_SAMPLES, Sample, State

RATE_QUANTILE = 0.8
# A replica is busy if processing its lag takes at least this many seconds. The time must also be at least four flush
# intervals.
BUSY_SECONDS = 2.0
_FLUSHES = 4
# Maximum gap between two successful polls, in poll intervals. After a longer gap, every wait before a removal of
# replicas starts again.
MISSED_POLLS = 3
_RECENT_POLLS = 3
_STANDING_POLLS = 2
_SLOWER_SAMPLES = 3
_RISING_POLLS = 3


def observe(settings: Settings, state: State, figures: Figures, *, current: int, now: float) -> tuple[State, Load]:
    """Add the figures of a poll to the state, and return the new state and the load."""
    seconds = now - state.polled_at if state.polled_at is not None else 0.0
    if state.polled_at is None or seconds > (MISSED_POLLS + 0.5) * settings.poll_seconds:
        state = replace(state, watched_since=now, wanted=(), idle_since=None)
    moved = _moved(state, figures)
    state = _taken_in(settings, state, figures, moved, seconds=seconds, current=current, now=now)
    quiet = figures.lag == 0 and not any(arrived for arrived, _ in moved.values())
    state = replace(
        state,
        polled_at=now,
        seen={p: (f.end, f.consumed, f.lag) for p, f in figures.partitions.items()},
        moving=figures.rebalancing or figures.rolling_out,
        idle_since=(now if state.idle_since is None else state.idle_since) if quiet else None,
        failed_polls=0,
    )
    patience = _STANDING_POLLS * settings.poll_seconds
    stuck = tuple(sorted(p for p, since in state.standing.items() if now - since >= patience))
    load = Load(
        lag=figures.lag,
        lags={p: f.lag for p, f in figures.partitions.items() if p not in stuck},
        arriving=_arriving(state.samples, moved),
        rising=_rising(state.samples),
        rate_per_replica=state.rate_per_replica,
        proven=state.proven,
        freshness_seconds=_freshness(figures, state.samples),
        stuck=stuck,
    )
    return state, load


def _taken_in(
    settings: Settings,
    state: State,
    figures: Figures,
    moved: Mapping[int, tuple[int, int]],
    *,
    seconds: float,
    current: int,
    now: float,
) -> State:
    if seconds <= 0:
        return state
    changed = state.changed_at is not None and state.changed_at > now - seconds
    # `state.moving` is true if a rebalance or rollout was under way at the previous poll.
    moving = figures.rebalancing or figures.rolling_out or state.moving
    steady = not (changed or moving) and 0 < current == figures.ready
    arrived, consumed = (sum(pair[i] for pair in moved.values()) / seconds for i in (0, 1))
    rate = None
    if steady and not figures.database_saturated and not figures.waits:
        rate = _busy_rate(settings, state, figures, moved, seconds=seconds, replicas=current)
    samples = (*state.samples, Sample(now, arrived, consumed, rate))
    samples = tuple(s for s in samples if s.at > now - settings.lookback_seconds)[-MAX_SAMPLES:]
    done = consumed / current if steady else 0.0
    return replace(
        state,
        samples=samples,
        rate_per_replica=_rate_per_replica(samples, state.rate_per_replica, done=done),
        proven=max(state.proven, done),
        standing=_standing(state, figures, moved, now=now),
    )


def _moved(state: State, figures: Figures) -> dict[int, tuple[int, int]]:
    """Return how many events arrived and how many were consumed since the last poll, by partition."""
    moved = {}
    for partition, at in figures.partitions.items():
        end, consumed, _ = state.seen.get(partition, (at.end, at.consumed, 0))
        moved[partition] = (max(0, at.end - end), max(0, at.consumed - consumed))
    return moved


def _busy_rate(
    settings: Settings,
    state: State,
    figures: Figures,
    moved: Mapping[int, tuple[int, int]],
    *,
    seconds: float,
    replicas: int,
) -> float | None:
    """Return the mean events per second of the busy replicas, or None if no replica was busy."""
    least = max(BUSY_SECONDS, _FLUSHES * settings.flush_seconds)
    busy = []
    # Leave out stuck partitions, because they have lag but do not keep a replica busy.
    going = [p for p in sorted(figures.partitions) if moved[p][1] > 0]
    for share in shares(sorted(figures.partitions), replicas):
        block = [p for p in share if p in going]
        speed = sum(moved[p][1] for p in block) / seconds
        before = sum(state.seen[p][2] for p in block if p in state.seen)
        after = sum(figures.partitions[p].lag for p in block)
        if speed > 0 and min(before, after) >= speed * least:
            busy.append(speed)
    return sum(busy) / len(busy) if busy else None


def _rate_per_replica(samples: Sequence[Sample], before: float | None, *, done: float) -> float | None:
    rates = sorted(s.rate for s in samples if s.rate is not None)
    estimate = before
    if rates:
        seen = rates[min(len(rates) - 1, math.ceil(RATE_QUANTILE * len(rates)) - 1)]
        # A single slow interval does not lower the estimate, because the replica probably paused.
        if before is None or seen > before or len(rates) >= _SLOWER_SAMPLES:
            estimate = seen
    # Busy replicas are at least as fast as `done`, the mean speed of all replicas.
    return None if estimate is None else max(estimate, done)


def _standing(state: State, figures: Figures, moved: Mapping[int, tuple[int, int]], *, now: float) -> dict[int, float]:
    """Return the stuck partitions, each with the epoch second of the first poll that found it stuck.

    A stuck partition has lag and does not advance. A partition becomes stuck only while another partition advances.
    """
    going = any(consumed for _, consumed in moved.values())
    kept = {}
    for partition, at in figures.partitions.items():
        stands = moved[partition][1] == 0 and at.lag > 0 and partition in state.seen
        if stands and (going or partition in state.standing):
            kept[partition] = state.standing.get(partition, now)
    return kept


def _arriving(samples: Sequence[Sample], moved: Mapping[int, tuple[int, int]]) -> dict[int, float]:
    """Return the expected events per second of each partition.

    Compare the mean over the lookback with the median of the last three polls. The higher value is the total rate of
    arrivals.
    """
    if not samples:
        return dict.fromkeys(moved, 0.0)
    mean = sum(s.arrived for s in samples) / len(samples)
    total = max(mean, median(s.arrived for s in samples[-_RECENT_POLLS:]))
    arrived = sum(a for a, _ in moved.values())
    if arrived == 0:
        return dict.fromkeys(moved, total / max(1, len(moved)))
    return {partition: total * a / arrived for partition, (a, _) in moved.items()}


def _rising(samples: Sequence[Sample]) -> float:
    """Return the smallest increase of the arrival rate between recent polls, in events per second per second.

    So a single jump of the rate does not count as a rise.
    """
    last = samples[-_RISING_POLLS - 1 :]
    if len(last) <= _RISING_POLLS:
        return 0.0
    return max(0.0, min((after.arrived - before.arrived) / (after.at - before.at) for before, after in pairwise(last)))


def _freshness(figures: Figures, samples: Sequence[Sample]) -> float | None:
    """Return the measured freshness in seconds, or else an estimate from the lag and the current speed."""
    if figures.freshness_seconds is not None:
        return figures.freshness_seconds
    if figures.lag == 0:
        return 0.0
    consumed = samples[-1].consumed if samples else 0.0
    return figures.lag / consumed if consumed else None
