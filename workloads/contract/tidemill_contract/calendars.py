"""Compute where days, weeks, months, quarters and years of a time zone start.

The starts are computed in Python, because Postgres and Python differ if clocks change at midnight.
"""

from __future__ import annotations

import datetime as dt
import zoneinfo
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Literal

from tidemill_contract.duration import calendar_units

UTC = dt.UTC
DAY, _SECOND, _MS, _NONE = dt.timedelta(days=1), dt.timedelta(seconds=1), dt.timedelta(milliseconds=1), dt.timedelta()
DAY_MS = 86_400_000
MONDAY = 4
"""The number of days from 1970-01-01 to the first Monday."""
FIRST_YEAR, LAST_YEAR = 32, 9968
"""Unit starts are computed only from the first to the last of these years. Python supports the years 1 to 9999."""
_EPOCH, _DAY_ZERO = dt.datetime(1970, 1, 1), dt.date(1970, 1, 1)
_CHUNK_MS = 3_653 * DAY_MS
"""The length of a period in milliseconds (ten years). Unit starts are computed and cached for a whole period."""


@dataclass(frozen=True)
class Calendar:
    """The calendar units of one length in one time zone, for example weeks in Europe/Berlin.

    Attributes:
        unit: whether `count` is a number of days or of months.
        offset_ms: the time from local midnight to the start of a calendar unit.
        first_day: the first day of any calendar unit, in days after 1970-01-01, such as 4 (a Monday) for weeks.
    """

    unit: Literal["day", "month"]
    count: int
    zone: str = "UTC"
    offset_ms: int = 0
    first_day: int = 0

    @classmethod
    def of(cls, length: str, zone: str | None = None, offset_ms: int = 0) -> Calendar:
        """Return the calendar for a length such as `1d`, `2w`, `1mo`, `1q` or `1y`. Weeks start on Monday.

        Raises:
            ValueError: the unit of the length is unknown, or the length exceeds 3650 days.
        """
        units = calendar_units(length)
        if units is None:
            raise ValueError(f"'{length}' is not a length in days, weeks, months, quarters or years")
        return cls(*units, zone or "UTC", offset_ms, MONDAY if length.endswith("w") else 0)

    @property
    def text(self) -> str:
        """The length of a calendar unit as text, such as `1w` or `1q`."""
        if self.unit == "day":
            weeks = self.first_day == MONDAY and self.count % 7 == 0
            return f"{self.count // 7}w" if weeks else f"{self.count}d"
        for number, name in ((12, "y"), (3, "q")):
            if self.count % number == 0:
                return f"{self.count // number}{name}"
        return f"{self.count}mo"

    @property
    def days(self) -> int:
        """The maximum number of days in a calendar unit."""
        return self.count if self.unit == "day" else _most_days(self.count)

    @property
    def longest_ms(self) -> int:
        """The maximum length of a calendar unit in milliseconds, with a day added for clock changes."""
        return (self.days + 1) * DAY_MS

    def start_of(self, time_ms: int) -> int:
        """Return the start of the calendar unit that contains a time (epoch ms)."""
        chunk, at = self._place(time_ms)
        return _chunk(self, chunk)[at]

    def shift(self, start_ms: int, count: int) -> int:
        """Return the start (epoch ms) of the unit that is `count` units after the unit at `start_ms`.

        `count` can be negative.
        """
        chunk, at = self._place(start_ms)
        at += count
        while at < 0:
            chunk -= 1
            at += len(_chunk(self, chunk))
        while at >= len(_chunk(self, chunk)):
            at -= len(_chunk(self, chunk))
            chunk += 1
        return _chunk(self, chunk)[at]

    def starts(self, first_ms: int, last_ms: int) -> list[int]:
        """Return the starts (epoch ms, ascending) of the units that contain a time between `first_ms` and `last_ms`."""
        chunk, at = self._place(first_ms)
        end, last = self._place(last_ms)
        unit_starts: list[int] = []
        while chunk < end:
            unit_starts += _chunk(self, chunk)[at:]
            chunk, at = chunk + 1, 0
        return [*unit_starts, *_chunk(self, end)[at : last + 1]]

    def wall_ms(self, time_ms: int) -> int:
        """Return `time_ms` plus the zone's UTC offset at that time."""
        local = (_EPOCH + time_ms * _MS).replace(tzinfo=UTC).astimezone(zoneinfo.ZoneInfo(self.zone))
        return (local.replace(tzinfo=None) - _EPOCH) // _MS

    def between(self, since: dt.datetime, until: dt.datetime) -> Iterator[dt.datetime]:
        """Yield the starts of calendar units as naive datetimes in UTC.

        The first start is before `since`, and the last start is after `until`.
        """
        zone, end = zoneinfo.ZoneInfo(self.zone), until.replace(tzinfo=None)
        # The local date differs from the UTC date by at most one day.
        number = self._number(since.replace(tzinfo=None) - DAY)
        previous = None
        while previous is None or previous <= end:
            start = _first_instant(self._wall(number), zone)
            if start != previous:
                yield start
            previous, number = start, number + 1

    def _place(self, time_ms: int) -> tuple[int, int]:
        chunk = time_ms // _CHUNK_MS
        at = bisect_right(_chunk(self, chunk), time_ms) - 1
        while at < 0:
            chunk -= 1
            at = len(_chunk(self, chunk)) - 1
        return chunk, at

    def _number(self, wall: dt.datetime) -> int:
        day = (wall - self.offset_ms * _MS).date()
        if self.unit == "day":
            return ((day - _DAY_ZERO).days - self.first_day) // self.count
        return ((day.year - _DAY_ZERO.year) * 12 + day.month - 1) // self.count

    def _wall(self, number: int) -> dt.datetime:
        offset = self.offset_ms * _MS
        if self.unit == "day":
            return _EPOCH + (self.first_day + number * self.count) * DAY + offset
        years, month = divmod(number * self.count, 12)
        return dt.datetime(_DAY_ZERO.year + years, month + 1, 1) + offset


def _first_instant(wall: dt.datetime, zone: zoneinfo.ZoneInfo) -> dt.datetime:
    """Return the UTC time at which clocks in the zone first show the local time `wall`.

    If a clock change skips `wall`, return the UTC time of the clock change.
    """
    local = wall.replace(tzinfo=zone)
    before, after = local.utcoffset() or _NONE, local.replace(fold=1).utcoffset() or _NONE
    earliest = wall - before
    if before >= after:
        # Clocks in the zone show `wall` at least once. If `wall` occurs twice, `before` is the UTC offset of its first
        # occurrence.
        return earliest
    # A clock change skips the local time `wall`, because the UTC offset increases. A bisection finds the time of the
    # clock change.
    low, high = wall - after, earliest
    while high - low > _SECOND:
        middle = low + (high - low) // _SECOND // 2 * _SECOND
        if middle.replace(tzinfo=UTC).astimezone(zone).replace(tzinfo=None) < wall:
            low = middle
        else:
            high = middle
    return high


@lru_cache(maxsize=256)
def _most_days(months: int) -> int:
    firsts = [dt.date(1970 + at // 12, at % 12 + 1, 1) for at in range(0, 12 * 4 * months + 1, months)]
    return max((end - start).days for start, end in pairwise(firsts))


@lru_cache(maxsize=64)
def _chunk(calendar: Calendar, chunk: int) -> tuple[int, ...]:
    low, high = _EPOCH + chunk * _CHUNK_MS * _MS, _EPOCH + (chunk + 1) * _CHUNK_MS * _MS
    starts = calendar.between(low - DAY, high)
    return tuple((start - _EPOCH) // _MS for start in starts if low <= start < high)


@dataclass(frozen=True)
class Runs:
    """Consecutive calendar units, divided into sequences (runs) of units with equal length.

    The last unit of a run may be longer or shorter than the others. An example is a day of 23 hours.

    Attributes:
        firsts: for each run, the start of the run's first unit, ascending, as naive datetimes in UTC.
        lasts: for each run except the last run, the start of the run's last unit.
        numbers: for each run, the number of units before the run.
    """

    firsts: tuple[dt.datetime, ...]
    lasts: tuple[dt.datetime, ...]
    numbers: tuple[int, ...]


@lru_cache(maxsize=256)
def runs(calendar: Calendar, first_year: int, last_year: int) -> Runs:
    """Return the starts of a calendar's units in the years `first_year` to `last_year`, inclusive."""
    since = dt.datetime(min(max(first_year, FIRST_YEAR), LAST_YEAR), 1, 1)
    until = dt.datetime(min(max(last_year, FIRST_YEAR), LAST_YEAR) + 1, 1, 1)
    starts, length = calendar.between(since, until), calendar.days * DAY
    previous = next(starts)
    firsts, lasts, numbers = [previous], [], [0]
    for number, start in enumerate(starts, 1):
        if start - previous != length:
            lasts.append(previous)
            firsts.append(start)
            numbers.append(number)
        previous = start
    return Runs(tuple(firsts), tuple(lasts), tuple(numbers))
