"""Compute the time partitions of a pipeline's tables."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Collection, Iterator, Sequence
from itertools import chain

from tidemill_contract.calendars import DAY_MS

MAX_PARTITION_TABLES = 400
WIDEN_EVERY = 50
"""If a table has MAX_PARTITION_TABLES partitions, new partitions are twice as wide. The width doubles again after each
further 50 partitions."""
MAX_NEW_TABLES = 100
"""The maximum number of new partitions for one batch. The limit is lower for a table with many partitions."""

Span = tuple[int, int]
"""The first day and the end (excluded) of a partition, as days since the epoch."""


def partition_days(retention_ms: int) -> int:
    """Return the width of a time partition in days (at least 1).

    With this width, fewer than 2 * MAX_PARTITION_TABLES partitions cover the retention.
    """
    return max(1, -(-retention_ms // DAY_MS) // MAX_PARTITION_TABLES)


def new_partitions(days: Collection[int], width: int, held: Sequence[Span]) -> list[Span]:
    """Return new partitions for the days that no existing partition contains, in ascending order.

    If the number of new partitions would exceed a limit, the oldest days share wider partitions.

    Args:
        days: days since the epoch.
        width: the usual width of a partition, in days.
        held: the first day and the end (excluded) of each existing partition.
    """
    held = sorted(held)
    lows = [low for low, _ in held]
    missing = sorted(day for day in set(days) if not _holds(held, lows, day))
    beyond = len(held) - MAX_PARTITION_TABLES
    fine = width if beyond < 0 else width << (1 + beyond // WIDEN_EVERY)
    most = max(WIDEN_EVERY, min(MAX_NEW_TABLES, -beyond))
    slots = sorted({day // fine for day in missing})
    if len(slots) <= most:
        return list(_gaps(missing, fine, held, lows))
    edge = slots[-(most // 2)] * fine
    older, newer = [d for d in missing if d < edge], [d for d in missing if d >= edge]
    coarse = fine
    while len({day // coarse for day in older}) > most // 2:
        coarse *= 2
    shared = [(first, min(end, edge)) for first, end in _gaps(older, coarse, held, lows)]
    return list(chain(shared, _gaps(newer, fine, held, lows)))


def _holds(held: Sequence[Span], lows: Sequence[int], day: int) -> bool:
    at = bisect_right(lows, day) - 1
    return at >= 0 and day < held[at][1]


def _gaps(missing: Sequence[int], width: int, held: Sequence[Span], lows: Sequence[int]) -> Iterator[Span]:
    done = None
    for day in missing:
        if done is not None and day < done:
            continue
        at, first = bisect_right(lows, day), day // width * width
        done = min(first + width, lows[at]) if at < len(lows) else first + width
        yield (max(first, held[at - 1][1]) if at else first), done
