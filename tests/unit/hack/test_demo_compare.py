"""Tests that the demo's comparison reports each kind of difference, and no difference for correct answers."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import polars as pl
import pytest

from demo.compare import Page, compare
from demo.expected import expected_windows, milliseconds, transform

SPEC: dict[str, Any] = {
    "source": {
        "fields": [
            {"name": "k", "type": "string"},
            {"name": "n", "type": "integer"},
            {"name": "x", "type": "number"},
            {"name": "ts", "type": "timestamp"},
        ],
        "eventTime": {"field": "ts"},
    },
    "transform": {"derive": [{"name": "r", "expression": "x / n"}], "filter": "n IS NOT NULL"},
}
METRICS = [
    {"name": "events", "function": "count"},
    {"name": "total", "function": "sum", "field": "n"},
    {"name": "mean", "function": "avg", "field": "x"},
    {"name": "ratio", "function": "max", "field": "r"},
    {"name": "spread", "function": "stddev", "field": "n"},
    {"name": "newest", "function": "last", "field": "n"},
    {"name": "common", "function": "topk", "field": "x", "k": 1},
    {"name": "large", "function": "count", "where": "n > 2"},
    {"name": "large_sum", "function": "sum", "field": "n", "where": "n > 2"},
    {"name": "twice", "expression": "2 * each"},
    {"name": "each", "expression": "large_sum / large"},
]
TUMBLING = {"name": "a", "groupBy": ["k"], "window": {"type": "tumbling", "size": "1m"}, "metrics": METRICS}


def at(second: int) -> datetime:
    """Return a time some seconds after a full minute."""
    return datetime.fromtimestamp(1_700_000_040 + second, UTC)


def raw(*rows: tuple[str | None, int | None, float | None, int]) -> pl.DataFrame:
    """Return a frame of raw rows (k, n, x, seconds)."""
    frame = pl.DataFrame(
        [(k, n, x, at(second)) for k, n, x, second in rows],
        schema={"k": pl.String, "n": pl.Int64, "x": pl.Float64, "ts": pl.Datetime("ms", "UTC")},
        orient="row",
    )
    return frame


ROWS = raw(
    ("a", 1, 0.1, 0), ("a", 3, 0.2, 59), ("a", 5, None, 59), ("b", 2, None, 0), (None, 0, 1.0, 61), ("a", None, 9.0, 0)
)


def listed(value: float, count: int = 1) -> list[dict[str, Any]]:
    """Return the value of a `topk` with one frequent value."""
    return [{"value": value, "count": count, "error": 0}]


def answer() -> list[dict[str, Any]]:
    """Return the rows of a correct answer for ROWS."""

    def row(k: str | None, start: int, **metrics: Any) -> dict[str, Any]:
        times = {
            "window_start": f"{at(start):%Y-%m-%dT%H:%M:%SZ}",
            "window_end": f"{at(start + 60):%Y-%m-%dT%H:%M:%SZ}",
        }
        return {"k": k, **times, "closed": start == 0, **metrics}

    spread = 1.6329931618554521
    return [
        row(
            "a",
            0,
            events=3,
            total=9,
            mean=0.15000000000000002,
            ratio=0.1,
            spread=spread,
            newest=5,
            common=listed(0.1),
            large=2,
            large_sum=8,
            each=4.0,
            twice=8.0,
        ),
        row(
            "b",
            0,
            events=1,
            total=2,
            mean=None,
            ratio=None,
            spread=0.0,
            newest=2,
            common=None,
            large=0,
            large_sum=None,
            each=None,
            twice=None,
        ),
        row(
            None,
            60,
            events=1,
            total=0,
            mean=1,
            ratio=None,
            spread=0,
            newest=0,
            common=listed(1.0),
            large=0,
            large_sum=None,
            each=None,
            twice=None,
        ),
    ]


def test_sessions_end_after_the_gap_and_at_multiples_of_the_maximum_length() -> None:
    window = {"type": "session", "gap": "10s", "maxLength": "1m"}
    visits = {**TUMBLING, "window": window, "metrics": METRICS[:2]}
    rows = raw(
        ("a", 1, 0.0, 9), ("a", 2, 0.0, 0), ("a", 4, 0.0, 19), ("b", 8, 0.0, 5), ("a", 16, 0.0, 55), ("a", 32, 0.0, 61)
    )
    windows = expected_windows(SPEC, visits, rows).sort("k", "window_start")
    assert windows.rows() == [
        ("a", at(0), at(19), 2, 3), ("a", at(19), at(29), 1, 4), ("a", at(55), at(60), 1, 16),
        ("a", at(61), at(71), 1, 32), ("b", at(5), at(15), 1, 8),
    ]  # fmt: skip


def judge(rows: list[dict[str, Any]]) -> tuple[int, str]:
    """Return the number of differences, and their texts."""
    pages = [Page(rows, f"{at(60):%Y-%m-%dT%H:%M:%SZ}")]
    result = compare(TUMBLING, expected_windows(SPEC, TUMBLING, ROWS), pages)
    return result.wrong, "; ".join(result.differences)


def test_correct_answers_have_no_difference() -> None:
    """Null groups, null metrics, whole floats and either of two last values are correct."""
    assert judge(answer()) == (0, "")
    other = answer()
    other[0]["newest"] = 3
    assert judge(other) == (0, "")


def _set(index: int, **values: Any) -> Callable[[list[dict[str, Any]]], None]:
    return lambda rows: rows[index].update(values)


WRONG: list[tuple[str, Callable[[list[dict[str, Any]]], Any], str]] = [
    ("a count off by one", _set(0, events=4), "events is 4, expected 3"),
    ("an integer sum off by one", _set(0, total=8), "total is 8, expected 9"),
    ("a float past 1e-9 relative", _set(0, mean=0.15 * (1 + 3e-9)), "mean is"),
    ("a value where none can be", _set(1, mean=0.0), "mean is 0.0, expected None"),
    ("no value where one is", _set(0, ratio=None), "ratio is None"),
    ("a maximum is exact", _set(0, ratio=0.1 + 1e-12), "ratio is"),
    ("a spread that is wrong", _set(0, spread=2.0), "spread is 2.0"),
    ("a last that is not among the last", _set(0, newest=1), "newest is 1"),
    ("a last that is lost", _set(0, newest=None), "newest is None"),
    ("a frequent value that is another", _set(0, common=listed(0.2)), "common is [{'value': 0.2"),
    ("a frequent value too often", _set(0, common=listed(0.1, 2)), "expected [{'value': 0.1, 'count': 1"),
    ("frequent values where none are", _set(1, common=[]), "common is [], expected None"),
    ("a window too few", lambda rows: rows.pop(), "window missing"),
    ("a window too many", lambda rows: rows.append(rows[1] | {"k": "z"}), "window not expected"),
    ("a window twice", lambda rows: rows.append(rows[1]), "answered twice"),
    ("a wrong end", _set(0, window_end="2023-11-14T22:14:01Z"), "window_end is"),
    ("a closed window called open", _set(0, closed=False), "is open"),
    ("an open window called closed", _set(2, closed=True), "is closed"),
]


@pytest.mark.parametrize(("reason", "spoil", "text"), WRONG, ids=[row[0] for row in WRONG])
def test_each_kind_of_difference_is_reported(
    reason: str, spoil: Callable[[list[dict[str, Any]]], Any], text: str
) -> None:
    rows = answer()
    spoil(rows)
    wrong, texts = judge(rows)
    assert wrong >= 1, reason
    assert text in texts


@pytest.mark.parametrize("value", [1.0, "1"], ids=["float", "text"])
def test_a_count_of_another_type_is_refused(value: object) -> None:
    rows = answer()
    rows[1]["events"] = value
    with pytest.raises(TypeError):
        judge(rows)


def test_a_closed_until_that_decreases_between_pages_is_reported() -> None:
    """A closed window is never open again."""
    rows = answer()
    pages = [Page(rows, f"{at(60):%Y-%m-%dT%H:%M:%SZ}"), Page([], f"{at(0):%Y-%m-%dT%H:%M:%SZ}")]
    result = compare(TUMBLING, expected_windows(SPEC, TUMBLING, ROWS), pages)
    assert result.wrong == 1
    assert "went back" in result.differences[0]


def test_hopping_windows_count_an_event_in_each_of_them() -> None:
    """An event is in `size` / `hop` windows."""
    hopping = {
        "name": "h",
        "groupBy": [],
        "window": {"type": "hopping", "size": "3m", "hop": "1m"},
        "metrics": METRICS[:1],
    }
    windows = expected_windows(SPEC, hopping, raw(("a", 1, None, 0), ("a", 1, None, 61))).sort("window_start")
    assert windows["events"].to_list() == [1, 2, 2, 1]
    assert windows["window_start"].to_list() == [at(-120), at(-60), at(0), at(60)]
    assert windows["window_end"].to_list() == [at(60), at(120), at(180), at(240)]


def test_a_division_by_zero_is_null_and_the_filter_drops_rows() -> None:
    """The last row of ROWS does not fulfil the filter."""
    assert transform(SPEC, ROWS)["r"].to_list() == [0.1, 0.2 / 3, None, None, None]


@pytest.mark.parametrize(("text", "expected"), [("250ms", 250), ("5s", 5_000), ("2d", 172_800_000)])
def test_durations_have_the_units_of_the_resource(text: str, expected: int) -> None:
    assert milliseconds(text) == expected


def test_a_function_that_cannot_be_recomputed_is_refused() -> None:
    with pytest.raises(ValueError, match="quantile"):
        expected_windows(SPEC, {**TUMBLING, "metrics": [{"name": "q", "function": "quantile", "field": "x"}]}, ROWS)


OSLO = {"zone": "Europe/Oslo", "offset": "6h"}


@pytest.mark.parametrize(
    ("window", "expected"),
    [
        ({"type": "tumbling", "size": "1d", "zone": "Europe/Oslo"}, [("03-28T23", "03-29T22")]),
        ({"type": "tumbling", "size": "1d", **OSLO}, [("03-28T05", "03-29T04")]),
        ({"type": "tumbling", "size": "1w"}, [("03-23T00", "03-30T00")]),
        ({"type": "tumbling", "size": "1mo", "zone": "Europe/Oslo"}, [("02-28T23", "03-31T22")]),
        ({"type": "tumbling", "size": "1q", "zone": "Europe/Oslo"}, [("12-31T23", "03-31T22")]),
        ({"type": "hopping", "size": "2d", "hop": "1d", **OSLO}, [("03-27T05", "03-29T04"), ("03-28T05", "03-30T04")]),
        ({"type": "tumbling", "size": "12h", "offset": "5h"}, [("03-28T17", "03-29T05")]),
    ],
)
def test_the_demo_expects_windows_by_the_calendar_and_at_their_offset(
    window: dict[str, str], expected: list[tuple[str, str]]
) -> None:
    """Clocks in Oslo change to summer time on 2026-03-29 at 01:00 UTC."""
    event = ROWS.head(1).with_columns(ts=pl.lit(datetime(2026, 3, 29, 3, 30, tzinfo=UTC)).cast(ROWS.schema["ts"]))
    windows = expected_windows(SPEC, {**TUMBLING, "window": window}, event)
    times = zip(windows["window_start"], windows["window_end"], strict=True)
    assert sorted((f"{start:%m-%dT%H}", f"{end:%m-%dT%H}") for start, end in times) == expected
