"""Where days and longer buckets of a time zone start: all zones and their transitions, against a walk over zoneinfo."""

from __future__ import annotations

import datetime as dt
import importlib.resources
import zoneinfo
from bisect import bisect_right
from itertools import pairwise
from pathlib import Path

import pytest

from tidemill_api.query.local_days import Runs, bucket_starts, runs

UTC, DAY, TICK, MINUTE = dt.UTC, dt.timedelta(days=1), dt.timedelta(minutes=15), dt.timedelta(minutes=1)
FIRST, LAST = dt.datetime(2015, 1, 1, tzinfo=UTC), dt.datetime(2036, 1, 1, tzinfo=UTC)


def zones() -> dict[str, tuple[list[dt.datetime], zoneinfo.ZoneInfo]]:
    """One of all zones that keep the same time from 2015 to 2035, with times (UTC) just before its changes."""
    days = [FIRST + n * DAY for n in range((LAST - FIRST).days)]
    named = {rules(name): zoneinfo.ZoneInfo(name) for name in zoneinfo.available_timezones()}
    kept = {}
    for zone in named.values():
        offsets = [zone.utcoffset(day.replace(tzinfo=zone)) for day in days]
        changes = [n for n, (one, other) in enumerate(pairwise(offsets)) if one != other]
        kept[offsets[0], *((days[n], offsets[n + 1]) for n in changes)] = zone
    return {zone.key: ([time - DAY for time, _ in changes], zone) for (_, *changes), zone in kept.items()}


def rules(name: str) -> bytes:
    for folder in zoneinfo.TZPATH:
        if (Path(folder) / name).is_file():
            return (Path(folder) / name).read_bytes()
    return importlib.resources.files("tzdata.zoneinfo").joinpath(name).read_bytes()


def walked(zone: zoneinfo.ZoneInfo, since: dt.datetime, until: dt.datetime) -> list[dt.datetime]:
    """Where dates begin that no earlier time has reached, minute by minute where it matters."""

    def date(time: dt.datetime) -> dt.date:
        return time.astimezone(zone).date()

    found, time, reached = [], since, date(since)
    while time < until:
        if date(time + TICK) > reached:
            start = next(time + n * MINUTE for n in range(1, 16) if date(time + n * MINUTE) > reached)
            found.append(start)
            reached = date(start)
        time += TICK
    return found


def spread(found: Runs, days: int, until: dt.datetime) -> list[dt.datetime]:
    """All starts that runs stand for."""
    starts = []
    for first, last in zip(found.firsts, (*found.lasts, until.replace(tzinfo=None)), strict=True):
        while first <= last:
            starts.append(first)
            first += days * DAY
    return [start.replace(tzinfo=UTC) for start in starts]


def test_days_start_at_their_first_instant_in_all_zones_over_all_transitions() -> None:
    """2015 to 2035: around each transition days start where a walk through the time finds their dates first.

    Everywhere else they last 24 hours.
    """
    seen, wrong = 0, []
    for name, (changes, zone) in zones().items():
        starts = spread(runs(name, 1, FIRST.year, LAST.year - 1), 1, LAST)
        near = set()
        for time in changes:
            low, high = time, time + 3 * DAY
            expected = walked(zone, low, high)
            actual = starts[bisect_right(starts, low) : bisect_right(starts, high)]
            near |= set(actual)
            seen += 1
            if expected != actual:
                wrong.append((name, time, expected, actual))
        odd = [one for one, following in pairwise(starts) if following - one != DAY and one not in near]
        wrong += [(name, start) for start in odd if start > FIRST]
    assert wrong == []
    assert seen > 1_000


@pytest.mark.parametrize(
    ("zone", "start", "end"),
    [
        ("America/Havana", "2025-11-02T04:00", "2025-11-03T05:00"),  # midnight comes twice
        ("America/Havana", "2025-03-09T05:00", "2025-03-10T04:00"),  # midnight is skipped
        ("Asia/Beirut", "2025-03-29T22:00", "2025-03-30T21:00"),
        ("Asia/Beirut", "2025-10-24T21:00", "2025-10-25T22:00"),
        ("Africa/Cairo", "2025-04-24T22:00", "2025-04-25T21:00"),
        ("Africa/Cairo", "2025-10-29T21:00", "2025-10-30T22:00"),
        ("America/Asuncion", "2023-10-01T04:00", "2023-10-02T03:00"),
        ("America/Santiago", "2025-09-07T04:00", "2025-09-08T03:00"),
        ("America/Santiago", "2025-04-05T03:00", "2025-04-06T04:00"),
        ("Australia/Lord_Howe", "2025-04-05T13:00", "2025-04-06T13:30"),  # half an hour
        ("Australia/Lord_Howe", "2025-10-04T13:30", "2025-10-05T13:00"),
        ("Asia/Kathmandu", "2025-06-01T18:15", "2025-06-02T18:15"),
        ("Pacific/Apia", "2011-12-29T10:00", "2011-12-30T10:00"),  # the 30th is no day there
        ("Pacific/Apia", "2011-12-30T10:00", "2011-12-31T10:00"),
        ("America/St_Johns", "2010-11-07T02:30", "2010-11-08T03:30"),  # 00:01 is put back into the day before
        ("America/Toronto", "1918-04-14T05:00", "1918-04-15T04:00"),
        ("Europe/Amsterdam", "1930-06-01T22:40:28", "1930-06-02T22:40:28"),
    ],
)
def test_days_that_people_know(zone: str, start: str, end: str) -> None:
    first, last = dt.datetime.fromisoformat(start), dt.datetime.fromisoformat(end)
    starts = spread(runs(zone, 1, first.year, last.year), 1, last.replace(tzinfo=UTC) + DAY)
    at = starts.index(first.replace(tzinfo=UTC))
    assert starts[at + 1] == last.replace(tzinfo=UTC)


@pytest.mark.parametrize("days", [2, 7, 30, 365, 3650])
def test_longer_buckets_start_with_days(days: int) -> None:
    """A bucket of several days starts where one of its days does; runs stand for the very starts."""
    since, until = dt.datetime(2000, 1, 1, tzinfo=UTC), dt.datetime(2036, 1, 1, tzinfo=UTC)
    for name in ("America/Havana", "Africa/Casablanca", "Pacific/Apia", "Asia/Gaza", "UTC", "Antarctica/Troll"):
        zone = zoneinfo.ZoneInfo(name)
        starts = [start.replace(tzinfo=UTC) for start in bucket_starts(zone, days, since, until)]
        assert starts[0] <= since
        assert starts[-2] <= until < starts[-1]
        assert {(s.astimezone(zone).date() - dt.date(1970, 1, 1)).days % days for s in starts} <= {0, 1}
        assert spread(runs(name, days, 2000, 2035), days, starts[-1]) == starts
        daily = {start.replace(tzinfo=UTC) for start in bucket_starts(zone, 1, starts[0], until)}
        assert set(starts[:-1]) <= daily


@pytest.mark.parametrize("years", [(1, 1), (1, 1970), (9999, 9999), (9960, 9999), (2500, 2400)])
def test_years_at_the_edge_of_the_calendar(years: tuple[int, int]) -> None:
    found = runs("America/New_York", 3650, *years)
    assert len(found.firsts) == len(found.lasts) + 1
    assert list(found.firsts) == sorted(found.firsts)
