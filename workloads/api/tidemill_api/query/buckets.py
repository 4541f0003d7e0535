"""Coarser time: buckets that stored windows or panes are rolled up into."""

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
        length_ms: bucket length, aligned to the epoch; None: everything in one bucket.
        zone: buckets of whole days that start at this time zone's midnight.
    """

    length_ms: int | None
    zone: str | None = None

    @property
    def reach_ms(self) -> int:
        """The longest that a bucket may last; a local day may have an hour more."""
        return 0 if self.length_ms is None else self.length_ms + (DAY_MS if self.zone else 0)

    def cut(self, binder: Binder, first_year: int, last_year: int) -> Cut:
        """SQL of its buckets.

        Args:
            binder: takes the parameters.
            first_year: no time looked for is earlier.
            last_year: no time looked for is later.
        """
        length = self.length_ms or DAY_MS
        if self.zone is None:
            return Cut(length)
        found = runs(self.zone, length // DAY_MS, first_year, last_year)
        return Cut(length, _bind_times(binder, found.firsts), _bind_times(binder, found.lasts))


@dataclass(frozen=True)
class Cut:
    """SQL that finds the buckets of times.

    Attributes:
        length_ms: usual length of a bucket.
        firsts: SQL arrays of `local_days.Runs`; None: all are of the usual length, aligned to the epoch.
        lasts: likewise.
    """

    length_ms: int
    firsts: str | None = None
    lasts: str | None = None

    def start(self, time: str) -> str:
        """The start of the bucket that a time (SQL expression) is in."""
        if self.firsts is None:
            return f"date_bin({self._length}, {time}, timestamptz 'epoch')"
        run = f"width_bucket({time}, {self.firsts})"
        return f"least(date_bin({self._length}, {time}, ({self.firsts})[{run}]), ({self.lasts})[{run}])"

    def end(self, start: str) -> str:
        """The end of the bucket that starts at a time (SQL expression)."""
        usual = f"{start} + {self._length}"
        if self.firsts is None:
            return f"({usual})"
        run = f"width_bucket({start}, {self.firsts})"
        following = f"({self.firsts})[{run} + 1]"
        return f"(CASE WHEN {start} = ({self.lasts})[{run}] THEN {following} ELSE {usual} END)"

    def series(self, since: str, until: str) -> str:
        """A SELECT of the starts (`start`) of all buckets that start in [since, until), SQL expressions both."""
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
    """The roll-up that a request asks for; None: the windows as they are.

    Raises:
        Problem: not a multiple of what is stored, or an unknown or unfitting time zone.
    """
    zone = None if tz in (None, "UTC", "Etc/UTC") else _zone(str(tz))
    if granularity is None:
        if zone:
            raise bad_parameter("tz", "it shifts buckets of whole days: give granularity=1d (or 7d, …) as well")
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
        raise bad_parameter("tz", f"it shifts buckets of whole days only; granularity is {granularity}")
    if any(offset % plan.pane_ms for offset in _offsets_ms(zone)):
        text = f"days of {zone} cannot be made of stored pieces of {format_ms(plan.pane_ms)}"
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
    """Offsets from UTC that a zone has had since 1970, in milliseconds."""
    info = zoneinfo.ZoneInfo(zone)
    moments = (dt.datetime(year, month, 1, tzinfo=dt.UTC) for year in range(1970, 2051) for month in (1, 4, 7, 10))
    return frozenset(int((m.astimezone(info).utcoffset() or dt.timedelta()).total_seconds() * 1000) for m in moments)
