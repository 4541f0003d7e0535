"""Grids divide time into consecutive steps (panes, windows or buckets), in Python and in SQL."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

from tidemill_contract.calendars import DAY_MS, Calendar, UnitRuns, find_runs

FIRST_YEAR, YEARS_AHEAD = 1970, 11
"""The first year of valid event times. Event times can be at most `YEARS_AHEAD` years ahead of the clock."""


class Grid(Protocol):
    """A division of time (epoch milliseconds) into steps. Each step ends where the next step starts."""

    @property
    def longest_ms(self) -> int:
        """The maximum length of a step."""

    @property
    def offset_ms(self) -> int:
        """The start of a step, in milliseconds after local midnight (calendars) or after the epoch (fixed steps)."""

    def start_of(self, time_ms: int) -> int:
        """Return the start of the step that contains a time."""

    def shift(self, start_ms: int, count: int) -> int:
        """Return the start of the step that is `count` steps after the step at `start_ms`.

        `count` can be negative.
        """

    def wall_ms(self, time_ms: int) -> int:
        """Return `time_ms` plus the zone's UTC offset at that time."""


@dataclass(frozen=True)
class Steps:
    """Steps of a fixed length, aligned to the time `offset_ms` (epoch ms)."""

    length_ms: int
    offset_ms: int = 0

    @property
    def longest_ms(self) -> int:
        """The length."""
        return self.length_ms

    def start_of(self, time_ms: int) -> int:
        """Return the step's start."""
        return time_ms - (time_ms - self.offset_ms) % self.length_ms

    def shift(self, start_ms: int, count: int) -> int:
        """Return the shifted time."""
        return start_ms + count * self.length_ms

    def wall_ms(self, time_ms: int) -> int:
        """Return the time unchanged."""
        return time_ms


class GridSql(Protocol):
    """SQL that computes the steps of a grid. Arguments of type str are SQL expressions for times."""

    def start(self, time: str) -> str:
        """Return SQL for the start of the step that contains a time."""

    def end(self, start: str) -> str:
        """Return SQL for the end of the step that starts at a time."""

    def shift(self, start: str, count: int) -> str:
        """Return SQL that moves `start`, the start of a step, by `count` steps."""

    def series(self, since: str, until: str) -> str:
        """Return a SELECT with a row for each step that begins in [since, until).

        The column `start` contains the time at which the step begins.
        """

    def windows(self, pane: str, count: int, *, first: str | None, last: str | None) -> str:
        """Return a SELECT of the starts and ends (`_start`, `_end`) of the windows that contain a pane.

        `count` is the number of panes in a window. `first` is the start of the first wanted window, and `last` is the
        start of the last wanted window. None means no limit. If no window starts at `first`, the window that starts
        before `first` is included too.
        """


def grid_sql(grid: Steps | Calendar, years: tuple[int, int] | None = None) -> GridSql:
    """Return the SQL of a grid.

    `years` are the first and the last year that the SQL of a calendar supports. If `years` is None, the SQL supports
    all valid event times.
    """
    if isinstance(grid, Steps):
        return StepsSql(grid.length_ms, grid.offset_ms)
    if years is None:
        years = FIRST_YEAR - YEARS_AHEAD, dt.datetime.now(dt.UTC).year + 2 * YEARS_AHEAD
    return calendar_sql(grid, *years)


@dataclass(frozen=True)
class StepsSql:
    """The SQL of steps of a fixed length."""

    length_ms: int
    offset_ms: int = 0

    def start(self, time: str) -> str:
        """Return SQL for a step's start."""
        origin = "timestamptz 'epoch'"
        if self.offset_ms:
            origin = f"({origin} + interval '{self.offset_ms} milliseconds')"
        return f"date_bin({self._length()}, {time}, {origin})"

    def end(self, start: str) -> str:
        """Return SQL for a step's end."""
        return f"({self.shift(start, 1)})"

    def shift(self, start: str, count: int) -> str:
        """Return SQL that adds the length of `count` steps to a time. `count` can be negative."""
        return f"{start} + {self._length(count)}" if count >= 0 else f"{start} - {self._length(-count)}"

    def series(self, since: str, until: str) -> str:
        """Return a SELECT statement for the starts of all steps in [since, until)."""
        series = f"generate_series({self.start(since)}, {until}, {self._length()}) AS start"
        return f"SELECT start FROM {series} WHERE start >= {since} AND start < {until}"

    def windows(self, pane: str, count: int, *, first: str | None, last: str | None) -> str:
        """Return a SELECT statement for the windows that contain the given pane."""
        low, high = self.shift(pane, 1 - count), pane
        if first is not None:
            low = f"greatest({low}, {self.start(first)})"
        if last is not None:
            high = f"least({high}, {last})"
        starts = f"generate_series({low}, {high}, {self._length()}) AS _start"
        return f"SELECT _start, {self.shift('_start', count)} AS _end FROM {starts}"

    def _length(self, count: int = 1) -> str:
        return f"interval '{self.length_ms * count} milliseconds'"


@dataclass(frozen=True)
class CalendarSql:
    """SQL that computes calendar units.

    `first_starts`, `last_starts` and `units_before` are SQL arrays with the values of `calendars.UnitRuns`.
    """

    length_ms: int
    first_starts: str
    last_starts: str
    units_before: str = ""

    def start(self, time: str) -> str:
        """Return SQL for the start of a calendar unit."""
        run = f"width_bucket({time}, {self.first_starts})"
        return f"least(date_bin({self._length}, {time}, ({self.first_starts})[{run}]), ({self.last_starts})[{run}])"

    def end(self, start: str) -> str:
        """Return SQL for the end of a calendar unit."""
        run = f"width_bucket({start}, {self.first_starts})"
        following = f"({self.first_starts})[{run} + 1]"
        return f"(CASE WHEN {start} = ({self.last_starts})[{run}] THEN {following} ELSE {start} + {self._length} END)"

    def shift(self, start: str, count: int) -> str:
        """Return SQL for moving the start of a calendar unit by `count` units. `count` may be negative."""
        return (
            f"(SELECT {self._start_of_number('_to', '_number')} FROM {self._arrays},"
            f" {self._number_source(start, count)},"
            f" LATERAL (SELECT width_bucket(_number, _numbers) AS _to) AS _r)"
        )

    def series(self, since: str, until: str) -> str:
        """Return a SELECT of the starts of calendar units."""
        series = (
            f"unnest({self.first_starts}, {self.last_starts}) AS r(first, last),"
            f" generate_series(first, least(last, {until}), {self._length}) AS start"
        )
        return f"SELECT start FROM {series} WHERE start >= {since} AND start < {until}"

    def windows(self, pane: str, count: int, *, first: str | None, last: str | None) -> str:
        """Return a SELECT statement for the windows that contain the given pane."""
        wanted = [f"_start >= {first}"] if first is not None else []
        wanted += [f"_start <= {last}"] if last is not None else []
        where = f" WHERE {' AND '.join(wanted)}" if wanted else ""
        return (
            f"SELECT _start, _end FROM {self._arrays}, {self._number_source(pane, 0)},"
            f" generate_series(_number - {count - 1}, _number) AS _k,"
            f" LATERAL (SELECT width_bucket(_k, _numbers) AS _from, width_bucket(_k + {count}, _numbers) AS _to) AS _r,"
            f" LATERAL (SELECT {self._start_of_number('_from', '_k')} AS _start,"
            f" {self._start_of_number('_to', f'_k + {count}')} AS _end) AS _w{where}"
        )

    @property
    def _arrays(self) -> str:
        return f"(SELECT {self.first_starts} AS _firsts, {self.units_before} AS _numbers) AS _a"

    def _number_source(self, start: str, count: int) -> str:
        """Return a FROM item with the column `_number`, a calendar unit's zero-based position.

        The calendar unit is `count` units later than the unit that contains `start`.
        """
        elapsed = f"(extract(epoch FROM {start} - _firsts[_run]) * 1000)::bigint"
        return (
            f"LATERAL (SELECT width_bucket({start}, _firsts) AS _run) AS _s, LATERAL"
            f" (SELECT _numbers[_run] + {elapsed} / {self.length_ms} + {count} AS _number) AS _n"
        )

    def _start_of_number(self, run: str, number: str) -> str:
        return f"_firsts[{run}] + ({number} - _numbers[{run}]) * {self._length}"

    @property
    def _length(self) -> str:
        return f"interval '{self.length_ms} milliseconds'"


@lru_cache(maxsize=256)
def calendar_sql(calendar: Calendar, first_year: int, last_year: int) -> CalendarSql:
    """Return the SQL of a calendar for the years `first_year` to `last_year`, inclusive."""
    runs: UnitRuns = find_runs(calendar, first_year, last_year)
    units_before = "'{" + ",".join(map(str, runs.units_before)) + "}'::bigint[]"
    return CalendarSql(calendar.max_days * DAY_MS, _times(runs.first_starts), _times(runs.last_starts), units_before)


def _times(times: tuple[dt.datetime, ...]) -> str:
    return "'{" + ",".join(f"{time.isoformat()}Z" for time in times) + "}'::timestamptz[]"
