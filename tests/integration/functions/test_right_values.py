"""Tests of inputs that once gave a wrong answer or stopped a pipeline, in one run of `tidemill up`."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest

from running.up import Up, tidemill, up
from tidemill_contract import names
from waiting import eventually

pytestmark = [pytest.mark.integration, pytest.mark.slow]

COUNT = {"name": "events", "function": "count"}
FIELDS = {"k": "string", "v": "number", "ts": "timestamp"}
SECONDS = 60.0


def pipeline(name: str, *aggregations: dict[str, Any], fields: dict[str, str] | None = None, **more: Any) -> Any:
    event_time = {"field": "ts", **more.pop("eventTime", {})}
    listed = [{"name": field, "type": kind} for field, kind in (fields or FIELDS).items()]
    source = {"topic": {"partitions": 1}, "fields": listed, "eventTime": event_time}
    return {
        "apiVersion": "tidemill.dev/v1alpha1",
        "kind": "AnalyticsPipeline",
        "metadata": {"name": name},
        "spec": {"source": source, "aggregations": aggregations, "processor": {"flushInterval": "100ms"}, **more},
    }


def aggregation(name: str, *metrics: dict[str, Any], by: list[str], size: str, **more: Any) -> dict[str, Any]:
    window = {"type": "tumbling", "size": size, **more.pop("window", {})}
    return {"name": name, "groupBy": by, "window": window, "metrics": [COUNT, *metrics], **more}


def metric(name: str, function: str, field: str, **more: Any) -> dict[str, Any]:
    return {"name": name, "function": function, "field": field, **more}


def rule(name: str, aggregation: str, metric: str, **detector: Any) -> dict[str, Any]:
    return {"name": name, "aggregation": aggregation, "metric": metric, "detector": {"cooldown": "0s", **detector}}


RETYPED = aggregation(
    "values",
    metric("different", "distinct", "v"),
    metric("most", "topk", "v"),
    metric("spread", "variance", "v"),
    by=["k"],
    size="1h",
)
PIPELINES = {
    "overflow": pipeline(
        "overflow",
        aggregation(
            "moving",
            metric("sd", "stddev", "price"),
            by=["sym"],
            size="2m",
            window={"type": "hopping", "hop": "1m"},
        ),
        aggregation("per_minute", metric("total", "sum", "price"), by=["sym"], size="1m"),
        fields={"sym": "string", "price": "number", "ts": "timestamp"},
        eventTime={"maxDisorder": "0s"},
        anomalies=[
            rule("sd_odd", "moving", "sd", type="zscore", warmup=2),
            rule("total_odd", "per_minute", "total", type="zscore", warmup=20),
        ],
    ),
    "alike": pipeline(
        "alike",
        aggregation(
            "lasts",
            metric("last_at_home", "last", "at_home"),
            metric("last_home", "last", "home"),
            metric("first_home", "first", "home"),
            by=[],
            size="1m",
        ),
        fields={"home": "number", "at_home": "number", "ts": "timestamp"},
    ),
    "seconds": pipeline("seconds", aggregation("m", metric("total", "sum", "v"), by=["k"], size="1m")),
    "fractions": pipeline("fractions", aggregation("m", by=["k"], size="1m"), eventTime={"maxDisorder": "1h"}),
    "midnight": pipeline(
        "midnight",
        aggregation("hourly", metric("total", "sum", "v"), by=["k"], size="1h", retention="3650d"),
        eventTime={"maxDisorder": "1h", "maxAdvance": "3650d"},
    ),
    "retyped": pipeline(
        "retyped", RETYPED, fields={"k": "string", "v": "integer", "ts": "timestamp"}, eventTime={"maxDisorder": "1h"}
    ),
    "uploads": pipeline("uploads", aggregation("m", by=["k"], size="5s")),
    "large": pipeline(
        "large",
        aggregation(
            "m",
            metric("spread", "variance", "i"),
            metric("high", "quantile", "i", q=0.999999),
            metric("low", "quantile", "i", q=0.000001),
            metric("mean", "avg", "i"),
            metric("different", "distinct", "i"),
            by=["k"],
            size="1m",
        ),
        fields={"k": "string", "i": "integer", "ts": "timestamp"},
        eventTime={"maxDisorder": "1h"},
    ),
    "outlier": pipeline(
        "outlier",
        aggregation("m", metric("total", "sum", "v"), by=["k"], size="1m"),
        eventTime={"maxDisorder": "0s"},
        anomalies=[rule("robust", "m", "total", type="mad"), rule("untuned", "m", "total", type="auto")],
    ),
}


class Platform:
    """A running `tidemill up` with the pipelines of this file."""

    def __init__(self, running: Up) -> None:
        self.running = running
        ready = running.ready_file
        (urls, *_) = ready["pipelines"].values()
        self._ingest, self._api, self._postgres = urls["ingest"], urls["api"], ready["postgres"]

    def send(self, name: str, *events: dict[str, Any]) -> dict[str, Any]:
        url = f"{self._ingest}/v1/pipelines/{name}/events"
        answer = httpx.post(url, json=list(events), timeout=30, trust_env=False)
        assert answer.status_code in (200, 202, 207, 422), answer.text
        return dict(answer.json())

    def ask(self, path: str, **parameters: Any) -> dict[str, Any]:
        answer = httpx.get(f"{self._api}/v1/pipelines/{path}", params=parameters, timeout=30, trust_env=False)
        assert answer.status_code == 200, answer.text
        return dict(answer.json())

    def rows(self, path: str, **parameters: Any) -> list[dict[str, Any]]:
        """Return the rows of all pages of an answer."""
        page = self.ask(path, **parameters)
        rows = page["data"]
        while page["next_cursor"]:
            page = self.ask(path, cursor=page["next_cursor"], **parameters)
            rows += page["data"]
        return list(rows)

    def query(self, name: str, text: str) -> list[tuple[Any, ...]]:
        """Return the rows of a query by the administrator; `{s}` stands for the schema."""
        with psycopg.connect(self._postgres, autocommit=True) as connection:
            schema = f'"{names.schema("default", name)}"'
            cursor = connection.execute(text.replace("{s}", schema))
            return cursor.fetchall() if cursor.description else []

    def consumed(self, name: str) -> int:
        """Return the number of records that were counted, filtered or refused."""
        ((consumed,),) = self.query(name, "SELECT coalesce(sum(consumed), 0)::int FROM {s}._offsets")
        return int(consumed)

    def await_consumed(self, name: str, number: int) -> None:
        eventually(lambda: self.consumed(name) == number, seconds=SECONDS, what=f"{name} has consumed {number} records")


@pytest.fixture(scope="module")
def platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    folder = tmp_path_factory.mktemp("right-values")
    folder.chmod(0o755)
    for parent in list(folder.parents)[:3]:
        parent.chmod(0o755)  # as root, Postgres runs as another user
    for name, document in PIPELINES.items():
        (folder / f"{name}.yaml").write_text(json.dumps(document))
    with up(folder, *(f"{name}.yaml" for name in PIPELINES)) as running:
        running.wait_ready()
        yield Platform(running)


def at(text: str) -> dict[str, Any]:
    return {"ts": text}


def test_a_huge_number_stops_neither_publishing_nor_scanning(platform: Platform) -> None:
    """The standard deviation is beyond a double, so this metric is null in the windows of the number."""
    prices = [("A", 100, "08:04:00"), ("B", 10, "08:04:30"), ("A", 1.7976931348623157e308, "08:05:00")]
    later = [("A", 101, "08:06:00"), ("B", 11, "08:06:30"), ("B", 12, "09:00:00")]
    for number, piece in enumerate((prices, later), 1):
        events = [{"sym": sym, "price": price, "ts": f"2026-11-27T{time}Z"} for sym, price, time in piece]
        assert platform.send("overflow", *events)["accepted"] == 3
        platform.await_consumed("overflow", 3 * number)
    cursors = "SELECT DISTINCT published_until = closed_until AND scanned_until = closed_until FROM {s}._aggregations"
    eventually(
        lambda: platform.query("overflow", cursors) == [(True,)],
        seconds=SECONDS,
        what="all closed windows are published and scanned",
    )
    moving = {
        (row["sym"], row["window_start"][11:16]): row["sd"] for row in platform.rows("overflow/aggregates/moving")
    }
    assert moving == {
        ("A", "08:03"): 0.0, ("A", "08:04"): None, ("A", "08:05"): None, ("A", "08:06"): 0.0,
        ("B", "08:03"): 0.0, ("B", "08:04"): 0.0, ("B", "08:05"): 0.0, ("B", "08:06"): 0.0,
        ("B", "08:59"): 0.0, ("B", "09:00"): 0.0,
    }  # fmt: skip
    totals = {
        row["window_start"][11:16]: row["total"] for row in platform.rows("overflow/aggregates/per_minute", sym="A")
    }
    assert totals == {"08:04": 100.0, "08:05": 1.7976931348623157e308, "08:06": 101.0}
    assert platform.rows("overflow/dead-letters") == []


def test_metrics_of_fields_with_similar_names_use_separate_columns(platform: Platform) -> None:
    """The time of the last `home` and the last value of `at_home` have different columns."""
    platform.send("alike", {"home": 10, "at_home": 5, "ts": "2026-11-28T11:00:05Z"})
    platform.await_consumed("alike", 1)
    platform.send("alike", {"home": 20, "at_home": 1, "ts": "2026-11-28T11:00:09Z"})
    platform.await_consumed("alike", 2)
    (row,) = platform.rows("alike/aggregates/lasts")
    assert (row["last_home"], row["last_at_home"], row["first_home"]) == (20.0, 1.0, 10.0)


def test_times_in_seconds_instead_of_milliseconds_are_refused(platform: Platform) -> None:
    """A current event would count in January 1970. Its dead letter names the time that was probably meant."""
    times = (1_795_773_600, 1_795_773_660, 1_795_777_260)
    answer = platform.send("seconds", *({"k": "a", "v": 1, "ts": time} for time in times))
    assert (answer["accepted"], answer["quarantined"]) == (0, 3)
    platform.await_consumed("seconds", 3)
    assert platform.rows("seconds/aggregates/m") == []
    letters = platform.rows("seconds/dead-letters")
    assert {letter["field"] for letter in letters} == {"ts"}
    assert all("seconds" in letter["detail"] and "2026-11-27" in letter["detail"] for letter in letters)


def test_fractions_of_a_second_are_truncated(platform: Platform) -> None:
    """The last instant of a minute or a day counts in it, with any number of digits."""
    sent = {
        "seven": "2026-11-28T10:00:59.9999999Z",
        "nine": "2026-11-28T10:00:59.999999500Z",
        "day": "2026-11-27T23:59:59.9999999Z",
    }
    platform.send("fractions", *({"k": k, **at(time)} for k, time in sent.items()))
    platform.await_consumed("fractions", 3)
    starts = {row["k"]: row["window_start"] for row in platform.rows("fractions/aggregates/m")}
    assert starts == {
        "seven": "2026-11-28T10:00:00Z", "nine": "2026-11-28T10:00:00Z", "day": "2026-11-27T23:59:00Z",
    }  # fmt: skip


def test_a_day_with_two_midnights_is_one_window_of_25_hours(platform: Platform) -> None:
    """In Havana, 2 November 2025 is such a day. The answer is the same with any page size."""
    start = dt.datetime(2025, 11, 1, 0, 30, tzinfo=dt.UTC)
    hours = [start + dt.timedelta(hours=hour) for hour in range(60)]
    platform.send("midnight", *({"k": k, "v": 1, "ts": hour.isoformat()} for hour in hours for k in "ab"))
    platform.await_consumed("midnight", 120)
    days = {"granularity": "1d", "tz": "America/Havana", "from": "2025-11-01T04:00:00Z", "to": "2025-11-03T05:00:00Z"}
    expected = [
        (k, start, end, number)
        for start, end, number in [
            ("2025-11-01T04:00:00Z", "2025-11-02T04:00:00Z", 24),
            ("2025-11-02T04:00:00Z", "2025-11-03T05:00:00Z", 25),
        ]
        for k in "ab"
    ]
    for limit in (1, 3, 1000):
        rows = platform.rows("midnight/aggregates/hourly", limit=limit, **days)
        assert [(row["k"], row["window_start"], row["window_end"], row["events"]) for row in rows] == expected
    advertised = days | {"from": expected[2][1], "to": expected[2][2]}
    assert [row["events"] for row in platform.rows("midnight/aggregates/hourly", **advertised)] == [25, 25]


def test_a_changed_field_type_starts_a_new_version_of_the_aggregation(platform: Platform) -> None:
    """A sketch distinguishes integers and numbers. After the edit no value counts as two different values."""
    stamp = "2026-11-28T14:00:{:02}Z".format
    platform.send("retyped", *({"k": "a", "v": v, "ts": stamp(second)} for second, v in enumerate((1, 2, 3, 3))))
    platform.await_consumed("retyped", 4)
    edited = pipeline("retyped", RETYPED, eventTime={"maxDisorder": "1h"})
    running = platform.running
    (running.folder / "retyped.yaml").write_text(json.dumps(edited))
    eventually(
        lambda: running.status["pipelines"]["default/retyped"]["generation"] == 2 and running.status["ready"],
        seconds=SECONDS,
        what="the edit is applied",
    )
    sent = ({"k": "a", "v": v, "ts": stamp(10 + second)} for second, v in enumerate((1.0, 2.0, 2.5, 3.0)))
    platform.send("retyped", *sent)
    platform.await_consumed("retyped", 8)
    (row,) = platform.rows("retyped/aggregates/values")
    assert (row["events"], row["different"]) == (4, 4)
    assert sorted((item["value"], item["count"]) for item in row["most"]) == [(1.0, 1), (2.0, 1), (2.5, 1), (3.0, 1)]
    assert row["spread"] == pytest.approx(0.546875, rel=1e-9)


def test_a_sender_that_buffers_for_minutes_loses_no_event(platform: Platform) -> None:
    """The uploads are in order, a quarter of an hour apart by the platform's clock."""
    start = dt.datetime(2026, 11, 27, 10, tzinfo=dt.UTC)
    confirmed = "SELECT min(end_confirmed_at) > now() - interval '5 seconds' FROM {s}._offsets"
    for upload in range(3):
        times = [start + dt.timedelta(minutes=upload, seconds=second) for second in range(60)]
        assert platform.send("uploads", *({"k": "s1", "v": 1, "ts": time.isoformat()} for time in times))["accepted"]
        platform.await_consumed("uploads", 60 * (upload + 1))
        # Move the times of the last upload back by a quarter of an hour.
        earlier = "- interval '15 minutes'"
        platform.query("uploads", f"UPDATE {{s}}._offsets SET last_event_at = last_event_at {earlier}")
        platform.query("uploads", f"UPDATE {{s}}._readers SET active_since = active_since {earlier}")
        eventually(
            lambda: platform.query("uploads", confirmed) == [(True,)],
            seconds=SECONDS,
            what="the end of the partition is confirmed",
        )
    assert platform.rows("uploads/dead-letters") == []
    rows = platform.rows("uploads/aggregates/m")
    assert (len(rows), sum(row["events"] for row in rows)) == (36, 180)


def test_integers_beyond_the_precision_of_doubles_are_exact(platform: Platform) -> None:
    """Quantiles are sent values, and the variance is that of the integers."""
    values = (9007199254740993, 9007199254740992, 9007199254740995)
    platform.send("large", *({"k": "big", "i": i, "ts": "2026-11-27T10:00:01Z"} for i in values))
    platform.await_consumed("large", 3)
    (row,) = platform.rows("large/aggregates/m")
    assert (row["high"], row["low"], row["different"]) == (9007199254740995, 9007199254740992, 3)
    assert row["spread"] == pytest.approx(14 / 9, rel=1e-9)


def test_an_outlier_does_not_hide_the_next_one(platform: Platform) -> None:
    """A value of 1,000,000 does not widen the bounds. 5,000 among values near 100 is an anomaly with and without it."""
    start = dt.datetime(2026, 11, 27, 2, tzinfo=dt.UTC)
    events = []
    for minute in range(500):
        for k in ("with", "without"):
            value = 100 + 2 * minute % 5
            value = 1_000_000 if (k, minute) == ("with", 300) else 5_000 if minute == 400 else value
            events.append({"k": k, "v": value, "ts": (start + dt.timedelta(minutes=minute)).isoformat()})
    platform.send("outlier", *events)
    platform.await_consumed("outlier", 1000)
    anomalies = "SELECT anomaly, group_key ->> 'k' FROM {s}._anomalies WHERE value = 5000 ORDER BY 1, 2"
    expected = [("robust", "with"), ("robust", "without"), ("untuned", "with"), ("untuned", "without")]
    eventually(
        lambda: platform.query("outlier", anomalies) == expected,
        seconds=SECONDS,
        what="5000 is an anomaly of both rules and groups",
    )


def test_validate_refuses_a_group_column_with_the_name_of_a_system_column(tmp_path: Path) -> None:
    """Postgres has system columns in every table. `tidemill validate` names the field and the column."""
    document = pipeline(
        "system", aggregation("by_xmin", by=["xmin"], size="1m"), fields={"xmin": "integer", "ts": "timestamp"}
    )
    (tmp_path / "system.yaml").write_text(json.dumps(document))
    validated = tidemill("validate", "system.yaml", folder=tmp_path)
    assert validated.returncode == 2
    assert "spec.aggregations[0].groupBy" in validated.stdout + validated.stderr
    assert "xmin" in validated.stdout + validated.stderr
