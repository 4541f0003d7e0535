"""Scoring of the Numenta Anomaly Benchmark, from its description.

A. Lavin and S. Ahmad: Evaluating Real-time Anomaly Detection Algorithms - the Numenta Anomaly Benchmark, ICMLA 2015
(arXiv 1510.03336), sections II.B to II.D, and the benchmark's wiki. Of the alarms inside a window only the earliest
counts, the more the earlier; a window without an alarm costs A_FN; an alarm outside costs up to A_FP, less just after
a window. The first 15 % of a series (750 rows at most) are not scored. One threshold serves all series.
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
"""From this many window lengths after a window, an alarm counts as fully wrong."""


@dataclass(frozen=True)
class Profile:
    """Weights of detections, false alarms and misses."""

    true_positive: float = 1.0
    false_positive: float = 0.11
    false_negative: float = 1.0


STANDARD = Profile()


@dataclass(frozen=True)
class Result:
    """The result of a detector at one threshold.

    Attributes:
        score: 0 as if it never fired, 100 as if it fired once at the start of each window and never else.
        detected: windows with an alarm.
        windows: labelled windows.
        alarms: rows at or above the threshold in windows.
        false_alarms: rows at or above the threshold outside windows.
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
    """Return the paper's scaled sigmoid: near 1 at a window's start (-1), 0 at its end (0), near -1 far after it.

    Args:
        position: rows from the window's end in lengths of the window.
    """
    return -1.0 if position >= FAR_BEHIND else 2 / (1 + math.exp(5 * position)) - 1


def probation(rows: int) -> int:
    """Return the number of rows at a series' beginning that are not scored."""
    return min(math.floor(PROBATION_SHARE * rows), PROBATION_ROWS)


def score_at(corpus: Sequence[tuple[Series, Sequence[float]]], threshold: float, profile: Profile = STANDARD) -> Result:
    """Return the result at a threshold. Each series comes with a score for each row."""
    rows, windows = _rows(corpus, profile, threshold)
    return _sweep(rows, windows, profile)[-1].at(threshold)


def score_best(corpus: Sequence[tuple[Series, Sequence[float]]], profile: Profile = STANDARD) -> Result:
    """Return the best result of any single threshold, as the benchmark reports it (the highest such threshold)."""
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
    """Yield the sums at every threshold, from above all scores down to the lowest."""
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
    """Rows that count and score at least so much, with what an alarm on them weighs; and the number of windows."""
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
        # A detection in a window's first row gets all of A_TP.
        return profile.true_positive * reward(-(end - row + 1) / (end - start + 1)) / reward(-1.0)
    before = [(start, end) for start, end in windows if end < row]
    if not before:
        return -profile.false_positive
    start, end = before[-1]
    return profile.false_positive * reward((row - end) / max(1, end - start))
