"""Computes the starts of buckets of whole days in a time zone, as arrays in which SQL finds the bucket of a time.

Postgres is not used to compute local times. It takes the later one of two midnights, it shifts a midnight that does not
exist, and its version of the time zone rules can differ from Python's.
"""

from __future__ import annotations

import datetime as dt
import zoneinfo
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

UTC = dt.UTC
DAY, _SECOND, _NONE = dt.timedelta(days=1), dt.timedelta(seconds=1), dt.timedelta()
_DAY_ZERO = dt.date(1970, 1, 1)
FIRST_YEAR, LAST_YEAR = 32, 9968
"""The years for which Python can compute buckets of at most ten years. Later days follow the rules of the last year."""


@dataclass(frozen=True)
class Runs:
    """The starts of buckets in a compact form. A run is a sequence of buckets of the usual length.

    Attributes:
        firsts: starts of the first buckets of the runs, ascending, in UTC without a zone.
        lasts: starts of the last buckets of the runs, likewise. Such a bucket ends where the next run starts, so it can
            be shorter or longer than usual. The last run has no end, and no entry here.
    """

    firsts: tuple[dt.datetime, ...]
    lasts: tuple[dt.datetime, ...]


def _first_instant(midnight: dt.datetime) -> dt.datetime:
    """Return the start of the day of a midnight: the first instant whose date is this day or later.

    The result is in UTC, without a zone.
    """
    before, after = midnight.utcoffset() or _NONE, midnight.replace(fold=1).utcoffset() or _NONE
    wall = midnight.replace(tzinfo=None)
    earliest = wall - before
    if before >= after:
        # Midnight occurs once or twice. `before` is its offset for `fold` 0, which means the first.
        return earliest
    # Midnight is skipped: the day starts when the clocks are put forward.
    low, high = wall - after, earliest
    while high - low > _SECOND:
        middle = low + (high - low) // _SECOND // 2 * _SECOND
        if middle.replace(tzinfo=UTC).astimezone(midnight.tzinfo).replace(tzinfo=None) < wall:
            low = middle
        else:
            high = middle
    return high


def bucket_starts(zone: zoneinfo.ZoneInfo, days: int, since: dt.datetime, until: dt.datetime) -> Iterator[dt.datetime]:
    """Yield the starts of buckets, counted from 1970-01-01. Buckets that have only skipped days are left out.

    Args:
        zone: the time zone.
        days: length of a bucket in days.
        since: the first bucket starts before this time.
        until: the last bucket, and no other, starts after this time.

    Yields:
        Times in UTC, without a zone, ascending.
    """
    # The date in the zone differs from the date in UTC by at most one day.
    day = _DAY_ZERO + ((since.date() - DAY - _DAY_ZERO).days // days) * days * DAY
    midnight, length, end = (
        dt.datetime(day.year, day.month, day.day, tzinfo=zone),
        days * DAY,
        until.replace(tzinfo=None),
    )
    previous = None
    while previous is None or previous <= end:
        start = _first_instant(midnight)
        if start != previous:
            yield start
        previous, midnight = start, midnight + length


@lru_cache(maxsize=256)
def runs(zone: str, days: int, first_year: int, last_year: int) -> Runs:
    """Return the buckets of a time zone for all times of some years.

    Args:
        zone: IANA name of the time zone.
        days: length of a bucket in days, at most ten years.
        first_year: the first year.
        last_year: the last year, included.
    """
    since = dt.datetime(min(max(first_year, FIRST_YEAR), LAST_YEAR), 1, 1, tzinfo=UTC)
    until = dt.datetime(min(max(last_year, FIRST_YEAR), LAST_YEAR) + 1, 1, 1, tzinfo=UTC)
    starts, length = bucket_starts(zoneinfo.ZoneInfo(zone), days, since, until), days * DAY
    previous = next(starts)
    firsts, lasts = [previous], []
    for start in starts:
        if start - previous != length:
            lasts.append(previous)
            firsts.append(start)
        previous = start
    return Runs(tuple(firsts), tuple(lasts))
