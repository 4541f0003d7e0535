"""Tests of calendar windows of a time zone across a change of its clock.

A real processor and a real API store, close, publish, roll up and fill the windows.
"""

from __future__ import annotations

import datetime as dt
import json
import zoneinfo
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import pytest

from bench import Bench, MakeBench
from tidemill_contract.resource.spec import PipelineSpec
from tidemill_contract.runtime import AggregationRef, PipelineConfig
from tidemill_contract.times import rfc3339

pytestmark = pytest.mark.integration

OSLO = zoneinfo.ZoneInfo("Europe/Oslo")
HOUR, DAY = dt.timedelta(hours=1), dt.timedelta(days=1)
FIRST, LAST = dt.datetime(2025, 3, 25, tzinfo=dt.UTC), dt.datetime(2025, 4, 3, tzinfo=dt.UTC)
"""The times of the first and the last event. Clocks in Oslo change on 2025-03-30 at 01:00 UTC."""
SILENT = dt.date(2025, 3, 29), dt.date(2025, 3, 30)
"""Days without events of group b. A day starts at 06:00."""
AT_SIX = {"zone": "Europe/Oslo", "offset": "6h"}
WINDOWS = {
    "days": {"type": "tumbling", "size": "1d", **AT_SIX},
    "pairs": {"type": "hopping", "size": "2d", "hop": "1d", **AT_SIX},
    "months": {"type": "tumbling", "size": "1mo", "zone": "Europe/Oslo"},
    "halves": {"type": "tumbling", "size": "30m", "offset": "10m"},
}
SPEC = {
    "source": {
        "topic": {"partitions": 1},
        "fields": [{"name": "ts", "type": "timestamp"}, {"name": "k", "type": "string"}],
        "eventTime": {"field": "ts", "maxDisorder": "1s", "idleTimeout": "10m"},
    },
    "aggregations": [
        {
            "name": name,
            "groupBy": ["k"],
            "window": window,
            "metrics": [{"name": "n", "function": "count"}, {"name": "rate", "function": "rate"}],
        }
        for name, window in WINDOWS.items()
    ],
    "processor": {"flushInterval": "100ms"},
    "auth": {"required": False},
    "api": {"cacheTtl": "0ms"},
}

Moment = dt.datetime


def local(time: Moment) -> Moment:
    return time.astimezone(OSLO).replace(tzinfo=None)


def utc(wall: Moment) -> Moment:
    return wall.replace(tzinfo=OSLO).astimezone(dt.UTC)


def day_of(time: Moment) -> dt.date:
    return (local(time) - 6 * HOUR).date()


def six_of(day: dt.date) -> Moment:
    return utc(dt.datetime.combine(day, dt.time(6)))


def month_of(time: Moment) -> Moment:
    return utc(local(time).replace(day=1, hour=0))


def next_month(start: Moment) -> Moment:
    return month_of(start + 40 * DAY)


EVENTS = [
    (FIRST + n * HOUR, k)
    for n in range((LAST - FIRST) // HOUR)
    for k in "ab"
    if k == "a" or day_of(FIRST + n * HOUR) not in SILENT
]


@dataclass(frozen=True)
class Site:
    """The pipeline and its API."""

    bench: Bench
    client: httpx.Client

    def rows(self, aggregation: str, **parameters: Any) -> dict[tuple[str, str], tuple[str, int, bool]]:
        """Return the end, the count and whether a window is closed, by group and start. Read pages of three rows."""
        windows: dict[tuple[str, str], tuple[str, int, bool]] = {}
        while True:
            path = f"/v1/pipelines/calendar/aggregates/{aggregation}"
            answer = self.client.get(path, params={"limit": 3, **parameters})
            assert answer.status_code == 200, answer.text
            for row in answer.json()["data"]:
                assert (row["k"], row["window_start"]) not in windows
                windows[row["k"], row["window_start"]] = (row["window_end"], row["n"], row["closed"])
                start, end = (Moment.fromisoformat(row[name]) for name in ("window_start", "window_end"))
                assert row["rate"] == pytest.approx(row["n"] / (end - start).total_seconds(), rel=1e-9)
            if answer.json()["next_cursor"] is None:
                return windows
            parameters["cursor"] = answer.json()["next_cursor"]


@pytest.fixture(scope="module")
def site(make_shared_bench: MakeBench) -> Iterator[Site]:
    spec = PipelineSpec.model_validate(SPEC)
    refs = tuple(AggregationRef(name=a.name) for a in spec.aggregations)
    config = PipelineConfig(namespace="tests", name="calendar", generation=1, spec=spec, aggregations=refs)
    bench = make_shared_bench(config)
    bench.start()
    bench.start(1, module="tidemill_api")
    bench.produce([json.dumps({"ts": rfc3339(time), "k": k}).encode() for time, k in EVENTS])
    bench.await_consumed(len(EVENTS))
    closed = {("days", six_of(dt.date(2025, 4, 2))), ("months", month_of(LAST))}
    for name, until in closed:
        text = f"SELECT closed_until FROM {{s}}._aggregations WHERE name = '{name}'"
        end = round(until.timestamp() * 1000)
        Bench.eventually(lambda text=text, end=end: bench.query(text) == [(end,)], what=f"{name} are closed")
    with httpx.Client(base_url=f"http://127.0.0.1:{bench.ports[-1]}", timeout=30) as client:
        bench.eventually(lambda: bench.health().get("status") == "healthy", what="the API is healthy")
        yield Site(bench, client)


def expected(
    start_of: Callable[[Moment], Moment], end_of: Callable[[Moment], Moment], closed: Moment
) -> dict[tuple[str, str], tuple[str, int, bool]]:
    """Return the expected windows of the events in the form of `Site.rows`."""
    counts = Counter((k, start_of(time)) for time, k in EVENTS)
    return {
        (k, rfc3339(start)): (rfc3339(end_of(start)), n, end_of(start) <= closed) for (k, start), n in counts.items()
    }


def day_start(time: Moment) -> Moment:
    return six_of(day_of(time))


def day_end(start: Moment) -> Moment:
    return six_of(day_of(start) + DAY)


CLOSED = six_of(dt.date(2025, 4, 2))


def test_days_and_months_follow_the_time_zone(site: Site) -> None:
    days = expected(day_start, day_end, CLOSED)
    assert {n for _, n, _ in days.values()} >= {23, 24}
    assert site.rows("days") == days
    assert site.rows("days", order="-window_start") == days
    assert site.rows("months") == expected(month_of, next_month, month_of(LAST))


def test_a_day_counts_in_each_hopping_window_that_contains_it(site: Site) -> None:
    counts: Counter[tuple[str, Moment]] = Counter()
    for time, k in EVENTS:
        for back in (0, 1):
            counts[k, six_of(day_of(time) - back * DAY)] += 1
    wanted = {
        (k, rfc3339(start)): (rfc3339(six_of(day_of(start) + 2 * DAY)), n, six_of(day_of(start) + 2 * DAY) <= CLOSED)
        for (k, start), n in counts.items()
    }
    assert site.rows("pairs") == wanted
    bounds = [rfc3339(six_of(dt.date(2025, 3, day))) for day in (29, 31)]
    part = {key: row for key, row in wanted.items() if bounds[0] <= key[1] < bounds[1]}
    assert site.rows("pairs", **{"from": bounds[0], "to": bounds[1]}) == part
    assert len(part) == 3


def test_windows_of_equal_length_start_at_the_offset(site: Site) -> None:
    ten_minutes = dt.timedelta(minutes=10)
    closed = LAST - HOUR - 20 * dt.timedelta(minutes=1)
    wanted = expected(lambda time: time - 2 * ten_minutes, lambda start: start + 3 * ten_minutes, closed)
    assert site.rows("halves", limit=1000) == wanted
    rolled = expected(lambda t: (t - ten_minutes).replace(hour=0, minute=10), lambda start: start + DAY, closed)
    assert site.rows("halves", granularity="1d") == rolled
    # Days of a time zone start at 00:10 too, like the windows.
    assert site.rows("halves", granularity="1d", tz="Europe/Oslo") == expected(
        lambda t: utc(dt.datetime.combine((local(t) - ten_minutes).date(), dt.time(0, 10))),
        lambda start: utc(local(start) + DAY),
        closed,
    )


def test_windows_are_rolled_up_to_longer_units_of_the_same_time_zone(site: Site) -> None:
    def monday(time: Moment) -> Moment:
        return six_of(day_of(time) - day_of(time).weekday() * DAY)

    weeks = expected(monday, lambda start: six_of(day_of(start) + 7 * DAY), CLOSED)
    assert site.rows("days", granularity="1w") == weeks
    assert site.rows("days", granularity="1w", tz="Europe/Oslo") == weeks
    # The last window of two days that starts in a week ends a day after the week.
    one_day_later = {key: (end, n, Moment.fromisoformat(end) + DAY <= CLOSED) for key, (end, n, _) in weeks.items()}
    assert site.rows("pairs", granularity="1w") == one_day_later
    months = expected(
        lambda t: six_of(day_of(t).replace(day=1)), lambda s: six_of((day_of(s) + 40 * DAY).replace(day=1)), CLOSED
    )
    assert site.rows("days", granularity="1mo") == months
    quarters = site.rows("months", granularity="1q")
    assert {(start, end) for (_, start), (end, _, _) in quarters.items()} == {
        ("2024-12-31T23:00:00Z", "2025-03-31T22:00:00Z"), ("2025-03-31T22:00:00Z", "2025-06-30T22:00:00Z"),
    }  # fmt: skip
    (whole_time,) = {(start, end) for (_, start), (end, _, _) in site.rows("days", granularity="all").items()}
    assert whole_time == (rfc3339(day_start(FIRST)), rfc3339(day_end(day_start(LAST - HOUR))))


@pytest.mark.parametrize(
    ("aggregation", "parameters", "words"),
    [
        ("days", {"granularity": "36h"}, "not a multiple of the window size 1d; write e.g. 2d"),
        ("days", {"granularity": "1d", "tz": "UTC"}, "the windows follow the time zone Europe/Oslo"),
        ("months", {"granularity": "1w"}, "not a multiple of the window size 1mo; write e.g. 2mo"),
        ("months", {"granularity": "60d"}, "not a multiple of the window size 1mo"),
        ("pairs", {"granularity": "1h"}, "not a multiple of the hop 1d"),
    ],
)
def test_a_granularity_that_windows_cannot_be_rolled_up_to_is_refused(
    site: Site, aggregation: str, parameters: dict[str, str], words: str
) -> None:
    answer = site.client.get(f"/v1/pipelines/calendar/aggregates/{aggregation}", params=parameters)
    assert answer.status_code == 400
    assert words in answer.json()["detail"]


@pytest.mark.parametrize("parameters", [{}, {"granularity": "1d"}], ids=str)
def test_days_without_events_are_filled_in(site: Site, parameters: dict[str, str]) -> None:
    bounds = [six_of(dt.date(2025, 3, day)) for day in (28, 31)]
    query = {"from": rfc3339(bounds[0]), "to": rfc3339(bounds[1]), "fill": "zero", **parameters}
    days = site.rows("days", **query)
    starts = [six_of(dt.date(2025, 3, day)) for day in (28, 29, 30)]
    assert {key: (end, n) for key, (end, n, _) in days.items()} == {
        (k, rfc3339(start)): (rfc3339(day_end(start)), n)
        for k, counts in (("a", (24, 23, 24)), ("b", (24, 0, 0)))
        for start, n in zip(starts, counts, strict=True)
    }
    halves = site.rows("halves", **{**query, "to": rfc3339(bounds[0] + HOUR)}) if not parameters else {}
    assert all(start.endswith(("10:00Z", "40:00Z")) for _, start in halves)


def test_closed_windows_are_published_with_their_ends(site: Site) -> None:
    def published() -> set[tuple[str, str, str, str, int]]:
        return {
            (r["aggregation"], r["group"]["k"], r["window_start"], r["window_end"], r["metrics"]["n"])
            for r in site.bench.records("results")
        }

    wanted = {
        (name, k, start, end, n)
        for name in ("days", "pairs", "months")
        for (k, start), (end, n, closed) in site.rows(name).items()
        if closed
    }
    assert wanted
    Bench.eventually(
        lambda: wanted == {row for row in published() if row[0] != "halves"}, what="closed windows are published"
    )


def test_a_dead_letter_of_a_late_event_lists_the_missed_windows(site: Site) -> None:
    """The day and one of two pairs of days are closed. The other pair and the month are still open."""
    late = six_of(dt.date(2025, 4, 1)) + HOUR
    before = site.bench.consumed()
    site.bench.produce([json.dumps({"ts": rfc3339(late), "k": "a"}).encode()])
    site.bench.await_consumed(before + 1)
    rows = site.bench.query("SELECT aggregation, windows FROM {s}._dead_letters WHERE aggregation <> 'halves'")
    starts = [round(six_of(dt.date(2025, *day)).timestamp() * 1000) for day in ((3, 31), (4, 1))]
    assert dict(rows) == {"days": [starts[1]], "pairs": [starts[0]]}
    counts = site.rows("pairs")
    ends = {key: row for key, row in expected(day_start, day_end, CLOSED).items() if key[0] == "a"}
    total = sum(n for (_, start), (_, n, _) in ends.items() if start >= rfc3339(six_of(dt.date(2025, 4, 1)))) + 1
    assert counts["a", rfc3339(six_of(dt.date(2025, 4, 1)))][1] == total
