"""Tests that answers of the REST API equal a recomputation from the raw events.

Real servers: the session's Kafka, Postgres and Redis, one processor that fills the windows, and one API process.
"""

from __future__ import annotations

import csv
import datetime as dt
import io
import json
import random
import zoneinfo
from collections.abc import Callable, Iterator
from typing import Any

import polars
import pyarrow.ipc
import pytest

from bench import MakeBench
from shop_recomputed import (
    BROKEN,
    COUNTRIES,
    DAY,
    EVENTS,
    HOP_METRICS,
    HOUR,
    METRICS,
    START,
    Api,
    api_of,
    as_json,
    assert_rows,
    config,
    grouped,
    hour_of,
    moment,
    same,
)

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def api(make_shared_bench: MakeBench) -> Iterator[Api]:
    bench = make_shared_bench(config())
    bench.start()
    shuffled = [json.dumps(event).encode() for event in EVENTS]
    random.Random(1).shuffle(shuffled)
    bench.produce([*shuffled, *BROKEN])
    with api_of(bench) as api:
        bench.await_consumed(len(EVENTS) + len(BROKEN))
        yield api


def test_pages_have_each_window_once_and_equal_the_recomputation(api: Api) -> None:
    rows = api.rows("by_store", limit=137)
    assert_rows(rows, grouped(lambda e: [(e["country"], e["store"], hour_of(e))]), ["country", "store"])
    assert list(rows[0]) == ["country", "store", "window_start", "window_end", "closed", *(m["name"] for m in METRICS)]
    assert [r["window_start"] for r in rows] == sorted(r["window_start"] for r in rows)


@pytest.mark.parametrize(
    "parameters",
    [
        {},
        {"order": "-window_start"},
        {"order": "country,-revenue"},
        {"order": "-country,store"},
        {"order": "-spread"},
        {"order": "high,-window_end"},
        {"granularity": "1d", "order": "-low,country"},
        {"group_by": "store", "order": "store"},
        {"from": moment(START), "to": moment(START + DAY), "fill": "null", "order": "-mean"},
    ],
)
def test_pages_together_have_the_rows_of_one_large_page(api: Api, parameters: dict[str, str]) -> None:
    """In any order, also by columns with nulls, pages neither repeat nor omit a row."""
    whole = api.rows("by_store", **parameters, limit=10_000)
    paged = api.rows("by_store", **parameters, limit=331)
    assert len(whole) > 100
    assert len(paged) == len(whole)
    # Sums of floats may differ in the last bit, because the database adds in any order.
    assert [
        row for row, other in zip(whole, paged, strict=True) if not all(map(same, row.values(), other.values()))
    ] == []


def test_a_hopping_window_counts_every_event_of_its_span(api: Api) -> None:
    """Each event is in three windows, because `size` is three times `hop`."""
    expected = grouped(lambda e: [(e["country"], moment(e["ts"] // HOUR * HOUR - k * HOUR)) for k in range(3)])
    for parameters in ({"limit": 53}, {"limit": 53, "order": "-window_start"}, {"limit": 10_000}):
        assert_rows(api.rows("hops", **parameters), expected, ["country"], HOP_METRICS)
    expected_range = {k: v for k, v in expected.items() if moment(START + 5 * HOUR) <= k[1] < moment(START + 9 * HOUR)}
    rows = api.rows("hops", **{"from": START + 5 * HOUR, "to": START + 9 * HOUR})
    assert_rows(rows, expected_range, ["country"], HOP_METRICS)


@pytest.mark.parametrize(
    ("aggregation", "length", "granularity"),
    [("by_store", 6 * HOUR, "6h"), ("hops", 2 * HOUR, "2h"), ("hops", DAY, "1d")],
)
def test_a_roll_up_over_time_counts_each_event_once(api: Api, aggregation: str, length: int, granularity: str) -> None:
    """A coarser granularity also merges overlapping windows without double counts."""
    groups = ["country", "store"] if aggregation == "by_store" else ["country"]
    metrics = METRICS if aggregation == "by_store" else HOP_METRICS
    expected = grouped(lambda e: [(*(e[g] for g in groups), moment(e["ts"] // length * length))])
    rows = api.rows(aggregation, granularity=granularity, limit=500)
    assert_rows(rows, expected, groups, metrics)
    ends = {dt.datetime.fromisoformat(r["window_end"]) - dt.datetime.fromisoformat(r["window_start"]) for r in rows}
    assert ends == {dt.timedelta(milliseconds=length)}


@pytest.mark.parametrize("group_by", ["country", "store", ""])
def test_grouping_by_fewer_dimensions_merges_the_rows_of_the_others(api: Api, group_by: str) -> None:
    groups = [group_by] if group_by else []
    rows = api.rows("by_store", group_by=group_by, limit=400)
    assert_rows(rows, grouped(lambda e: [(*(e[g] for g in groups), hour_of(e))]), groups)


def test_granularity_all_without_groups_answers_one_row(api: Api) -> None:
    """Its window is the requested range, or that of all events."""
    (row,) = api.rows("by_store", granularity="all", group_by="")
    assert_rows([row], {(row["window_start"],): EVENTS}, [])
    assert row["window_start"] == moment(EVENTS[0]["ts"] // HOUR * HOUR)
    assert row["window_end"] == moment(EVENTS[-1]["ts"] // HOUR * HOUR + HOUR)
    (row,) = api.rows("by_store", granularity="all", group_by="", **{"from": START, "to": START + DAY})
    assert (row["n"], row["window_end"]) == (len([e for e in EVENTS if e["ts"] < START + DAY]), moment(START + DAY))
    assert api.rows("by_store", granularity="all", group_by="", to=START - DAY) == []


def test_days_of_a_time_zone_start_at_local_midnight(api: Api) -> None:
    """The day on which clocks are put forward has 23 hours."""
    zone = zoneinfo.ZoneInfo("Europe/Berlin")

    def local_day(event: dict[str, Any]) -> str:
        midnight = dt.datetime.fromtimestamp(event["ts"] / 1000, zone).replace(
            hour=0, minute=0, second=0, microsecond=0
        )
        return moment(int(midnight.timestamp() * 1000))

    rows = api.rows("by_store", granularity="1d", tz="Europe/Berlin", group_by="country", limit=7)
    assert_rows(rows, grouped(lambda e: [(e["country"], local_day(e))]), ["country"])
    lengths = {dt.datetime.fromisoformat(r["window_end"]) - dt.datetime.fromisoformat(r["window_start"]) for r in rows}
    assert lengths == {dt.timedelta(hours=24), dt.timedelta(hours=23)}
    kathmandu = api.rows("total", granularity="1d", tz="Asia/Kathmandu")
    assert {r["window_start"][11:] for r in kathmandu} == {"18:15:00Z"}
    assert sum(r["n"] for r in kathmandu) == len(EVENTS)


@pytest.mark.parametrize(("fill", "empty"), [("null", None), ("zero", 0)])
def test_fill_adds_a_row_for_each_window_that_a_group_lacks(api: Api, fill: str, empty: int | None) -> None:
    """Every group has every window between `from` and `to`. Added rows have zeros or nulls."""
    since, until = START + 3 * HOUR, START + 11 * HOUR
    rows = api.rows("by_store", fill=fill, limit=50, **{"from": since, "to": until})
    present = grouped(lambda e: [(e["country"], e["store"], hour_of(e))] if since <= e["ts"] < until else [])
    groups = {key[:2] for key in present}
    keys = [(r["country"], r["store"], r["window_start"]) for r in rows]
    assert len(keys) == len(set(keys)) == len(groups) * 8
    assert {key[:2] for key in keys} == groups
    gaps = [row for key, row in zip(keys, rows, strict=True) if key not in present]
    assert len(gaps) == len(keys) - len(present) > 0
    assert {(r["n"], r["revenue"], r["items"], r["sizes"]) for r in gaps} == {(empty,) * 4}
    others = ("mean", "low", "high", "opening", "closing", "spread", "sd", "share", "latest", "p90", "common")
    assert [r[name] for r in gaps for name in others] == [None] * len(gaps) * len(others)
    filled = api.rows("hops", fill=fill, granularity="12h", group_by="", **{"from": START - DAY, "to": START + DAY})
    assert [r["n"] for r in filled][:2] == [empty, empty]


FILTERS: list[tuple[dict[str, Any], Callable[[dict[str, Any]], bool]]] = [
    ({"country": "NO"}, lambda r: r["country"] == "NO"),
    ({"country": ""}, lambda r: r["country"] == ""),
    ({"country": COUNTRIES[3]}, lambda r: r["country"] == COUNTRIES[3]),
    ({"country__ne": "NO"}, lambda r: r["country"] != "NO"),
    ({"country__in": "NO,Å"}, lambda r: r["country"] in ("NO", "Å")),
    ({"country__isnull": "true"}, lambda r: r["country"] is None),
    ({"country__isnull": "false", "store__isnull": "true"}, lambda r: r["country"] is not None and r["store"] is None),
    ({"country__gt": "NO", "country__lte": "SE"}, lambda r: r["country"] == "SE"),
    ({"store__gte": "2", "store__lt": "3"}, lambda r: r["store"] == 2),
    ({"store__in": "1,3,99999999999999999999"}, lambda r: r["store"] in (1, 3)),
    ({"n__gte": "2"}, lambda r: r["n"] >= 2),
    ({"n__gte": "2", "n__lt": "3", "n__ne": "7"}, lambda r: r["n"] == 2),
    ({"revenue__gt": "1e2"}, lambda r: r["revenue"] is not None and r["revenue"] > 100),
    ({"items__gte": str(2**40)}, lambda r: r["items"] is not None and r["items"] >= 2**40),
    ({"mean__isnull": "true"}, lambda r: r["mean"] is None),
    ({"latest__lt": moment(START + DAY)}, lambda r: r["latest"] < moment(START + DAY)),
    ({"from": START + HOUR, "to": START + 2 * HOUR}, lambda r: r["window_start"] == moment(START + HOUR)),
    ({"from": "2026-03-28T00:00:00+01:00", "to": "2026-03-28T00:00:00Z"},
     lambda r: r["window_start"] == "2026-03-27T23:00:00Z"),
]  # fmt: skip


@pytest.mark.parametrize(("parameters", "fits"), FILTERS, ids=[str(parameters) for parameters, _ in FILTERS])
def test_a_filter_keeps_the_rows_that_match_it(
    api: Api, parameters: dict[str, Any], fits: Callable[[dict[str, Any]], bool]
) -> None:
    """GET and POST answer the matching rows of the unfiltered answer."""
    unfiltered = api.rows("by_store", limit=10_000)
    expected = [row for row in unfiltered if fits(row)]
    assert 0 < len(expected) < len(unfiltered)
    assert api.rows("by_store", limit=10_000, **parameters) == expected
    posted = {name: value.split(",") if name.endswith("__in") else value for name, value in parameters.items()}
    answer = api.client.post("/v1/pipelines/shop/aggregates/by_store/query", json={**posted, "limit": 10_000})
    assert (answer.status_code, answer.json()["data"]) == (200, expected)
    assert answer.headers["cache-control"] == "no-store"


def test_metrics_selects_columns_and_closed_selects_rows(api: Api) -> None:
    rows = api.rows("by_store", metrics="n,share", group_by="", limit=10_000)
    assert list(rows[0]) == ["window_start", "window_end", "closed", "n", "share"]
    split = [api.rows("by_store", closed=value, limit=10_000) for value in ("true", "false")]
    assert [{row["closed"] for row in part} <= {value} for part, value in zip(split, (True, False), strict=True)] == [
        True
    ] * 2
    assert sum(map(len, split)) == len(api.rows("by_store", limit=10_000))


def test_csv_and_ndjson_have_the_rows_of_json(api: Api) -> None:
    """The suffix or the `Accept` header selects the format. A stream has all rows."""
    rows = api.rows("by_store", limit=10_000, order="-window_start")
    lines = api.get("/aggregates/by_store.ndjson", order="-window_start")
    assert lines.headers["content-type"] == "application/x-ndjson"
    assert [json.loads(line) for line in lines.text.splitlines()] == rows
    accepted = api.client.get(
        "/v1/pipelines/shop/aggregates/by_store?order=-window_start", headers={"Accept": "text/csv;q=0.9, text/html"}
    )
    assert accepted.headers["content-type"].startswith("text/csv")
    table = list(csv.DictReader(io.StringIO(accepted.text, newline="")))

    def text(value: Any) -> str:
        match value:
            case None:
                return ""
            case bool():
                return str(value).lower()
            case list():
                return json.dumps(value, separators=(",", ":"), ensure_ascii=False)
        return str(value)

    assert table == [{name: text(value) for name, value in row.items()} for row in rows]
    assert ',"",' in accepted.text or '\n"",' in accepted.text, "an empty string is quoted, to tell it from null"
    few = api.get("/aggregates/by_store.csv", limit=3, country="NO")
    assert len(few.text.split("\r\n")) == 5
    none = api.get("/aggregates/by_store.csv", country="nowhere")
    assert none.text.startswith("country,store,window_start")
    assert (
        api.get("/aggregates/by_store.json", limit=1).json()["data"]
        == api.get("/aggregates/by_store", limit=1).json()["data"]
    )


def test_arrow_has_the_rows_of_json(api: Api) -> None:
    """Both pyarrow and polars read the stream. `limit` and `cursor` work as in other streams."""
    rows = api.rows("by_store", limit=10_000, order="-window_start")
    whole = api.get("/aggregates/by_store.arrow", order="-window_start")
    media = "application/vnd.apache.arrow.stream"
    assert (whole.headers["content-type"], whole.headers.get("tidemill-next-cursor")) == (media, None)
    assert [as_json(row) for row in pyarrow.ipc.open_stream(whole.content).read_all().to_pylist()] == rows
    accepted = api.client.get(
        "/v1/pipelines/shop/aggregates/by_store?order=-window_start", headers={"Accept": f"{media}, text/csv;q=0.5"}
    )
    frame = polars.read_ipc_stream(io.BytesIO(accepted.content))
    assert [as_json(row) for row in frame.to_dicts()] == rows
    types = {"window_start": polars.Datetime("us", "UTC"), "items": polars.Int64(), "revenue": polars.Float64()}
    assert {name: frame.schema[name] for name in types} == types
    paged, cursor = [], ""
    while not paged or cursor:
        answer = api.get("/aggregates/by_store.arrow", limit=999, cursor=cursor, order="-window_start")
        paged += polars.read_ipc_stream(io.BytesIO(answer.content)).to_dicts()
        cursor = answer.headers.get("tidemill-next-cursor", "")
    assert paged == frame.to_dicts()
    none = api.get("/aggregates/by_store.arrow", country="nowhere").content
    assert pyarrow.ipc.open_stream(none).read_all().num_rows == 0


@pytest.mark.parametrize("path", ["/dead-letters", "/events"])
def test_dead_letters_and_events_as_arrow_have_the_rows_of_ndjson(api: Api, path: str) -> None:
    """Arrow has an object as a string of JSON."""
    lines = [json.loads(line) for line in api.get(f"{path}.ndjson").text.splitlines()]
    table = pyarrow.ipc.open_stream(api.get(f"{path}.arrow").content).read_all()
    rows = [as_json(row) for row in table.to_pylist()]
    if path == "/events":
        rows = [{**row, "data": json.loads(row["data"])} for row in rows]
    assert rows == lines
    assert len(rows) > 0


@pytest.mark.parametrize("form", ["csv", "ndjson"])
@pytest.mark.parametrize("path", ["/aggregates/by_store", "/dead-letters"])
def test_a_stream_with_a_limit_has_the_next_cursor_in_a_header(api: Api, path: str, form: str) -> None:
    """The header equals `next_cursor` of JSON. The last page and a whole stream have no such header."""
    whole = api.get(f"{path}.{form}")
    assert "tidemill-next-cursor" not in whole.headers
    lines, cursor, head_lines = whole.text.splitlines(), "", int(form == "csv")
    paged = lines[:head_lines]
    for page in range(1_000):
        answer = api.get(f"{path}.{form}", limit=97, cursor=cursor)
        assert answer.status_code == 200, answer.text
        paged += answer.text.splitlines()[head_lines:]
        cursor = answer.headers.get("tidemill-next-cursor", "")
        if page == 0:
            assert cursor == (api.get(path, limit=97).json()["next_cursor"] or "")
        if not cursor:
            break
    assert paged == lines


def test_a_request_with_the_current_etag_is_304(api: Api) -> None:
    """An ETag is valid until the data change. Another query has another ETag."""
    first = api.get("/aggregates/total", limit=5)
    assert first.headers["cache-control"] == "public, max-age=1, stale-while-revalidate=5"
    headers = {"If-None-Match": f'"other", {first.headers["etag"]}'}
    again = api.client.get(first.url, headers=headers)
    if again.headers["etag"] == first.headers["etag"]:  # The watermark may have moved between the requests.
        assert (again.status_code, again.content) == (304, b"")
    assert api.get("/aggregates/total", limit=6).headers["etag"] != first.headers["etag"]
    listed = api.get("/dead-letters")
    assert api.client.get(listed.url, headers={"If-None-Match": listed.headers["etag"]}).status_code == 304
    assert api.client.head(listed.url).headers["content-length"] == str(len(listed.content))


def test_caches_may_keep_an_answer_of_closed_windows_longer(api: Api) -> None:
    """No event can change closed windows, only a replay can."""
    api.bench.query(f"UPDATE {{s}}._aggregations SET closed_until = {START + DAY} WHERE name = 'total' RETURNING 1")
    try:
        answer = api.get("/aggregates/total", **{"from": START, "to": START + HOUR})
        assert answer.headers["cache-control"] == "public, max-age=60"
        assert {row["closed"] for row in answer.json()["data"]} == {True}
        open_end = api.get("/aggregates/total", **{"from": START, "to": START + 2 * DAY})
        assert "stale-while-revalidate" in open_end.headers["cache-control"]
        assert {row["closed"] for row in open_end.json()["data"]} == {True, False}
    finally:
        api.bench.query("UPDATE {s}._aggregations SET closed_until = NULL WHERE name = 'total' RETURNING 1")


def test_dead_letters_have_the_reason_and_the_beginning_of_the_value(api: Api) -> None:
    """A value that is not UTF-8 is base64."""
    answer = api.get("/dead-letters", order="partition,offset").json()
    letters = {row["value"]: row for row in answer["data"]}
    assert len(letters) == len(BROKEN)
    assert (letters["3q2+7w=="]["value_encoding"], letters["3q2+7w=="]["value_bytes"]) == ("base64", 4)
    assert (letters["{"]["value_encoding"], letters["{"]["reason"]) == ("utf-8", "not_json")
    long = letters["ü" * 2_048]
    assert (long["value_encoding"], long["value_bytes"]) == ("utf-8", 6_000)
    mistyped = letters[BROKEN[2].decode()]
    assert (mistyped["reason"], mistyped["field"]) == ("mistyped", "amount")
    assert [row["reason"] for row in api.get("/dead-letters", reason="mistyped").json()["data"]] == ["mistyped"]
    paged, cursor = [], None
    while True:
        page = api.get(
            "/dead-letters", limit=1, order="partition,offset", **({"cursor": cursor} if cursor else {})
        ).json()
        paged += page["data"]
        cursor = page["next_cursor"]
        if cursor is None:
            break
    assert paged == answer["data"]
    assert len(api.get("/dead-letters.ndjson").text.splitlines()) == len(BROKEN)
    assert "3q2+7w==" in api.get("/dead-letters.csv").text


def test_stored_events_can_be_paged_and_filtered_by_their_fields(api: Api) -> None:
    lines = api.get("/events.ndjson", order="event_time").text.splitlines()
    assert [json.loads(line)["data"] for line in lines] == EVENTS
    expected = [
        e for e in EVENTS if e["country"] == "Å" and e["qty"] is not None and e["qty"] > 2**39 and e["vip"] is True
    ]
    page = api.get("/events", country="Å", qty__gt=2**39, vip="true", order="event_time", limit=1000).json()
    assert [row["data"] for row in page["data"]] == expected
    late = api.get(
        "/events", **{"from": moment(START + 4 * DAY), "ts__gte": moment(START + 4 * DAY), "limit": 1000}
    ).json()
    assert len(late["data"]) == len([e for e in EVENTS if e["ts"] >= START + 4 * DAY])


def test_the_description_of_a_pipeline_has_its_aggregations_and_progress(api: Api) -> None:
    listed = api.client.get("/v1/pipelines").json()["pipelines"]
    assert [(p["name"], p["aggregations"], p["events_kept"]) for p in listed] == [
        ("shop", ["by_store", "hops", "total"], True)
    ]
    description = api.get("").json()
    assert description["progress"]["consumed"] == len(EVENTS) + len(BROKEN)
    assert description["counts"]["dead_letters"] == len(BROKEN)
    assert [m["name"] for m in description["aggregations"][0]["measures"]] == [m["name"] for m in METRICS]
    assert description["aggregations"][0]["measures"][-1] == {
        "name": "often", "function": "topk", "field": "qty", "where": None, "expression": None, "type": "array",
    }  # fmt: skip
    assert description["aggregations"][0]["dimensions"] == [
        {"name": "country", "type": "string"}, {"name": "store", "type": "integer"},
    ]  # fmt: skip


def test_a_cursor_belongs_to_its_query(api: Api) -> None:
    cursor = api.get("/aggregates/total", limit=1).json()["next_cursor"]
    assert api.get("/aggregates/total", cursor=cursor, limit=2).status_code == 200
    answer = api.get("/aggregates/total", cursor=cursor, order="-window_start")
    assert (answer.status_code, answer.json()["code"]) == (400, "bad_cursor")
