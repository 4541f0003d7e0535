"""Pure functions that compare reports with the true progress of counting."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from typing import Any

Sample = tuple[float, Any]
Span = tuple[float, float]
# The longest usual time between two commits. A longer time is a stall.
_GAP_SECONDS = 4.0


def stalls(counted: Sequence[Sample], begin: float, end: float) -> list[Span]:
    """Return the spans in which nothing was counted, or in which this was unknown.

    Args:
        counted: The number of events that were counted up to each time, or None if the number is unknown.
        begin: The begin of the observed time.
        end: The end of the observed time.
    """
    moves = [begin]
    last = None
    for at, count in counted:
        if count is None:
            continue
        if last is not None and count > last and begin < at < end:
            moves.append(at)
        last = count
    return [
        (start, following)
        for start, following in zip(moves, [*moves[1:], end], strict=True)
        if following - start > _GAP_SECONDS
    ]


def progress_spans(counted: Sequence[Sample], begin: float, end: float) -> list[Span]:
    """Return the spans between stalls."""
    edges = [begin, *(edge for span in stalls(counted, begin, end) for edge in span), end]
    return [(start, stop) for start, stop in zip(edges[::2], edges[1::2], strict=True) if stop > start]


def longest_time(reports: Sequence[Sample], spans: Sequence[Span], condition: Callable[[Any], bool]) -> float:
    """Return the longest time within a span in which all reports satisfy a condition."""
    maximum = 0.0
    for begin, end in spans:
        since: float | None = None
        for at, report in reports:
            if not begin <= at <= end:
                continue
            if not condition(report):
                since = None
                continue
            since = at if since is None else since
            maximum = max(maximum, at - since)
    return maximum


def longest_unchanged(reports: Sequence[Sample], spans: Sequence[Span], is_old: Callable[[Any], bool]) -> float:
    """Return the longest time within a span in which the same figure was reported as current."""
    maximum = 0.0
    for begin, end in spans:
        since, last = 0.0, None
        for at, report in reports:
            if not begin <= at <= end:
                continue
            if report != last or not is_old(report):
                since, last = at, report
            else:
                maximum = max(maximum, at - since)
    return maximum


def increased_counters(counters: Sequence[Sample]) -> tuple[str, ...]:
    """Return the names of the counters that increased. A new process has a new counter, which begins with 0.

    Args:
        counters: The values by name, at each time, or None if they are unknown.
    """
    names: dict[str, None] = {}
    last: Mapping[str, int] | None = None
    for _, values in counters:
        if values is None:
            continue
        for name, value in values.items():
            if value > (value if last is None else last.get(name, 0)):
                names[name] = None
        last = values
    return tuple(names)


def without_true_zeros(lags: Sequence[Sample], waiting: Sequence[Sample]) -> list[Sample]:
    """Return the reports of a lag, with None in place of each 0 that is correct.

    A lag of 0 is correct while every acknowledged event is counted, for example if no producer can write.

    Args:
        lags: The reported lags.
        waiting: The number of acknowledged events that are not counted, at each time, or None if it is unknown.
    """
    corrected, times = [], [at for at, _ in waiting]
    for at, lag in lags:
        index = bisect_right(times, at) - 1
        corrected.append((at, None if lag == 0 and index >= 0 and waiting[index][1] == 0 else lag))
    return corrected


def first_report_after(
    reports: Sequence[Sample], begin: float, end: float, condition: Callable[[Any], bool]
) -> float | None:
    """Return the time from the begin to the first report that satisfies a condition, or None."""
    return next((at - begin for at, report in reports if begin <= at <= end and condition(report)), None)
