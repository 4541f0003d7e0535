"""Roll-ups over time: the buckets to which stored windows or panes are combined."""

from __future__ import annotations

import datetime as dt
import re
import zoneinfo
from dataclasses import dataclass
from functools import lru_cache

from tidemill_api.query.local_days import runs
from tidemill_api.query.selection import Binder
from tidemill_chassis.web.problems import bad_parameter
from tidemill_contract.duration import format_ms, parse_ms
from tidemill_contract.functions.partials import AggregationLayout

DAY_MS = 86_400_000
_ZONE = re.compile(r"[A-Za-z][A-Za-z0-9_+\-]*(/[A-Za-z0-9_+\-]+){0,2}", re.ASCII)


@dataclass(frozen=True)
class Bucket:
    """A roll-up over time.

    Attributes:
        length_ms: length of the buckets, which are aligned to the epoch; None: there is one bucket for everything.
        zone: time zone at whose midnights the buckets start; None: UTC.
    """

    length_ms: int | None
    zone: str | None = None

    @property
    def reach_ms(self) -> int:
        """The maximum length of a bucket. Days of a time zone can be longer than 24 hours."""
        return 0 if self.length_ms is None else self.length_ms + (DAY_MS if self.zone else 0)

    def cut(self, binder: Binder, first_year: int, last_year: int) -> Cut:
        """Return the SQL of the buckets.

        Args:
            binder: collects the SQL parameters.
            first_year: first year with times of the query.
            last_year: last year with times of the query.
        """
        length = self.length_ms or DAY_MS
        if self.zone is None:
            return Cut(length)
        found = runs(self.zone, length // DAY_MS, first_year, last_year)
        return Cut(length, _bind_times(binder, found.firsts), _bind_times(binder, found.lasts))


@dataclass(frozen=True)
class Cut:
    """The SQL that finds the buckets of times.

    Attributes:
        length_ms: usual length of a bucket.
        firsts, lasts: SQL arrays of `local_days.Runs`; None: all buckets have the usual length and are aligned to the
            epoch.
    """

    length_ms: int
    firsts: str | None = None
    lasts: str | None = None

    def start(self, time: str) -> str:
        """Return the SQL of the start of the bucket with a time (an SQL expression)."""
        if self.firsts is None:
            return f"date_bin({self._length}, {time}, timestamptz 'epoch')"
        run = f"width_bucket({time}, {self.firsts})"
        return f"least(date_bin({self._length}, {time}, ({self.firsts})[{run}]), ({self.lasts})[{run}])"

    def end(self, start: str) -> str:
        """Return the SQL of the end of the bucket that starts at a time (an SQL expression)."""
        usual = f"{start} + {self._length}"
        if self.firsts is None:
            return f"({usual})"
        run = f"width_bucket({start}, {self.firsts})"
        following = f"({self.firsts})[{run} + 1]"
        return f"(CASE WHEN {start} = ({self.lasts})[{run}] THEN {following} ELSE {usual} END)"

    def series(self, since: str, until: str) -> str:
        """Return a SELECT of the starts (`start`) of all buckets that start in [since, until), two SQL expressions."""
        if self.firsts is None:
            series = f"generate_series({self.start(since)}, {until}, {self._length}) AS start"
        else:
            series = (
                f"unnest({self.firsts}, {self.lasts}) AS r(first, last),"
                f" generate_series(first, least(last, {until}), {self._length}) AS start"
            )
        return f"SELECT start FROM {series} WHERE start >= {since} AND start < {until}"

    @property
    def _length(self) -> str:
        return f"interval '{self.length_ms} milliseconds'"


def _bind_times(binder: Binder, times: tuple[dt.datetime, ...]) -> str:
    return binder.bind_as("{" + ",".join(f"{time.isoformat()}Z" for time in times) + "}", "timestamptz[]")


def take_bucket(granularity: str | None, tz: str | None, plan: AggregationLayout) -> Bucket | None:
    """Return the roll-up of a request; None: the stored windows.

    Raises:
        Problem: the granularity is no multiple of the stored length, or the time zone is unknown or does not fit.
    """
    zone = None if tz in (None, "UTC", "Etc/UTC") else _zone(str(tz))
    if granularity is None:
        if zone:
            raise bad_parameter("tz", "it needs a granularity in whole days; give granularity=1d (or 7d, …) as well")
        return None
    if granularity == "all":
        if zone:
            raise bad_parameter("tz", "it has no meaning with granularity=all; leave it out")
        return Bucket(None)
    try:
        length = parse_ms(granularity)
    except ValueError as error:
        raise bad_parameter("granularity", f"{error}; or `all` for one bucket") from None
    what = "hop" if plan.hopping else "window size"
    if length == 0 or length % plan.pane_ms:
        text = f"{granularity!r} is not a multiple of the {what} {format_ms(plan.pane_ms)}"
        raise bad_parameter("granularity", f"{text}; write e.g. {format_ms(plan.pane_ms * 2)}, or all")
    if zone is None:
        return Bucket(length)
    if length % DAY_MS:
        raise bad_parameter("tz", f"it needs a granularity in whole days, not {granularity}; write e.g. 1d")
    if any(offset % plan.pane_ms for offset in _offsets_ms(zone)):
        text = f"days of {zone} do not start at multiples of the {what} {format_ms(plan.pane_ms)}"
        raise bad_parameter("tz", f"{text}; use UTC, or an aggregation with a shorter {what}")
    return Bucket(length, zone)


def _zone(name: str) -> str:
    try:
        if len(name) > 64 or not _ZONE.fullmatch(name):
            raise ValueError
        zoneinfo.ZoneInfo(name)
    except (ValueError, OSError, zoneinfo.ZoneInfoNotFoundError):
        raise bad_parameter("tz", f"{name[:64]!r} is no time zone; write e.g. America/New_York") from None
    return name


@lru_cache(maxsize=512)
def _offsets_ms(zone: str) -> frozenset[int]:
    """Return the offsets from UTC of a time zone from 1970 to 2050, in milliseconds."""
    info = zoneinfo.ZoneInfo(zone)
    moments = (dt.datetime(year, month, 1, tzinfo=dt.UTC) for year in range(1970, 2051) for month in (1, 4, 7, 10))
    return frozenset(int((m.astimezone(info).utcoffset() or dt.timedelta()).total_seconds() * 1000) for m in moments)
