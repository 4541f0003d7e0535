"""Tests of days of time zones, filled windows and pages of the REST API.

Real servers: the session's Kafka, Postgres and Redis, and one API process over windows that SQL inserted.
"""

from __future__ import annotations

import datetime as dt
import json
import zoneinfo
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import httpx
import psycopg
import pytest

from bench import Bench, MakeBench
from tidemill_contract.calendars import Calendar, find_runs
from tidemill_contract.functions.partials import Partial
from tidemill_contract.functions.sketches import build
from tidemill_contract.grids import CalendarSql
from tidemill_contract.resource.spec import PipelineSpec
from tidemill_contract.runtime import AggregationRef, PipelineConfig
from tidemill_contract.tables import definition

pytestmark = pytest.mark.integration

UTC, DAY, HOUR = dt.UTC, dt.timedelta(days=1), dt.timedelta(hours=1)
START = dt.datetime(2025, 10, 30, tzinfo=UTC)
DAYS = 7
ZONES_WITH_ODD_CHANGES = {
    "Africa/Cairo", "Africa/Casablanca", "America/Asuncion", "America/Havana", "America/New_York", "America/Santiago",
    "America/Scoresbysund", "Antarctica/Troll", "Asia/Beirut", "Asia/Gaza", "Asia/Kathmandu", "Asia/Pyongyang",
    "Australia/Lord_Howe", "Europe/Volgograd", "Pacific/Apia", "Pacific/Bougainville", "Pacific/Norfolk",
}  # fmt: skip
SIGNED_METRICS = [
    ("n", "count", {}), ("some", "count", {"field": "v"}), ("total", "sum", {"field": "v"}),
    ("items", "sum", {"field": "i"}), ("mean", "avg", {"field": "v"}), ("low", "min", {"field": "v"}),
    ("high", "max", {"field": "i"}), ("opening", "first", {"field": "i"}), ("closing", "last", {"field": "v"}),
    ("spread", "variance", {"field": "v"}), ("sd", "stddev", {"field": "v"}),
    ("p50", "quantile", {"field": "v", "q": 0.5}), ("sizes", "distinct", {"field": "i"}),
    ("common", "topk", {"field": "i"}), ("latest", "max", {"field": "ts"}),
]  # fmt: skip
SPEC: dict[str, Any] = {
    "source": {
        "topic": {"partitions": 1},
        "fields": [
            {"name": "ts", "type": "timestamp", "required": True},
            {"name": "k", "type": "string"},
            {"name": "at", "type": "timestamp"},
            {"name": "v", "type": "number"},
            {"name": "i", "type": "integer"},
        ],
        "eventTime": {"field": "ts"},
    },
    "aggregations": [
        {
            "name": "hours",
            "groupBy": ["k"],
            "window": {"type": "tumbling", "size": "1h"},
            "metrics": [{"name": "n", "function": "count"}],
        },
        {
            "name": "quarters",
            "window": {"type": "hopping", "size": "30m", "hop": "15m"},
            "metrics": [{"name": "n", "function": "count"}],
        },
        {
            "name": "signed",
            "groupBy": ["v", "at"],
            "window": {"type": "tumbling", "size": "1h"},
            "metrics": [{"name": name, "function": function, **more} for name, function, more in SIGNED_METRICS],
        },
    ],
    "auth": {"required": False},
    "api": {"cacheTtl": "0ms"},
}


@dataclass
class Api:
    """The API process under test, and a client of it."""

    client: httpx.Client
    bench: Bench

    def rows(self, aggregation: str, **parameters: Any) -> list[dict[str, Any]]:
        """Read all pages of a query, and return their rows."""
        rows: list[dict[str, Any]] = []
        while True:
            answer = self.client.get(f"/v1/pipelines/clock/aggregates/{aggregation}", params=parameters)
            assert answer.status_code == 200, answer.text
            page = answer.json()
            rows += page["data"]
            if page["next_cursor"] is None:
                return rows
            parameters["cursor"] = page["next_cursor"]


@pytest.fixture(scope="module")
def api(make_shared_bench: MakeBench) -> Iterator[Api]:
    spec = PipelineSpec.model_validate(SPEC)
    aggregations = tuple(AggregationRef(name=a.name) for a in spec.aggregations)
    bench = make_shared_bench(
        PipelineConfig(namespace="tests", name="clock", generation=1, spec=spec, aggregations=aggregations)
    )
    first = (START - dt.datetime(1970, 1, 1, tzinfo=UTC)).days
    for table in ("hours_v1", "quarters_v1", "signed_v1"):
        bench.query(f"SELECT {{s}}.ensure_partition('{table}', {first}, {DAYS})")
    bench.query(
        "INSERT INTO {s}.hours_v1 (k, window_start, _rev, _count) SELECT k, at, 1, 1 FROM unnest(ARRAY['a', 'b']) AS k,"
        " generate_series(%s, %s - interval '1 h', interval '1 h') AS at RETURNING 1",
        (START, START + DAYS * DAY),
    )
    bench.query(
        "INSERT INTO {s}.quarters_v1 (window_start, _rev, _count) SELECT at, 1, 1"
        " FROM generate_series(%s, %s - interval '15 min', interval '15 min') AS at RETURNING 1",
        (START, START + DAYS * DAY),
    )
    sketch = build(Partial("frequent", "i", "bytea", 10), [7, 7])
    bench.query(
        'INSERT INTO {s}.signed_v1 (v, "at", window_start, _rev, _count, _n_v, _frequent_i)'
        " VALUES (%s, %s, %s, 1, 2, 2, %s), (%s, %s, %s, 1, 2, 2, NULL), (%s, NULL, %s, 1, 2, 2, NULL),"
        " (NULL, %s, %s, 1, 2, 2, NULL) RETURNING 1",
        (-0.0, START, START, sketch, 0.0, START, START + HOUR, 0.0, START + 2 * HOUR, START, START + 2 * HOUR),
    )
    process = bench.start(module="tidemill_api")
    with httpx.Client(base_url=f"http://127.0.0.1:{bench.ports[-1]}", timeout=30) as client:
        bench.eventually(lambda: bench.health().get("status") == "healthy", what="the API is healthy")
        yield Api(client, bench)
    process.terminate()
    assert process.wait(20) == 0


def moment(time: dt.datetime) -> str:
    return time.isoformat().replace("+00:00", "Z")


@pytest.mark.parametrize("limit", [1, 3, 1000])
@pytest.mark.parametrize("order", ["window_start", "-window_start", "k,window_start"])
def test_a_day_with_two_midnights_starts_at_the_first_in_pages_of_any_size(api: Api, limit: int, order: str) -> None:
    query = {"from": "2025-11-01T04:00:00Z", "to": "2025-11-04T00:00:00Z", "granularity": "1d", "tz": "America/Havana"}
    rows = api.rows("hours", **query, order=order, limit=limit)
    windows = {(row["k"], row["window_start"], row["window_end"], row["n"]) for row in rows}
    days = ["2025-11-01T04:00:00Z", "2025-11-02T04:00:00Z", "2025-11-03T05:00:00Z", "2025-11-04T05:00:00Z"]
    lengths = zip(pairwise(days), [24, 25, 24], strict=True)
    assert windows == {(k, start, end, n) for (start, end), n in lengths for k in "ab"}
    assert len(rows) == len(windows)


@pytest.mark.parametrize("fill", ["none", "zero"])
@pytest.mark.parametrize(
    ("aggregation", "zone"),
    [("hours", "America/Havana"), ("hours", "America/New_York"), ("hours", "Europe/Berlin"),
     ("quarters", "Asia/Kathmandu"), ("quarters", "Australia/Lord_Howe"), ("quarters", "America/St_Johns")],
)  # fmt: skip
@pytest.mark.parametrize("granularity", ["1d", "2d", "7d"])
def test_from_and_to_at_the_bounds_of_a_window_select_exactly_this_window(
    api: Api, aggregation: str, zone: str, granularity: str, fill: str
) -> None:
    """A day's count is the number of stored windows in it."""
    query = {"granularity": granularity, "tz": zone, "limit": 2}
    whole = api.rows(aggregation, **query)
    starts = sorted({row["window_start"] for row in whole})
    assert starts[1:] == sorted({row["window_end"] for row in whole})[:-1]
    length = HOUR if aggregation == "hours" else HOUR / 4
    for row in whole:
        start, end = (dt.datetime.fromisoformat(row[name]) for name in ("window_start", "window_end"))
        low, high = max(start, START), min(end, START + DAYS * DAY)
        assert row["n"] == (high - low) / length
        local = start.astimezone(zoneinfo.ZoneInfo(zone))
        assert (local.hour, local.minute) == (0, 0)
        bounds = {"from": row["window_start"], "to": row["window_end"], "fill": fill}
        assert row in api.rows(aggregation, **query, **bounds)
        assert {other["window_start"] for other in api.rows(aggregation, **query, **bounds)} == {row["window_start"]}


def test_a_fill_has_each_day_of_a_time_zone_once(api: Api) -> None:
    """A day that a zone skipped, such as 2011-12-30 in Apia, has no window."""
    query = {"granularity": "1d", "fill": "zero", "limit": 3}
    november = {"from": moment(START), "to": "2025-12-01T00:00:00Z"}
    rows = api.rows("hours", **query, tz="America/Havana", **november)
    counts = Counter(row["window_start"] for row in rows)
    assert (len(counts), set(counts.values())) == (32, {2})
    assert sum(row["n"] for row in rows) == 2 * (24 * DAYS - 4)
    december = {"tz": "Pacific/Apia", "from": "2011-12-28", "to": "2012-01-02"}
    assert [row["window_start"] for row in api.rows("quarters", **query, **december)] == [
        "2011-12-28T10:00:00Z", "2011-12-29T10:00:00Z", "2011-12-30T10:00:00Z", "2011-12-31T10:00:00Z",
        "2012-01-01T10:00:00Z",
    ]  # fmt: skip


@pytest.mark.parametrize("length", ["1d", "7d", "30d", "1mo"])
def test_sql_and_python_agree_on_the_bucket_of_a_time_in_any_zone(admin: psycopg.Connection[Any], length: str) -> None:
    """The times are one second before, at and after the starts around each bucket of unusual length, 2015 to 2035.

    Weeks are compared in all zones, days and months in the zones with odd changes. Each time is also compared with the
    bucket three later.
    """
    since, until = dt.datetime(2015, 1, 1, tzinfo=UTC), dt.datetime(2035, 12, 31, tzinfo=UTC)
    zones, compared = [], set()
    for name in sorted(zoneinfo.available_timezones() if length == "7d" else ZONES_WITH_ODD_CHANGES):
        calendar = Calendar.of(length, name)
        calendar_runs = find_runs(calendar, since.year, until.year)
        if calendar_runs in compared:  # Another zone had the same times in these years.
            continue
        compared.add(calendar_runs)
        starts = [s.replace(tzinfo=UTC) for s in calendar.starts_between(since, until)]
        odd = {n for n in range(1, len(starts) - 3) if starts[n + 1] - starts[n] != calendar.max_days * DAY}
        near = sorted({m for n in odd | {3} for m in (n - 1, n, n + 1, n + 2) if 0 < m < len(starts) - 3})
        times = [starts[n] + dt.timedelta(seconds=s) for n in near for s in (-1, 0, 1)]
        places = [bisect_right(starts, time) - 1 for time in times]
        arrays = (
            [time.replace(tzinfo=UTC) for time in part]
            for part in (calendar_runs.first_starts, calendar_runs.last_starts)
        )
        wanted = ([starts[n + further] for n in places] for further in (0, 1, 3))
        zones.append((name, *arrays, times, *wanted, list(calendar_runs.units_before)))
    grid = CalendarSql(calendar.max_days * 86_400_000, "firsts", "lasts", "numbers")
    moments = ", ".join(f"{column} timestamptz[]" for column in ("firsts", "lasts", "t", "s", "e", "l"))
    kinds = f"text, {moments}, numbers bigint[]"
    with admin.cursor() as cursor:
        cursor.execute(f"CREATE TEMP TABLE zones_{length} (name {kinds})")
        cursor.executemany(f"INSERT INTO zones_{length} VALUES (%s, %s, %s, %s, %s, %s, %s, %s)", zones)
        cursor.execute(
            f"SELECT name, time, found, finish FROM (SELECT *, {grid.start('time')} AS found FROM zones_{length},"
            " unnest(t, s, e, l) AS u(time, start, finish, later)) AS x"
            f" WHERE found IS DISTINCT FROM start OR {grid.end('found')} IS DISTINCT FROM finish"
            f" OR {grid.shift('found', 3)} IS DISTINCT FROM later OR {grid.shift('later', -3)} IS DISTINCT FROM found"
        )
        assert cursor.fetchall() == []
    assert sum(len(zone[3]) for zone in zones) > 5_000


def test_a_fill_of_zero_is_zero_for_counts_and_sums_and_null_for_other_metrics(api: Api) -> None:
    bounds = {"from": moment(START), "to": moment(START + 3 * HOUR)}
    for fill, zero in (("zero", 0), ("null", None)):
        rows = api.rows("signed", fill=fill, v="0", at__isnull="false", **bounds)
        assert [row["n"] for row in rows] == [2, 2, zero]
        values = {name: rows[2][name] for name, _, _ in SIGNED_METRICS}
        counted = {"n", "some", "total", "items", "sizes"}
        assert {name for name, value in values.items() if value is not None} == (counted if fill == "zero" else set())
        assert {values[name] for name in counted} == {zero}
    assert rows[0]["common"] == [{"value": 7, "count": 2, "error": 0}]


@pytest.mark.parametrize("granularity", ["1h", None])
def test_zero_and_minus_zero_are_one_group_also_in_filled_windows(api: Api, granularity: str | None) -> None:
    query = {"from": moment(START), "to": moment(START + 3 * HOUR), "fill": "zero", "order": "v,at,window_start"}
    if granularity:
        query["granularity"] = granularity
    rows = api.rows("signed", **query)
    counts = [(row["v"], row["at"], row["n"]) for row in rows]
    start = moment(START)
    assert counts == [
        *((0.0, start, n) for n in (2, 2, 0)), *((0.0, None, n) for n in (0, 0, 2)),
        *((None, start, n) for n in (0, 0, 2)),
    ]  # fmt: skip
    for zero in ("0", "-0.0", "0e0"):
        assert [row["n"] for row in api.rows("signed", v=zero, at=start, order="window_start", limit=1)] == [2, 2]
    assert api.rows("signed", **query, limit=2) == rows


def test_a_roll_up_is_closed_when_the_last_hopping_window_with_its_events_is_closed(api: Api) -> None:
    """Windows of 30 minutes start every 15 minutes. The last window with events of an hour ends 15 minutes later."""
    query = {"granularity": "1h", "from": moment(START), "to": moment(START + HOUR)}
    try:
        for minutes, closed in ((59, False), (60, False), (74, False), (75, True)):
            until = int((START + dt.timedelta(minutes=minutes)).timestamp() * 1000)
            api.bench.query(
                f"UPDATE {{s}}._aggregations SET closed_until = {until} WHERE name = 'quarters' RETURNING 1"
            )
            assert [row["closed"] for row in api.rows("quarters", **query)] == [closed], minutes
    finally:
        api.bench.query("UPDATE {s}._aggregations SET closed_until = NULL WHERE name = 'quarters' RETURNING 1")


EDGES = [
    "from=0001-01-01&to=9999-12-31T23:59:59.9999999Z", "from=-62135596800000", "from=9999-12-31T23:59:59.999999Z",
    "from=0001-01-01&to=9999-12-31&granularity=1d&tz=America/Havana", "to=0001-01-02&granularity=1d&tz=Asia/Tokyo",
    "granularity=3650d", "granularity=1d&tz=Factory", "granularity=all&to=0001-01-01T00:00:00.000001Z",
    "from=0001-01-01&to=0001-01-03&fill=zero", "from=9999-12-31&to=9999-12-31T23:59:59.999999Z&fill=zero",
    "from=9999-12-01&to=9999-12-31T23:59:59.999999Z&fill=null&granularity=1d&tz=Europe/Berlin",
    "from=0001-01-01&to=0001-02-01&fill=zero&granularity=1d&tz=Europe/Berlin",
    "from=0001-01-01&to=9999-12-31&fill=zero&granularity=3650d&tz=Asia/Tokyo&order=-window_start",
    "fill=zero&from=2025-10-30T00:00:00.0000009Z&to=2025-10-30T00:00:00.0000011Z&order=-window_end",
    "group_by=&order=-n", "n=99999999999999999999999999999999999999", "n__lt=-9999999999999999999999999999999999999999",
]  # fmt: skip
SIGNED_EDGES = [
    "v=1e-400", "v__in=1e308,-1e308,5e-324", "at=0001-01-01", "at__lt=9999-12-31T23:59:59.999999Z&order=-at",
    "order=-latest,high,mean", "items__gte=99999999999999999999999999999999999999", "total__gt=1e308",
    "high__in=9223372036854775807,-9223372036854775809", "group_by=at&granularity=all&order=-at", "order=-v,at",
]  # fmt: skip


@pytest.mark.parametrize(
    ("aggregation", "text"),
    [*(("quarters", text) for text in EDGES), *(("signed", e) for e in [*EDGES, *SIGNED_EDGES])],
)
def test_extreme_values_in_a_query_are_answered_and_no_row_repeats(api: Api, aggregation: str, text: str) -> None:
    """Pages and a stream have the same rows."""
    path = f"/v1/pipelines/clock/aggregates/{aggregation}"
    rows, cursor = [], ""
    while True:
        answer = api.client.get(f"{path}?{text}&limit={3 if 'v' in text else 1000}{cursor}")
        assert answer.status_code == 200, answer.text
        rows += answer.json()["data"]
        if answer.json()["next_cursor"] is None:
            break
        cursor = f"&cursor={answer.json()['next_cursor']}"
    keys = [tuple(row.get(name) for name in ("v", "at", "window_start")) for row in rows]
    assert len(keys) == len(set(keys))
    stream = api.client.get(f"{path}.ndjson?{text}")
    assert stream.status_code == 200
    assert [json.loads(line) for line in stream.text.splitlines()] == rows


def test_sql_converts_epoch_milliseconds_exactly_in_all_years(admin: psycopg.Connection[Any]) -> None:
    for ms in (253_402_300_799_999, 9_000_000_000_123, 1_762_000_000_123, 0, -1, -62_135_596_799_999, -999):
        ((converted,),) = admin.execute(f"SELECT {definition.from_ms(f'{ms}::bigint')}").fetchall()
        assert converted == dt.datetime(1970, 1, 1, tzinfo=UTC) + dt.timedelta(milliseconds=ms)
