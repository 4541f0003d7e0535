"""Tests of drafts from samples of events: types, formats of times, names, groups and windows."""

from __future__ import annotations

import contextlib
import datetime as dt
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from tidemill_contract.resource.documents import load_documents
from tidemill_contract.resource.validate import check_document
from tidemill_operator.event_files.csv_dialect import unique_names
from tidemill_operator.event_files.numbers import COMMA, POINT
from tidemill_operator.inference.columns import collect
from tidemill_operator.inference.document import NothingFound, Origin, draft
from tidemill_operator.inference.naming import field_names, pipeline_name
from tidemill_operator.inference.zone import local_zone

NOW_MS = 1_796_000_000_000
"""A time in November 2026."""
Document = Mapping[str, Any]


def drafted(events: Iterable[Any], *, decimals: Mapping[str, str] | None = None, zone: str = "UTC") -> Document:
    """Return the valid pipeline that is drafted from events."""
    text = draft(collect(events, decimals=decimals), Origin("a.csv", "CSV", "orders", zone), NOW_MS)
    (document,) = load_documents(text)
    assert check_document(document)[1] == []
    return document


def fields_of(document: Document) -> dict[str, dict[str, Any]]:
    return {field.pop("name"): field for field in document["spec"]["source"]["fields"]}


def of_cells(name: str, cells: Iterable[str], *, mark: str = POINT, zone: str = "UTC") -> dict[str, Any]:
    """Return the field that is drafted from a column of CSV."""
    drafted_fields = fields_of(
        drafted(({name: cell, "z": "x"} for cell in cells), decimals={name: mark, "z": POINT}, zone=zone)
    )
    (field,) = [field for key, field in drafted_fields.items() if key != "z"]
    return {key: value for key, value in field.items() if key not in ("path", "required")}


def of_values(name: str, values: Iterable[Any]) -> dict[str, Any]:
    """Return the field that is drafted from a member of JSON objects."""
    drafted_fields = fields_of(drafted({name: value, "z": "x"} for value in values))
    (field,) = [field for key, field in drafted_fields.items() if key != "z"]
    return {key: value for key, value in field.items() if key not in ("path", "required")}


@pytest.mark.parametrize(
    ("cells", "expected"),
    [
        (["1", "-2", ""], {"type": "integer"}),
        (["1", "2.5"], {"type": "number"}),
        (["1", "N/A", "2"], {"type": "integer"}),
        (["1e3"], {"type": "number"}),
        (["$1,000.50", "$2"], {"type": "number"}),
        (["00123", "00456"], {"type": "string"}),
        (["0012", *map(str, range(100, 300))], {"type": "integer"}),
        (["+4915112345"], {"type": "string"}),
        (["0", "0.5"], {"type": "number"}),
        (["12345678901234567890"], {"type": "string"}),
        (["true", "false"], {"type": "boolean"}),
        (["ja", "nein", ""], {"type": "boolean"}),
        (["Y", "N"], {"type": "boolean"}),
        (["true"], {"type": "boolean"}),
        (["no", "se"], {"type": "string"}),
        (["no"], {"type": "string"}),
        (["0", "1"], {"type": "integer"}),
        (["a", "b"], {"type": "string"}),
        (["", " "], {"type": "string"}),
        (["1.2.3", "1.0.0"], {"type": "string"}),
        (["192.168.0.1"], {"type": "string"}),
        ([*map(str, range(19)), "?x"], {"type": "integer"}),
        ([*map(str, range(5)), "x", "y"], {"type": "string"}),
    ],
)
def test_cells_get_the_narrowest_type_that_fits_them(cells: list[str], expected: dict[str, Any]) -> None:
    assert of_cells("value", cells) == expected


def test_decimal_commas_are_numbers() -> None:
    assert of_cells("betrag", ["1.234,50", "12,5 €"], mark=COMMA) == {"type": "number"}
    assert of_cells("menge", ["1.234", "12"], mark=COMMA) == {"type": "integer"}


MOMENT = dt.datetime(2025, 12, 31, 14, 5, 6, 250_000)


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("%Y-%m-%dT%H:%M:%SZ", {}),
        ("%Y-%m-%dT%H:%M:%S.%f+01:00", {}),
        ("%Y-%m-%d %H:%M:%S+0100", {}),
        ("%Y-%m-%d", {"zone": "Europe/Berlin"}),
        ("%Y-%m-%dT%H:%M:%S", {"zone": "Europe/Berlin"}),
        ("%Y-%m-%d %H:%M:%S.%f", {"zone": "Europe/Berlin"}),
        ("%Y-%m-%d %H:%M", {"format": "%Y-%m-%d %H:%M", "zone": "Europe/Berlin"}),
        ("%Y-%m-%dT%H:%MZ", {"format": "%Y-%m-%dT%H:%M%z"}),
        ("%Y-%m-%d %H:%M:%S,%f", {"format": "%Y-%m-%d %H:%M:%S,%f", "zone": "Europe/Berlin"}),
        ("%d.%m.%Y", {"format": "%d.%m.%Y", "zone": "Europe/Berlin"}),
        ("%d.%m.%Y %H:%M", {"format": "%d.%m.%Y %H:%M", "zone": "Europe/Berlin"}),
        ("%d.%m.%Y, %H:%M:%S", {"format": "%d.%m.%Y, %H:%M:%S", "zone": "Europe/Berlin"}),
        ("%d.%m.%y %H:%M Uhr", {"format": "%d.%m.%y %H:%M Uhr", "zone": "Europe/Berlin"}),
        ("%d/%m/%Y %H:%M:%S", {"format": "%d/%m/%Y %H:%M:%S", "zone": "Europe/Berlin"}),
        ("%m/%d/%Y %I:%M %p", {"format": "%m/%d/%Y %I:%M %p", "zone": "Europe/Berlin"}),
        ("%m/%d/%y", {"format": "%m/%d/%y", "zone": "Europe/Berlin"}),
        ("%Y/%m/%d %H:%M:%S", {"format": "%Y/%m/%d %H:%M:%S", "zone": "Europe/Berlin"}),
        ("%d-%b-%Y %H:%M", {"format": "%d-%b-%Y %H:%M", "zone": "Europe/Berlin"}),
        ("%d %B %Y", {"format": "%d %B %Y", "zone": "Europe/Berlin"}),
        ("%b %d, %Y", {"format": "%b %d, %Y", "zone": "Europe/Berlin"}),
        ("%d/%b/%Y:%H:%M:%S +0100", {"format": "%d/%b/%Y:%H:%M:%S %z"}),
        ("%a, %d %b %Y %H:%M:%S +0100", {"format": "%a, %d %b %Y %H:%M:%S %z"}),
        ("%a %b %d %H:%M:%S %Y", {"format": "%a %b %d %H:%M:%S %Y", "zone": "Europe/Berlin"}),
        ("%Y%m%d", {"format": "%Y%m%d", "zone": "Europe/Berlin"}),
        ("%Y%m%dT%H%M%SZ", {"format": "%Y%m%dT%H%M%S%z"}),
    ],
)
def test_the_format_of_times_is_found(pattern: str, expected: dict[str, Any]) -> None:
    """A day past the twelfth shows which number is the month. A zone is set only if the texts have none."""
    cells = [(MOMENT - dt.timedelta(days=n, minutes=7 * n)).strftime(pattern) for n in range(0, 40, 2)]
    assert of_cells("datum", cells, zone="Europe/Berlin") == {"type": "timestamp", **expected}
    if pattern != "%Y%m%d":
        assert of_values("datum", cells) == {
            "type": "timestamp",
            **{**expected, **({"zone": "UTC"} if "zone" in expected else {})},
        }


def test_an_ambiguous_month_is_assumed_and_noted() -> None:
    """The decimal mark of the file decides: with commas, the day is first."""
    cells = ["03/04/2026", "05/06/2026"]
    assert of_cells("date", cells, mark=COMMA)["format"] == "%d/%m/%Y"
    assert of_cells("date", cells, mark=POINT)["format"] == "%m/%d/%Y"
    sample = collect(({"date": cell} for cell in cells), decimals={"date": POINT})
    assert "the sample does not show whether the day or the month comes first" in draft(
        sample, Origin("a", "CSV", "a", "UTC"), NOW_MS
    )


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("created_at", 1_735_689_600, {"type": "timestamp", "format": "s"}),
        ("created_at", 1_735_689_600.25, {"type": "timestamp", "format": "s"}),
        ("createdAt", 1_735_689_600_123, {"type": "timestamp"}),
        ("ts", 1_735_689_600_123_456, {"type": "timestamp", "format": "us"}),
        ("time_unix_nano", 1_735_689_600_123_456_789, {"type": "timestamp", "format": "ns"}),
        ("x", 1_735_689_600_123, {"type": "timestamp"}),
        ("order_id", 1_735_689_600, {"type": "integer"}),
        ("amount", 12.5, {"type": "number"}),
        ("ts", 17, {"type": "integer"}),
    ],
)
def test_the_unit_of_epoch_times_is_found_from_value_and_name(
    name: str, value: float, expected: dict[str, Any]
) -> None:
    """Seconds look like many other numbers. They are times only under a name for a time."""
    assert of_values(name, [value, value + 60]) == expected
    assert of_cells(name, [str(value), str(value)]) == expected


def test_numbers_of_any_length_can_be_in_a_sample() -> None:
    assert of_cells("n", ["5", "1" * 5000]) == {"type": "string"}
    assert of_values("at", [10**330, -(10**330)]) == {"type": "number"}


def test_nested_members_are_read_by_paths() -> None:
    """The last member gives the name, unless that name is short or not unique. A name with a dot needs a list."""
    event = {
        "id": "e1", "createdAt": "2026-01-01T00:00:00Z", "user": {"id": 7, "geo": {"country": "NO"}},
        "order": {"id": 8, "items": [{"sku": "a"}], "total": 1.5}, "trace.id": "t", "labels": ["a", "b"], "note": None,
        "empty": {}, "User-Agent": "curl", "größe": 1, "n": 1,
    }  # fmt: skip
    drafted_fields = fields_of(drafted([event, event]))
    assert {name: (field["type"], field.get("path")) for name, field in drafted_fields.items()} == {
        "id": ("string", None),
        "created_at": ("timestamp", "createdAt"),
        "user_id": ("integer", "user.id"),
        "country": ("string", "user.geo.country"),
        "order_id": ("integer", "order.id"),
        "total": ("number", "order.total"),
        "trace_id": ("string", ["trace.id"]),
        "labels": ("strings", None),
        "user_agent": ("string", "User-Agent"),
        "groesse": ("integer", "größe"),
        "n_value": ("integer", "n"),
    }


def test_a_member_with_two_types_gets_the_more_frequent_one() -> None:
    drafted_fields = fields_of(
        drafted([{"user": {"id": 1}, "x": 1}, {"user": {"id": 2}, "x": 2}, {"user": "u3", "x": "?"}])
    )
    assert {name: field["type"] for name, field in drafted_fields.items()} == {"user_id": "integer", "x": "integer"}


def test_members_that_cannot_be_read_are_named_in_comments() -> None:
    events = [{"a": 1, "rows": [{"b": 1}], 'q"q': 2}] * 3
    text = draft(collect(events), Origin("a", "NDJSON", "a", "UTC"), NOW_MS)
    assert "# rows: an array of objects or numbers: left out" in text
    assert '# Left out, because these paths are invalid or overlap more frequent paths: q"q' in text


def test_broken_lines_and_values_of_other_types_are_counted_in_comments() -> None:
    """Such lines and values become dead letters."""
    events = [*({"a": n} for n in range(30)), None, "text", {"a": "x"}]
    text = draft(collect(events), Origin("a", "NDJSON", "a", "UTC"), NOW_MS)
    assert "# 2 lines are not JSON objects of at most 1 MiB: they become dead letters." in text
    assert "1 with another form would be dead letters, such as x" in text


def test_texts_of_events_cannot_break_the_yaml() -> None:
    """Cells may contain newlines and YAML."""
    text = draft(collect([{"a": "x\nspec: broken\u2028y", "b": 1}]), Origin("f\nx: 1", "CSV", "a", "UTC"), NOW_MS)
    assert len(load_documents(text)) == 1


@pytest.mark.parametrize("events", [[], [None, 3, "x"]], ids=["no line", "no object"])
def test_a_file_without_events_drafts_no_pipeline(events: list[Any]) -> None:
    with pytest.raises(NothingFound, match="has no event"):
        drafted(events)


def test_events_without_a_readable_member_give_no_pipeline() -> None:
    with pytest.raises(NothingFound, match="no member of its events can become a field"):
        drafted([{"a": [{"b": 1}]}, {"a": []}])


def shop(rows: int, step: dt.timedelta, *, backwards: bool = False) -> list[dict[str, Any]]:
    start = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
    events = [
        {
            "id": 1000 + n, "at": (start + n * step).isoformat(), "updated": (start + n * step).isoformat(),
            "due": "2031-01-01T00:00:00Z", "country": ("NO", "SE", "DE")[n % 3], "customer": f"c{n % 50}",
            "amount": n * 1.5, "lat": 59.9, "year": 2026, "paid": n % 2 == 0, "note": f"note {n}",
        }
        for n in range(rows)
    ]  # fmt: skip
    return events[::-1] if backwards else events


def test_event_time_groups_and_metrics_are_chosen() -> None:
    """Event time is neither later than another time nor in the future. Sums are of amounts, not of identifiers."""
    spec = drafted(shop(600, dt.timedelta(minutes=1)))["spec"]
    assert spec["source"]["eventTime"] == {"field": "at", "maxDisorder": "5s"}
    assert spec["source"]["key"] == "country"
    by_country, overall = spec["aggregations"]
    assert (by_country["groupBy"], overall["groupBy"]) == (["country"], [])
    assert by_country["window"] == {"type": "tumbling", "size": "5m", "grace": "5s"}
    assert by_country["latePolicy"] == "reopen"
    assert [metric["name"] for metric in by_country["metrics"]] == [
        "events", "sum_amount", "avg_amount", "max_amount", "avg_lat", "paid_share", "distinct_customer",
    ]  # fmt: skip


def test_a_file_from_the_newest_to_the_oldest_is_out_of_order_as_a_whole() -> None:
    spec = drafted(shop(600, dt.timedelta(minutes=1), backwards=True))["spec"]
    assert spec["source"]["eventTime"]["maxDisorder"] == "1d"


def test_dates_get_windows_of_days_and_a_larger_advance() -> None:
    events = [{"day": (dt.date(2026, 1, 1) + dt.timedelta(days=4 * n)).isoformat(), "amount": n} for n in range(20)]
    spec = drafted(events)["spec"]
    assert spec["source"]["eventTime"]["maxAdvance"] == "7d"
    assert spec["aggregations"][0]["window"]["size"] == "1d"


def test_events_without_a_time_have_no_event_time() -> None:
    spec = drafted([{"a": n} for n in range(10)])["spec"]
    assert "field" not in spec["source"]["eventTime"]


def test_times_in_the_future_are_noted() -> None:
    late = [{"at": "2099-01-01T00:00:00Z", "a": 1}]
    sample = collect([*({"at": f"2026-01-01T00:00:{n:02}Z", "a": 1} for n in range(30)), *late])
    assert "# 1 times are in the future" in draft(sample, Origin("a", "NDJSON", "a", "UTC"), NOW_MS)


def test_an_existing_topic_is_never_altered() -> None:
    origin = Origin("topic t", "JSON", "clicks", "UTC", namespace="shop", topic="shop.clicks")
    (document,) = load_documents(draft(collect([{"a": 1}]), origin, NOW_MS))
    assert document["metadata"] == {"name": "clicks", "namespace": "shop"}
    assert document["spec"]["source"]["topic"] == {"name": "shop.clicks", "managed": False}
    assert "latePolicy" not in document["spec"]["aggregations"][0]


def test_of_many_members_the_most_frequent_are_kept() -> None:
    events = [{"a": 1, **{f"m{n}_{i}": 1 for i in range(20)}} for n in range(20)]
    sample = collect(events)
    assert len(sample.columns) == 100
    assert sample.columns[0].steps == ("a",)
    assert len(sample.surplus_paths) == 301


def test_a_sample_ends_after_enough_values() -> None:
    assert collect({"a": 1} for _ in range(60_000)).is_complete is False


def test_names_of_fields_are_valid_and_unique() -> None:
    paths = [("HTTPStatus",), ("http_status",), ("2025",), ("日本",), ("y",), ("closed",), ("x" * 60,), ("a-b c",)]
    names = field_names(paths)
    assert names == [
        "http_status", "http_status_2", "field_2025", "field", "y_value", "closed_value", "x" * 41, "a_b_c",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "name"), [("Orders 2025 (EU)", "orders-2025-eu"), ("", "events"), ("日", "events"), ("x" * 50, "x" * 40)]
)
def test_any_text_gives_a_valid_name_of_a_pipeline(text: str, name: str) -> None:
    assert pipeline_name(text) == name


def test_the_local_zone_is_that_of_tz_or_localtime_or_utc(tmp_path: Path) -> None:
    zones = tmp_path / "zoneinfo" / "Europe"
    zones.mkdir(parents=True)
    (zones / "Oslo").write_text("")
    link = tmp_path / "localtime"
    link.symlink_to(zones / "Oslo")
    assert local_zone({}, link) == "Europe/Oslo"
    assert local_zone({"TZ": "Europe/Berlin"}, link) == "Europe/Berlin"
    assert local_zone({"TZ": "nowhere"}, tmp_path / "none") == "UTC"


def test_strings_that_yaml_reads_as_other_types_are_quoted() -> None:
    """Paths such as `on`, `1e5` and `~` are read as strings."""
    drafted_fields = fields_of(drafted([{name: 1 for name in ("on", "1e5", "~", "a: b", "{x}", "5m ", "é")}] * 2))
    assert {field.get("path") for field in drafted_fields.values()} == {"on", "1e5", "~", "a: b", "{x}", "5m ", "é"}


def test_other_yaml_readers_read_the_same() -> None:
    text = draft(collect(shop(50, dt.timedelta(hours=1))), Origin("a", "NDJSON", "a", "UTC"), NOW_MS)
    assert yaml.safe_load(text) == load_documents(text)[0]


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=12)
    | st.sampled_from(["2026-01-01", "31.12.2025 14:05", "1.5", "on", "a: b", "#x", "'", '"', "\u2028", "\x85"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=5,
)  # fmt: skip


@given(st.lists(st.dictionaries(st.text(max_size=12), VALUES, max_size=5), max_size=6), st.booleans())
def test_a_draft_of_any_events_is_valid(events: list[dict[str, Any]], cells: bool) -> None:
    """Otherwise nothing in the events can become a field."""
    decimals = None
    if cells:
        names = dict.fromkeys(name for event in events for name in event)
        columns = dict(zip(names, unique_names(list(names)), strict=True))
        events = [{columns[name]: str(value) for name, value in event.items()} for event in events]
        decimals = dict.fromkeys(columns.values(), POINT)
    with contextlib.suppress(NothingFound):
        drafted(events, decimals=decimals)
