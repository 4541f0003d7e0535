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


def new_partitions(days: Collection[int], width: int, existing: Sequence[Span]) -> list[Span]:
    """Return new partitions for the days that no existing partition contains, in ascending order.

    If the number of new partitions would exceed a limit, the oldest days share wider partitions.

    Args:
        days: days since the epoch.
        width: the usual width of a partition, in days.
        existing: the first day and the end (excluded) of each existing partition.
    """
    existing = sorted(existing)
    starts = [low for low, _ in existing]
    missing = sorted(day for day in set(days) if not _contains(existing, starts, day))
    excess = len(existing) - MAX_PARTITION_TABLES
    new_width = width if excess < 0 else width << (1 + excess // WIDEN_EVERY)
    limit = max(WIDEN_EVERY, min(MAX_NEW_TABLES, -excess))
    partition_numbers = sorted({day // new_width for day in missing})
    if len(partition_numbers) <= limit:
        return list(_gaps(missing, new_width, existing, starts))
    split_day = partition_numbers[-(limit // 2)] * new_width
    older, newer = [d for d in missing if d < split_day], [d for d in missing if d >= split_day]
    old_width = new_width
    while len({day // old_width for day in older}) > limit // 2:
        old_width *= 2
    shared = [(first, min(end, split_day)) for first, end in _gaps(older, old_width, existing, starts)]
    return list(chain(shared, _gaps(newer, new_width, existing, starts)))


def _contains(existing: Sequence[Span], starts: Sequence[int], day: int) -> bool:
    index = bisect_right(starts, day) - 1
    return index >= 0 and day < existing[index][1]


def _gaps(missing: Sequence[int], width: int, existing: Sequence[Span], starts: Sequence[int]) -> Iterator[Span]:
    end = None
    for day in missing:
        if end is not None and day < end:
            continue
        index, first = bisect_right(starts, day), day // width * width
        end = min(first + width, starts[index]) if index < len(starts) else first + width
        yield (max(first, existing[index - 1][1]) if index else first), end
