"""Days of a time zone: where buckets of them start, by the zone's rules, as arrays that SQL finds a time's bucket in.

Postgres is not asked for local times: of two midnights it takes the later one, it shifts a skipped one, and its rules
may be of another edition than Python's.
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
"""Years whose buckets, ten years long at most, Python can tell the starts of; later days are as the last ones are."""


@dataclass(frozen=True)
class Runs:
    """Starts of buckets, as runs of buckets of the usual length: a few times stand for very many.

    Attributes:
        firsts: where the first bucket of each run starts, ascending; as `lasts` in UTC, without a zone.
        lasts: where the last bucket of each run but the last starts. It ends where the next run starts, so it may be
            shorter or longer than usual. The last run has no end.
    """

    firsts: tuple[dt.datetime, ...]
    lasts: tuple[dt.datetime, ...]


def _first_instant(midnight: dt.datetime) -> dt.datetime:
    """Where a midnight's day starts (UTC, without a zone): the first instant whose date is this day or later."""
    before, after = midnight.utcoffset() or _NONE, midnight.replace(fold=1).utcoffset() or _NONE
    wall = midnight.replace(tzinfo=None)
    earliest = wall - before
    if before >= after:
        # Midnight comes once, or twice: without `fold` the first is meant.
        return earliest
    # Midnight is skipped: the day starts where the clocks are put forward.
    low, high = wall - after, earliest
    while high - low > _SECOND:
        middle = low + (high - low) // _SECOND // 2 * _SECOND
        if middle.replace(tzinfo=UTC).astimezone(midnight.tzinfo).replace(tzinfo=None) < wall:
            low = middle
        else:
            high = middle
    return high


def bucket_starts(zone: zoneinfo.ZoneInfo, days: int, since: dt.datetime, until: dt.datetime) -> Iterator[dt.datetime]:
    """Starts of buckets of so many days each, counted from 1970-01-01; of skipped days alone there is no bucket.

    Args:
        zone: whose days.
        days: length of a bucket.
        since: the first bucket starts before it.
        until: the last bucket, and no other, starts after it.

    Yields:
        Times in UTC, without a zone, ascending.
    """
    # A date in the zone is at most a day away from the date in UTC.
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
    """The buckets of a zone that hold the times of some years.

    Args:
        zone: an IANA name.
        days: length of a bucket, at most ten years.
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
