"""Tests of the starts of days and longer units in all time zones, by comparison with a walk over zoneinfo."""

from __future__ import annotations

import datetime as dt
import importlib.resources
import zoneinfo
from bisect import bisect_right
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidemill_contract.calendars import DAY_MS, MONDAY, Calendar, UnitRuns, find_runs
from tidemill_contract.duration import min_length_ms
from tidemill_contract.grids import Steps
from tidemill_contract.times import epoch_ms

UTC, DAY, TICK, MINUTE = dt.UTC, dt.timedelta(days=1), dt.timedelta(minutes=15), dt.timedelta(minutes=1)
FIRST, LAST = dt.datetime(2015, 1, 1, tzinfo=UTC), dt.datetime(2036, 1, 1, tzinfo=UTC)
HOUR_MS = 3_600_000
SAMPLE = (
    "America/Havana", "Africa/Casablanca", "Pacific/Apia", "Asia/Gaza", "UTC", "Antarctica/Troll", "Europe/Oslo",
    "Australia/Lord_Howe", "America/St_Johns",
)  # fmt: skip


def zones() -> dict[str, tuple[list[dt.datetime], zoneinfo.ZoneInfo]]:
    """Return one zone of each group with equal times from 2015 to 2035, with times (UTC) just before its changes."""
    days = [FIRST + n * DAY for n in range((LAST - FIRST).days)]
    named = {rules(name): zoneinfo.ZoneInfo(name) for name in zoneinfo.available_timezones()}
    kept = {}
    for zone in named.values():
        offsets = [zone.utcoffset(day.replace(tzinfo=zone)) for day in days]
        changes = [n for n, (before, after) in enumerate(pairwise(offsets)) if before != after]
        kept[offsets[0], *((days[n], offsets[n + 1]) for n in changes)] = zone
    return {zone.key: ([time - DAY for time, _ in changes], zone) for (_, *changes), zone in kept.items()}


def rules(name: str) -> bytes:
    for folder in zoneinfo.TZPATH:
        if (Path(folder) / name).is_file():
            return (Path(folder) / name).read_bytes()
    return importlib.resources.files("tzdata.zoneinfo").joinpath(name).read_bytes()


def walked(zone: zoneinfo.ZoneInfo, since: dt.datetime, until: dt.datetime, offset_ms: int = 0) -> list[dt.datetime]:
    """Return the times at which a date begins that no earlier time has reached, to the minute.

    With an offset, dates are read from a clock that is behind by the offset.
    """
    offset = dt.timedelta(milliseconds=offset_ms)

    def date(time: dt.datetime) -> dt.date:
        return (time.astimezone(zone).replace(tzinfo=None) - offset).date()

    starts, time, reached = [], since, date(since)
    while time < until:
        if date(time + TICK) > reached:
            start = next(time + n * MINUTE for n in range(1, 16) if date(time + n * MINUTE) > reached)
            starts.append(start)
            reached = date(start)
        time += TICK
    return starts


def starts_of(all_runs: UnitRuns, days: int, until: dt.datetime) -> list[dt.datetime]:
    """Return all starts that runs contain."""
    starts = []
    for first, last in zip(all_runs.first_starts, (*all_runs.last_starts, until.replace(tzinfo=None)), strict=True):
        while first <= last:
            starts.append(first)
            first += days * DAY
    return [start.replace(tzinfo=UTC) for start in starts]


@pytest.mark.parametrize("hours", [0, 2])
def test_days_start_at_their_first_instant_in_all_zones_around_all_transitions(hours: int) -> None:
    """Around each transition from 2015 to 2035, days start where a walk through the time finds their dates first.

    All other days last 24 hours. Most clocks change between 01:00 and 03:00, and often skip two o'clock.
    """
    checked, wrong = 0, []
    for name, (changes, zone) in zones().items():
        calendar = Calendar("day", 1, name, hours * HOUR_MS)
        starts = starts_of(find_runs(calendar, FIRST.year, LAST.year - 1), 1, LAST)
        near = set()
        for time in changes:
            low, high = time - DAY, time + 3 * DAY
            expected = walked(zone, low, high, hours * HOUR_MS)
            actual = starts[bisect_right(starts, low) : bisect_right(starts, high)]
            near |= set(actual)
            checked += 1
            if expected != actual:
                wrong.append((name, time, expected, actual))
        odd = [start for start, following in pairwise(starts) if following - start != DAY and start not in near]
        wrong += [(name, start) for start in odd if start > FIRST]
    assert wrong == []
    assert checked > 1_000


@pytest.mark.parametrize(
    ("zone", "start", "end"),
    [
        ("America/Havana", "2025-11-02T04:00", "2025-11-03T05:00"),  # Midnight occurs twice.
        ("America/Havana", "2025-03-09T05:00", "2025-03-10T04:00"),  # Midnight is skipped.
        ("Asia/Beirut", "2025-03-29T22:00", "2025-03-30T21:00"),
        ("Asia/Beirut", "2025-10-24T21:00", "2025-10-25T22:00"),
        ("Africa/Cairo", "2025-04-24T22:00", "2025-04-25T21:00"),
        ("Africa/Cairo", "2025-10-29T21:00", "2025-10-30T22:00"),
        ("America/Asuncion", "2023-10-01T04:00", "2023-10-02T03:00"),
        ("America/Santiago", "2025-09-07T04:00", "2025-09-08T03:00"),
        ("America/Santiago", "2025-04-05T03:00", "2025-04-06T04:00"),
        ("Australia/Lord_Howe", "2025-04-05T13:00", "2025-04-06T13:30"),  # The clock changes by half an hour.
        ("Australia/Lord_Howe", "2025-10-04T13:30", "2025-10-05T13:00"),
        ("Asia/Kathmandu", "2025-06-01T18:15", "2025-06-02T18:15"),
        ("Pacific/Apia", "2011-12-29T10:00", "2011-12-30T10:00"),  # The zone skips the 30th.
        ("Pacific/Apia", "2011-12-30T10:00", "2011-12-31T10:00"),
        ("America/St_Johns", "2010-11-07T02:30", "2010-11-08T03:30"),  # At 00:01, the clock is set back an hour.
        ("America/Toronto", "1918-04-14T05:00", "1918-04-15T04:00"),
        ("Europe/Amsterdam", "1930-06-01T22:40:28", "1930-06-02T22:40:28"),
    ],
)
def test_a_day_with_a_clock_change_starts_and_ends_at_local_midnight(zone: str, start: str, end: str) -> None:
    first, last = dt.datetime.fromisoformat(start), dt.datetime.fromisoformat(end)
    starts = starts_of(find_runs(Calendar("day", 1, zone), first.year, last.year), 1, last.replace(tzinfo=UTC) + DAY)
    at = starts.index(first.replace(tzinfo=UTC))
    assert starts[at + 1] == last.replace(tzinfo=UTC)


@pytest.mark.parametrize("days", [2, 7, 30, 365, 3650])
def test_a_unit_of_several_days_starts_with_a_day(days: int) -> None:
    """Runs contain exactly the starts."""
    since, until = dt.datetime(2000, 1, 1, tzinfo=UTC), dt.datetime(2036, 1, 1, tzinfo=UTC)
    for name in SAMPLE:
        zone, calendar = zoneinfo.ZoneInfo(name), Calendar("day", days, name)
        starts = [start.replace(tzinfo=UTC) for start in calendar.starts_between(since, until)]
        assert starts[0] <= since
        assert starts[-2] <= until < starts[-1]
        assert {(s.astimezone(zone).date() - dt.date(1970, 1, 1)).days % days for s in starts} <= {0, 1}
        assert starts_of(find_runs(calendar, 2000, 2035), days, starts[-1]) == starts
        daily = {start.replace(tzinfo=UTC) for start in Calendar("day", 1, name).starts_between(starts[0], until)}
        assert set(starts[:-1]) <= daily


@pytest.mark.parametrize("years", [(1, 1), (1, 1970), (9999, 9999), (9960, 9999), (2500, 2400)])
def test_runs_are_ordered_at_the_limits_of_years(years: tuple[int, int]) -> None:
    all_runs = find_runs(Calendar("day", 3650, "America/New_York"), *years)
    assert len(all_runs.first_starts) == len(all_runs.last_starts) + 1
    assert list(all_runs.first_starts) == sorted(all_runs.first_starts)


@pytest.mark.parametrize("offset_ms", [0, 6 * HOUR_MS, 26 * HOUR_MS])
@pytest.mark.parametrize("length", ["1w", "2w", "1mo", "5mo", "1q", "1y"])
def test_weeks_start_on_mondays_and_longer_units_on_the_first_of_a_month(length: str, offset_ms: int) -> None:
    """Runs contain exactly the starts of the units from 2015 to 2035."""
    for name in SAMPLE:
        zone, calendar = zoneinfo.ZoneInfo(name), Calendar.of(length, name, offset_ms)
        starts = [start.replace(tzinfo=UTC) for start in calendar.starts_between(FIRST, LAST)]
        days = Calendar("day", 1, name, offset_ms % DAY_MS)
        assert {epoch_ms(start) for start in starts} <= set(days.starts(epoch_ms(starts[0]), epoch_ms(starts[-1])))
        for start in starts:
            date = (start.astimezone(zone).replace(tzinfo=None) - dt.timedelta(milliseconds=offset_ms)).date()
            if length.endswith("w"):
                assert date.weekday() == 0
                assert (date - dt.date(1970, 1, 5)).days % (7 * int(length[:-1])) == 0
            else:
                assert date.day == 1
                assert ((date.year - 1970) * 12 + date.month - 1) % calendar.count == 0
        assert starts_of(find_runs(calendar, FIRST.year, LAST.year - 1), calendar.max_days, starts[-1]) == starts
        assert max(after - start for start, after in pairwise(starts)) < dt.timedelta(milliseconds=calendar.longest_ms)
        assert calendar.text == length


def test_runs_number_the_units_consecutively() -> None:
    for calendar in (Calendar.of("1d", "Europe/Oslo"), Calendar.of("1mo", "Europe/Oslo"), Calendar.of("1w")):
        all_runs = find_runs(calendar, 2020, 2025)
        starts = list(calendar.starts_between(dt.datetime(2020, 1, 1), dt.datetime(2026, 1, 1)))
        assert [starts[number] for number in all_runs.units_before] == list(all_runs.first_starts)


@given(
    st.sampled_from(["1d", "3d", "1w", "1mo", "1q", "1y", "9y"]),
    st.sampled_from(SAMPLE),
    st.integers(0, 20 * 60),
    st.integers(0, 2_500_000_000_000),
    st.integers(-100, 100),
)
def test_every_time_is_in_exactly_one_unit_and_shifts_count_units(
    length: str, zone: str, minutes: int, time: int, count: int
) -> None:
    calendar = Calendar.of(length, zone, minutes * 60_000)
    start = calendar.start_of(time)
    end = calendar.shift(start, 1)
    assert start <= time < end <= start + calendar.longest_ms
    assert calendar.start_of(end - 1) == start
    assert calendar.start_of(end) == end
    far = calendar.shift(time, count)
    assert calendar.shift(far, -count) == start
    between = calendar.starts(min(start, far), max(start, far))
    assert len(between) == abs(count) + 1
    assert between == sorted(set(between))
    assert {between[0], between[-1]} == {start, far}


@given(st.integers(-(10**13), 10**13), st.integers(1, 10**9), st.integers(0, 10**9), st.integers(-100, 100))
def test_steps_start_at_multiples_of_their_length_and_an_offset(time: int, length: int, offset: int, n: int) -> None:
    steps = Steps(length, offset)
    start = steps.start_of(time)
    assert start <= time < steps.shift(start, 1)
    assert (start - offset) % length == 0
    assert steps.start_of(steps.shift(start, n)) == steps.shift(start, n)


def test_the_local_clock_has_the_offset_of_its_season() -> None:
    summer, winter = (epoch_ms(dt.datetime(2026, month, 1, tzinfo=UTC)) for month in (7, 1))
    oslo = Calendar.of("1d", "Europe/Oslo")
    assert (oslo.wall_ms(summer) - summer, oslo.wall_ms(winter) - winter) == (2 * HOUR_MS, HOUR_MS)


def test_units_have_the_length_of_their_longest_occurrence() -> None:
    lengths = ("1mo", "2mo", "1q", "7mo", "1y", "4y")
    assert [Calendar.of(length).max_days for length in lengths] == [31, 62, 92, 215, 366, 1461]
    assert [min_length_ms(length) // DAY_MS for length in ("1d", "2w", "1mo", "1y")] == [1, 14, 28, 336]
    assert Calendar.of("1w").first_day == MONDAY


@pytest.mark.parametrize("length", ["1h", "0d", "1W", "1mo\n", "", "10y", "3651d"])
def test_an_invalid_unit_of_the_calendar_is_refused(length: str) -> None:
    with pytest.raises(ValueError, match=r"not a length|longer than"):
        Calendar.of(length)
