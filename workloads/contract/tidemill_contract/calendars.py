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
    def max_days(self) -> int:
        """The maximum number of days in a calendar unit."""
        return self.count if self.unit == "day" else _max_days(self.count)

    @property
    def longest_ms(self) -> int:
        """The maximum length of a calendar unit in milliseconds, with a day added for clock changes."""
        return (self.max_days + 1) * DAY_MS

    def start_of(self, time_ms: int) -> int:
        """Return the start of the calendar unit that contains a time (epoch ms)."""
        chunk, index = self._locate(time_ms)
        return _chunk_starts(self, chunk)[index]

    def shift(self, start_ms: int, count: int) -> int:
        """Return the start (epoch ms) of the unit that is `count` units after the unit at `start_ms`.

        `count` can be negative.
        """
        chunk, index = self._locate(start_ms)
        index += count
        while index < 0:
            chunk -= 1
            index += len(_chunk_starts(self, chunk))
        while index >= len(_chunk_starts(self, chunk)):
            index -= len(_chunk_starts(self, chunk))
            chunk += 1
        return _chunk_starts(self, chunk)[index]

    def starts(self, first_ms: int, last_ms: int) -> list[int]:
        """Return the starts (epoch ms, ascending) of the units that contain a time between `first_ms` and `last_ms`."""
        chunk, index = self._locate(first_ms)
        end, last = self._locate(last_ms)
        unit_starts: list[int] = []
        while chunk < end:
            unit_starts += _chunk_starts(self, chunk)[index:]
            chunk, index = chunk + 1, 0
        return [*unit_starts, *_chunk_starts(self, end)[index : last + 1]]

    def wall_ms(self, time_ms: int) -> int:
        """Return `time_ms` plus the zone's UTC offset at that time."""
        local = (_EPOCH + time_ms * _MS).replace(tzinfo=UTC).astimezone(zoneinfo.ZoneInfo(self.zone))
        return (local.replace(tzinfo=None) - _EPOCH) // _MS

    def starts_between(self, since: dt.datetime, until: dt.datetime) -> Iterator[dt.datetime]:
        """Yield the starts of calendar units as naive datetimes in UTC.

        The first start is before `since`, and the last start is after `until`.
        """
        zone, end = zoneinfo.ZoneInfo(self.zone), until.replace(tzinfo=None)
        # The local date differs from the UTC date by at most one day.
        number = self._unit_number(since.replace(tzinfo=None) - DAY)
        previous = None
        while previous is None or previous <= end:
            start = _first_instant(self._unit_start(number), zone)
            if start != previous:
                yield start
            previous, number = start, number + 1

    def _locate(self, time_ms: int) -> tuple[int, int]:
        chunk = time_ms // _CHUNK_MS
        index = bisect_right(_chunk_starts(self, chunk), time_ms) - 1
        while index < 0:
            chunk -= 1
            index = len(_chunk_starts(self, chunk)) - 1
        return chunk, index

    def _unit_number(self, wall: dt.datetime) -> int:
        day = (wall - self.offset_ms * _MS).date()
        if self.unit == "day":
            return ((day - _DAY_ZERO).days - self.first_day) // self.count
        return ((day.year - _DAY_ZERO.year) * 12 + day.month - 1) // self.count

    def _unit_start(self, number: int) -> dt.datetime:
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
def _max_days(months: int) -> int:
    firsts = [dt.date(1970 + at // 12, at % 12 + 1, 1) for at in range(0, 12 * 4 * months + 1, months)]
    return max((end - start).days for start, end in pairwise(firsts))


@lru_cache(maxsize=64)
def _chunk_starts(calendar: Calendar, chunk: int) -> tuple[int, ...]:
    low, high = _EPOCH + chunk * _CHUNK_MS * _MS, _EPOCH + (chunk + 1) * _CHUNK_MS * _MS
    starts = calendar.starts_between(low - DAY, high)
    return tuple((start - _EPOCH) // _MS for start in starts if low <= start < high)


@dataclass(frozen=True)
class UnitRuns:
    """Consecutive calendar units, divided into sequences (runs) of units with equal length.

    The last unit of a run may be longer or shorter than the others. An example is a day of 23 hours.

    Attributes:
        first_starts: for each run, the start of the run's first unit, ascending, as naive datetimes in UTC.
        last_starts: for each run except the last run, the start of the run's last unit.
        units_before: for each run, the number of units before the run.
    """

    first_starts: tuple[dt.datetime, ...]
    last_starts: tuple[dt.datetime, ...]
    units_before: tuple[int, ...]


@lru_cache(maxsize=256)
def find_runs(calendar: Calendar, first_year: int, last_year: int) -> UnitRuns:
    """Return the runs of a calendar's units in the years `first_year` to `last_year`, inclusive."""
    since = dt.datetime(min(max(first_year, FIRST_YEAR), LAST_YEAR), 1, 1)
    until = dt.datetime(min(max(last_year, FIRST_YEAR), LAST_YEAR) + 1, 1, 1)
    starts, length = calendar.starts_between(since, until), calendar.max_days * DAY
    previous = next(starts)
    first_starts, last_starts, units_before = [previous], [], [0]
    for number, start in enumerate(starts, 1):
        if start - previous != length:
            last_starts.append(previous)
            first_starts.append(start)
            units_before.append(number)
        previous = start
    return UnitRuns(tuple(first_starts), tuple(last_starts), tuple(units_before))
