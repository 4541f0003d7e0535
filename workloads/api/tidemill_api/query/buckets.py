"""Roll-ups over time, which combine stored rows into longer windows (buckets)."""

from __future__ import annotations

import datetime as dt
import re
import zoneinfo
from dataclasses import dataclass, replace
from functools import lru_cache

from tidemill_chassis.web.problems import Problem, bad_parameter
from tidemill_contract.calendars import DAY_MS, Calendar
from tidemill_contract.duration import format_ms, is_calendar, min_length_ms, parse_ms
from tidemill_contract.functions.partials import AggregationLayout
from tidemill_contract.grids import Steps

_ZONE = re.compile(r"[A-Za-z][A-Za-z0-9_+\-]*(/[A-Za-z0-9_+\-]+){0,2}", re.ASCII)


@dataclass(frozen=True)
class Bucket:
    """A roll-up over time.

    Attributes:
        grid: the start times of buckets, or None if a single bucket contains all windows.
        least_ms: the length of the shortest bucket.
    """

    grid: Steps | Calendar | None
    least_ms: int = 0

    @property
    def reach_ms(self) -> int:
        """The length of the longest bucket in milliseconds, or 0 if one bucket contains all windows."""
        return 0 if self.grid is None else self.grid.longest_ms


def parse_bucket(granularity: str | None, tz: str | None, layout: AggregationLayout) -> Bucket | None:
    """Return the roll-up of a request, or None for the stored windows.

    A granularity other than `all` must be a multiple of the window size or hop.

    Raises:
        Problem: the granularity or time zone is wrong, or does not fit the stored windows.
    """
    zone = None if tz in (None, "UTC", "Etc/UTC") else _check_zone(str(tz))
    if granularity is None:
        if zone:
            raise bad_parameter("tz", "a time zone needs a granularity in whole days; add granularity=1d (or 7d, …)")
        return None
    if granularity == "all":
        if zone:
            raise bad_parameter("tz", "a time zone has no meaning with granularity=all; leave it out")
        return Bucket(None)
    try:
        length = min_length_ms(granularity)
    except ValueError as error:
        raise bad_parameter("granularity", f"{error}; or write `all` for a single window") from None
    grid = layout.grid
    if isinstance(grid, Calendar):
        return Bucket(_grid_from_calendar(granularity, tz, layout, grid), length)
    if not is_calendar(granularity) and (length == 0 or length % grid.length_ms):
        raise _multiple_problem(granularity, layout, format_ms(grid.length_ms), format_ms(grid.length_ms * 2))
    if is_calendar(granularity) or zone is not None:
        return Bucket(_grid_from_steps(granularity, zone, layout, grid), length)
    return Bucket(Steps(length, grid.offset_ms), length)


def _grid_from_calendar(granularity: str, tz: str | None, layout: AggregationLayout, grid: Calendar) -> Calendar:
    if tz is not None and _check_zone(tz).removeprefix("Etc/") != grid.zone.removeprefix("Etc/"):
        text = f"the windows follow the time zone {grid.zone}, and cannot be combined into days of {tz[:64]}"
        raise bad_parameter("tz", f"{text}; leave tz out")
    example = replace(grid, count=grid.count * 2).text
    try:
        bucket = Calendar.of(granularity, grid.zone, grid.offset_ms)
    except ValueError:
        raise _multiple_problem(granularity, layout, grid.text, example) from None
    if bucket.unit != grid.unit:
        is_multiple = grid.unit == "day" and grid.count == 1
    else:
        is_multiple = bucket.count % grid.count == 0 and (bucket.first_day - grid.first_day) % grid.count == 0
    if not is_multiple:
        raise _multiple_problem(granularity, layout, grid.text, example)
    return bucket


def _grid_from_steps(granularity: str, zone: str | None, layout: AggregationLayout, grid: Steps) -> Calendar:
    length, length_name = format_ms(grid.length_ms), _length_name(layout)
    if is_calendar(granularity):
        if DAY_MS % grid.length_ms:
            text = f"the {length_name} {length} does not divide a day, so weeks and longer units are not possible"
            raise bad_parameter("granularity", f"{text}; write e.g. {format_ms(grid.length_ms * 2)}, or all")
        bucket = Calendar.of(granularity, zone, grid.offset_ms)
    else:
        days, rest = divmod(parse_ms(granularity), DAY_MS)
        if rest:
            raise bad_parameter(
                "tz", f"a time zone needs a granularity in whole days, not {granularity}; write e.g. 1d"
            )
        bucket = Calendar("day", days, zone or "UTC", grid.offset_ms)
    if any(offset % grid.length_ms for offset in _offsets_ms(bucket.zone)):
        text = f"days of {zone} do not start at multiples of the {length_name} {length}"
        raise bad_parameter("tz", f"{text}; use UTC, or use an aggregation with a shorter {length_name}")
    return bucket


def _multiple_problem(granularity: str, layout: AggregationLayout, length: str, example: str) -> Problem:
    text = f"{granularity!r} is not a multiple of the {_length_name(layout)} {length}"
    return bad_parameter("granularity", f"{text}; write e.g. {example}, or all")


def _length_name(layout: AggregationLayout) -> str:
    return "hop" if layout.is_hopping else "window size"


def _check_zone(name: str) -> str:
    try:
        if len(name) > 64 or not _ZONE.fullmatch(name):
            raise ValueError
        zoneinfo.ZoneInfo(name)
    except (ValueError, OSError, zoneinfo.ZoneInfoNotFoundError):
        raise bad_parameter("tz", f"{name[:64]!r} is not a time zone; write e.g. America/New_York") from None
    return name


@lru_cache(maxsize=512)
def _offsets_ms(zone: str) -> frozenset[int]:
    info = zoneinfo.ZoneInfo(zone)
    moments = (dt.datetime(year, month, 1, tzinfo=dt.UTC) for year in range(1970, 2051) for month in (1, 4, 7, 10))
    return frozenset(int((m.astimezone(info).utcoffset() or dt.timedelta()).total_seconds() * 1000) for m in moments)
