"""How the time-partitioned tables of a pipeline are cut; operator and processor must agree on it."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Collection, Iterator, Sequence
from itertools import chain

DAY_MS = 86_400_000
MAX_PARTITION_TABLES = 400
WIDEN_EVERY = 50
"""Beyond that many tables new ones are twice as wide, and twice as wide again after so many more."""
MAX_NEW_TABLES = 100
"""So many are made for one batch at most, and fewer where that would be too many together."""

Span = tuple[int, int]
"""Days since the epoch, the end excluded."""


def partition_days(retention_ms: int) -> int:
    """Width of a time partition in days: at least one, and few enough tables for the whole retention."""
    return max(1, -(-retention_ms // DAY_MS) // MAX_PARTITION_TABLES)


def new_partitions(days: Collection[int], width: int, held: Sequence[Span]) -> list[Span]:
    """Partitions to make, so that each of these days is in one; ascending, apart from each other and from `held`.

    The newest days get partitions of `width`. Where the table has many already, all new ones are wider; where a batch
    needs many, older days share some. So history of any length is stored, in a bounded number of tables: `days` without
    an end make a number that grows with their logarithm.

    Args:
        days: days since the epoch.
        width: of a partition, in days, where nothing speaks for another one.
        held: what the partitions of the table hold.
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
    """What lies free around these days (ascending, none of them held) within multiples of `width`."""
    done = None
    for day in missing:
        if done is not None and day < done:
            continue
        at, first = bisect_right(lows, day), day // width * width
        done = min(first + width, lows[at]) if at < len(lows) else first + width
        yield (max(first, held[at - 1][1]) if at else first), done
