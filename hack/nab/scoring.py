"""Scores detectors as the Numenta Anomaly Benchmark describes it.

The description is in A. Lavin and S. Ahmad: Evaluating Real-time Anomaly Detection Algorithms - the Numenta Anomaly
Benchmark, ICMLA 2015 (arXiv 1510.03336), sections II.B to II.D, and in the benchmark's wiki:

- Only the earliest alarm inside a window counts. An earlier alarm scores more.
- A window without an alarm costs A_FN.
- An alarm outside of windows costs A_FP, or less if it is just after a window.
- The first 15 % of a series (750 rows at most) are not scored.
- All series share one threshold.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from nab.series import Series

PROBATION_SHARE = 0.15
PROBATION_ROWS = 750
FAR_BEHIND = 3.0
"""An alarm that is this number of window lengths after a window has the full cost."""


@dataclass(frozen=True)
class Profile:
    """The weights of detections, false alarms and misses (A_TP, A_FP, A_FN in the paper)."""

    true_positive: float = 1.0
    false_positive: float = 0.11
    false_negative: float = 1.0


STANDARD = Profile()


@dataclass(frozen=True)
class Result:
    """The result of a detector at one threshold.

    Attributes:
        score: The score: 0 without any alarm, 100 with exactly one alarm at the start of each window.
        detected: The number of windows with an alarm.
        windows: The number of labelled windows.
        alarms: The number of rows in windows that reach the threshold.
        false_alarms: The number of rows outside of windows that reach the threshold.
    """

    threshold: float
    score: float
    detected: int
    windows: int
    alarms: int
    false_alarms: int


@dataclass(frozen=True)
class _Row:
    score: float
    weight: float
    window: int | None


def reward(position: float) -> float:
    """Return the paper's scaled sigmoid: nearly 1 at a window's start, 0 at its end, nearly -1 far after the window.

    Args:
        position: The distance from the window's end in window lengths; -1 is the window's start.
    """
    return -1.0 if position >= FAR_BEHIND else 2 / (1 + math.exp(5 * position)) - 1


def probation(rows: int) -> int:
    """Return the number of rows at the beginning of a series that are not scored."""
    return min(math.floor(PROBATION_SHARE * rows), PROBATION_ROWS)


def score_at(corpus: Sequence[tuple[Series, Sequence[float]]], threshold: float, profile: Profile = STANDARD) -> Result:
    """Return the result at a threshold.

    Args:
        corpus: Each series, with the detector's score for each row.
        threshold: The score from which on a row is an alarm.
        profile: The weights.
    """
    rows, windows = _rows(corpus, profile, threshold)
    return _sweep(rows, windows, profile)[-1].at(threshold)


def score_best(corpus: Sequence[tuple[Series, Sequence[float]]], profile: Profile = STANDARD) -> Result:
    """Return the result at the best threshold. The highest of several equally good thresholds is chosen."""
    rows, windows = _rows(corpus, profile)
    sums = _sweep(rows, windows, profile)
    best = max(sums, key=lambda tried: tried.raw)
    return best.at(best.threshold)


@dataclass(frozen=True)
class _Sum:
    threshold: float
    raw: float
    detected: int
    windows: int
    alarms: int
    false_alarms: int
    profile: Profile

    def at(self, threshold: float) -> Result:
        null = -self.windows * self.profile.false_negative
        perfect = self.windows * self.profile.true_positive
        score = 100 * (self.raw - null) / (perfect - null) if self.windows else 0.0
        return Result(threshold, score, self.detected, self.windows, self.alarms, self.false_alarms)


def _sweep(rows: list[_Row], windows: int, profile: Profile) -> list[_Sum]:
    """Return the sums at each threshold, from infinity down to the lowest score."""
    best: dict[int, float] = {}
    raw, alarms, false_alarms = -windows * profile.false_negative, 0, 0
    sums = [_Sum(math.inf, raw, 0, windows, 0, 0, profile)]
    ordered = sorted(rows, key=lambda row: -row.score)
    for index, row in enumerate(ordered):
        if row.window is None:
            false_alarms += 1
            raw += row.weight
        else:
            alarms += 1
            before = best.get(row.window, -profile.false_negative)
            best[row.window] = max(before, row.weight)
            raw += best[row.window] - before
        if index + 1 == len(ordered) or ordered[index + 1].score != row.score:
            sums.append(_Sum(row.score, raw, len(best), windows, alarms, false_alarms, profile))
    return sums


def _rows(
    corpus: Sequence[tuple[Series, Sequence[float]]], profile: Profile, least: float = -math.inf
) -> tuple[list[_Row], int]:
    """Return the scored rows from a score on, with the weight of an alarm, and the number of windows."""
    rows: list[_Row] = []
    windows = 0
    for series, scores in corpus:
        first = probation(len(series.values))
        reachable = [w for w, (_, end) in enumerate(series.windows) if end >= first]
        weights = _weights(series, profile)
        for row in range(first, len(scores)):
            if scores[row] >= least:
                weight, window = weights[row]
                rows.append(_Row(scores[row], weight, None if window is None else windows + reachable.index(window)))
        windows += len(reachable)
    return rows, windows


@lru_cache(maxsize=256)
def _weights(series: Series, profile: Profile) -> tuple[tuple[float, int | None], ...]:
    """Return the weight of an alarm on each row, and its window."""
    inside = {row: w for w, (start, end) in enumerate(series.windows) for row in range(start, end + 1)}
    rows = range(len(series.values))
    return tuple((_weight(row, inside.get(row), series.windows, profile), inside.get(row)) for row in rows)


def _weight(row: int, inside: int | None, windows: tuple[tuple[int, int], ...], profile: Profile) -> float:
    if inside is not None:
        start, end = windows[inside]
        # A detection in a window's first row scores the whole A_TP.
        return profile.true_positive * reward(-(end - row + 1) / (end - start + 1)) / reward(-1.0)
    before = [(start, end) for start, end in windows if end < row]
    if not before:
        return -profile.false_positive
    start, end = before[-1]
    return profile.false_positive * reward((row - end) / max(1, end - start))
