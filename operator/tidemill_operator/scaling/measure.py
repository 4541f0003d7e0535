"""Compute the load from the figures of successive polls.

The speed of a replica is measured between two polls that both show lag.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from statistics import median

from tidemill_operator.scaling.model import Load, ScalingFigures, Settings
from tidemill_operator.scaling.need import assign_partitions
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
_STUCK_POLLS = 2
_SLOWER_SAMPLES = 3
_RISING_POLLS = 3


def add_poll(
    settings: Settings, state: State, figures: ScalingFigures, *, current: int, now: float
) -> tuple[State, Load]:
    """Add the figures of a poll to the state, and return the new state and the load."""
    seconds = now - state.polled_at if state.polled_at is not None else 0.0
    if state.polled_at is None or seconds > (MISSED_POLLS + 0.5) * settings.poll_seconds:
        state = replace(state, watched_since=now, wanted=(), idle_since=None)
    events = _events_since_poll(state, figures)
    state = _add_sample(settings, state, figures, events, seconds=seconds, current=current, now=now)
    quiet = figures.lag == 0 and not any(arrived for arrived, _ in events.values())
    state = replace(
        state,
        polled_at=now,
        seen={p: (f.end, f.consumed, f.lag) for p, f in figures.partitions.items()},
        moving=figures.rebalancing or figures.rolling_out,
        idle_since=(now if state.idle_since is None else state.idle_since) if quiet else None,
        failed_polls=0,
    )
    patience = _STUCK_POLLS * settings.poll_seconds
    stuck = tuple(sorted(p for p, since in state.standing.items() if now - since >= patience))
    load = Load(
        lag=figures.lag,
        lags={p: f.lag for p, f in figures.partitions.items() if p not in stuck},
        arrival_rates=_arrival_rates(state.samples, events),
        arrival_growth=_arrival_growth(state.samples),
        rate_per_replica=state.rate_per_replica,
        proven=state.proven,
        freshness_seconds=_freshness(figures, state.samples),
        stuck=stuck,
    )
    return state, load


def _add_sample(
    settings: Settings,
    state: State,
    figures: ScalingFigures,
    events: Mapping[int, tuple[int, int]],
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
    arrived, consumed = (sum(pair[i] for pair in events.values()) / seconds for i in (0, 1))
    rate = None
    if steady and not figures.database_saturated and not figures.stage_waits:
        rate = _busy_rate(settings, state, figures, events, seconds=seconds, replicas=current)
    samples = (*state.samples, Sample(now, arrived, consumed, rate))
    samples = tuple(s for s in samples if s.at > now - settings.lookback_seconds)[-MAX_SAMPLES:]
    mean_rate = consumed / current if steady else 0.0
    return replace(
        state,
        samples=samples,
        rate_per_replica=_rate_per_replica(samples, state.rate_per_replica, mean_rate=mean_rate),
        proven=max(state.proven, mean_rate),
        standing=_stuck_partitions(state, figures, events, now=now),
    )


def _events_since_poll(state: State, figures: ScalingFigures) -> dict[int, tuple[int, int]]:
    """Return how many events arrived and how many were consumed since the last poll, by partition."""
    events = {}
    for partition, at in figures.partitions.items():
        end, consumed, _ = state.seen.get(partition, (at.end, at.consumed, 0))
        events[partition] = (max(0, at.end - end), max(0, at.consumed - consumed))
    return events


def _busy_rate(
    settings: Settings,
    state: State,
    figures: ScalingFigures,
    events: Mapping[int, tuple[int, int]],
    *,
    seconds: float,
    replicas: int,
) -> float | None:
    """Return the mean events per second of the busy replicas, or None if no replica was busy."""
    min_seconds = max(BUSY_SECONDS, _FLUSHES * settings.flush_seconds)
    busy = []
    # Leave out stuck partitions, because they have lag but do not keep a replica busy.
    advancing = [p for p in sorted(figures.partitions) if events[p][1] > 0]
    for share in assign_partitions(sorted(figures.partitions), replicas):
        advancing_share = [p for p in share if p in advancing]
        speed = sum(events[p][1] for p in advancing_share) / seconds
        before = sum(state.seen[p][2] for p in advancing_share if p in state.seen)
        after = sum(figures.partitions[p].lag for p in advancing_share)
        if speed > 0 and min(before, after) >= speed * min_seconds:
            busy.append(speed)
    return sum(busy) / len(busy) if busy else None


def _rate_per_replica(samples: Sequence[Sample], before: float | None, *, mean_rate: float) -> float | None:
    rates = sorted(s.rate for s in samples if s.rate is not None)
    estimate = before
    if rates:
        measured = rates[min(len(rates) - 1, math.ceil(RATE_QUANTILE * len(rates)) - 1)]
        # A single slow interval does not lower the estimate, because the replica probably paused.
        if before is None or measured > before or len(rates) >= _SLOWER_SAMPLES:
            estimate = measured
    # Busy replicas are at least as fast as `mean_rate`, the mean speed of all replicas.
    return None if estimate is None else max(estimate, mean_rate)


def _stuck_partitions(
    state: State, figures: ScalingFigures, events: Mapping[int, tuple[int, int]], *, now: float
) -> dict[int, float]:
    """Return the stuck partitions, each with the epoch second of the first poll that found it stuck.

    A stuck partition has lag and does not advance. A partition becomes stuck only while another partition advances.
    """
    any_advances = any(consumed for _, consumed in events.values())
    stuck_since = {}
    for partition, at in figures.partitions.items():
        stuck = events[partition][1] == 0 and at.lag > 0 and partition in state.seen
        if stuck and (any_advances or partition in state.standing):
            stuck_since[partition] = state.standing.get(partition, now)
    return stuck_since


def _arrival_rates(samples: Sequence[Sample], events: Mapping[int, tuple[int, int]]) -> dict[int, float]:
    """Return the expected events per second of each partition.

    Compare the mean over the lookback with the median of the last three polls. The higher value is the total rate of
    arrivals.
    """
    if not samples:
        return dict.fromkeys(events, 0.0)
    mean = sum(s.arrived for s in samples) / len(samples)
    total = max(mean, median(s.arrived for s in samples[-_RECENT_POLLS:]))
    arrived = sum(a for a, _ in events.values())
    if arrived == 0:
        return dict.fromkeys(events, total / max(1, len(events)))
    return {partition: total * a / arrived for partition, (a, _) in events.items()}


def _arrival_growth(samples: Sequence[Sample]) -> float:
    """Return the smallest increase of the arrival rate between recent polls, in events per second per second.

    So a single jump of the rate does not count as a rise.
    """
    last = samples[-_RISING_POLLS - 1 :]
    if len(last) <= _RISING_POLLS:
        return 0.0
    return max(0.0, min((after.arrived - before.arrived) / (after.at - before.at) for before, after in pairwise(last)))


def _freshness(figures: ScalingFigures, samples: Sequence[Sample]) -> float | None:
    """Return the measured freshness in seconds, or else an estimate from the lag and the current speed."""
    if figures.freshness_seconds is not None:
        return figures.freshness_seconds
    if figures.lag == 0:
        return 0.0
    consumed = samples[-1].consumed if samples else 0.0
    return figures.lag / consumed if consumed else None
