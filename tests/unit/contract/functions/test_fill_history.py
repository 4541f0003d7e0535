"""Tests of fill histories: when columns are filled, and the SQL that finds rows with all events."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidemill_api.catalog import AggregationModel
from tidemill_api.query.aggregate import parse_query
from tidemill_api.query.parameters import Parameters
from tidemill_api.query.selection import Binder
from tidemill_api.query.sql import statement
from tidemill_contract.functions.fill_history import FillHistory, FillPeriods, mask_incomplete_metrics
from tidemill_contract.functions.partials import build_layout
from tidemill_contract.resource.spec import AggregationSpec
from tidemill_contract.windows import answer_columns, window_source

TYPES = {"k": "string", "v": "number", "i": "integer"}
NOON = 1_772_366_400_000
HOUR = 3_600_000
END = "window_start + interval '3600000 milliseconds'"


def aggregation(hopping: bool = False, functions: str = "count sum avg variance") -> AggregationSpec:
    window = {"type": "hopping", "size": "3h", "hop": "1h"} if hopping else {"type": "tumbling", "size": "1h"}
    metrics = [
        {"name": name, "function": name, "field": None if name == "count" else "v"} for name in functions.split()
    ]
    return AggregationSpec.model_validate({"name": "agg", "groupBy": ["k"], "window": window, "metrics": metrics})


CONDITIONS: list[tuple[FillPeriods, str | None, str]] = [
    (FillPeriods(), None, "filled from the first row on"),
    (FillPeriods(2), "(_since >= 2)", "added later"),
    (FillPeriods(None), "false", "removed before any window was closed"),
    (
        FillPeriods(None, ((0, NOON),)),
        "((_since >= 0 AND window_start + interval '3600000 milliseconds' <= timestamptz '2026-03-01T12:00:00Z'))",
        "removed, but closed windows have all events",
    ),
    (
        FillPeriods(5, ((0, NOON), (3, NOON + HOUR))),
        "(_since >= 5"
        " OR (_since >= 3 AND window_start + interval '3600000 milliseconds' <= timestamptz '2026-03-01T13:00:00Z')"
        " OR (_since >= 0 AND window_start + interval '3600000 milliseconds' <= timestamptz '2026-03-01T12:00:00Z'))",
        "removed and added again twice",
    ),
]


@pytest.mark.parametrize(("periods", "expected", "reason"), CONDITIONS, ids=[reason for *_, reason in CONDITIONS])
def test_the_condition_of_a_column_selects_rows_with_all_events(
    periods: FillPeriods, expected: str | None, reason: str
) -> None:
    assert periods.condition(END) == expected, reason


REMOVED = FillPeriods(None, ((0, NOON),))
"""The periods of a column that was removed after windows were closed until noon."""
CHANGES: list[tuple[FillHistory, str, str, str, int | None, FillHistory, str]] = [
    (FillHistory(), "a b", "a b", "a b", NOON, FillHistory(), "no change"),
    (FillHistory(), "a", "a b", "a", NOON, FillHistory(1, {"b": FillPeriods(1)}), "b is added"),
    (FillHistory(), "a b", "a", "a b", NOON, FillHistory(1, {"b": REMOVED}), "b is removed"),
    (
        FillHistory(), "a b", "a", "a b", None,
        FillHistory(1, {"b": FillPeriods(None)}), "b is removed before any window was closed",
    ),
    (
        FillHistory(1, {"b": REMOVED}), "a", "a b", "a b", NOON + HOUR,
        FillHistory(2, {"b": FillPeriods(2, ((0, NOON),))}), "b is added again and keeps its closed windows",
    ),
    (
        FillHistory(2, {"b": FillPeriods(2, ((0, NOON),))}), "a b", "a", "a b", NOON + HOUR,
        FillHistory(3, {"b": FillPeriods(None, ((0, NOON), (2, NOON + HOUR)))}), "b is removed again",
    ),
    (FillHistory(), "a b", "", "a b", NOON, FillHistory(1, {c: REMOVED for c in "ab"}), "all columns are removed"),
    (
        FillHistory(1, {c: REMOVED for c in "ab"}), "a b", "", "a b", NOON + HOUR,
        FillHistory(1, {c: REMOVED for c in "ab"}), "all columns are still removed",
    ),
    (
        FillHistory(1, {c: REMOVED for c in "ab"}), "a b", "a b", "a b", NOON,
        FillHistory(2, {c: FillPeriods(2, ((0, NOON),)) for c in "ab"}), "all columns are added again",
    ),
    (FillHistory(), "a b", "a b", "a", NOON, FillHistory(1, {"b": FillPeriods(1)}), "b was dropped from the table"),
    (
        FillHistory(1, {"b": REMOVED}), "a", "a b", "a", NOON,
        FillHistory(2, {"b": FillPeriods(2)}), "b was dropped from the table while it was removed",
    ),
    (FillHistory(4), "a", "b", "a", NOON, FillHistory(5, {"a": REMOVED, "b": FillPeriods(5)}), "b replaces a"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("before", "known", "wanted", "existing", "closed", "after", "reason"), CHANGES, ids=[row[-1] for row in CHANGES]
)
def test_added_and_removed_columns_change_the_history_once(
    before: FillHistory, known: str, wanted: str, existing: str, closed: int | None, after: FillHistory, reason: str
) -> None:
    """`known` are the former columns, `wanted` the new columns, and `existing` the columns of the table."""
    changed = before.after_change(known.split(), wanted.split(), existing=existing.split(), closed_until=closed)
    assert changed == after, reason
    again = changed.after_change(
        wanted.split() or known.split(), wanted.split(), existing=known + wanted, closed_until=NOON
    )
    assert again is changed


WRITERS: list[tuple[FillHistory, str, int, str]] = [
    (FillHistory(), "a", 0, "the table never changed"),
    (FillHistory(3, {"b": FillPeriods(3)}), "a b", 3, "the writer fills all columns"),
    (FillHistory(3, {"b": FillPeriods(3)}), "a", 2, "the writer has an older spec without b"),
    (
        FillHistory(5, {"b": FillPeriods(2), "c": FillPeriods(5)}),
        "a c",
        1,
        "the writer lacks a column that was added at 2",
    ),
    (FillHistory(5, {"b": FillPeriods(None, ((0, NOON),))}), "a", 5, "no writer fills b"),
]


@pytest.mark.parametrize(("history", "columns", "since", "reason"), WRITERS, ids=[row[-1] for row in WRITERS])
def test_a_writer_marks_rows_with_the_layout_number_of_its_columns(
    history: FillHistory, columns: str, since: int, reason: str
) -> None:
    assert history.writer_layout_number(columns.split()) == since, reason


PERIODS = st.builds(
    FillPeriods,
    st.none() | st.integers(0, 9),
    st.lists(st.tuples(st.integers(0, 9), st.integers(0, NOON)), max_size=3).map(tuple),
)


@given(
    st.builds(FillHistory, st.integers(0, 99), st.dictionaries(st.sampled_from(["_count", "_sum_v", "_n_v"]), PERIODS))
)
def test_histories_are_read_as_they_were_stored(history: FillHistory) -> None:
    assert FillHistory.read(history.layout_number, json.loads(history.columns_json)) == history


def test_a_schema_without_histories_counts_as_filled_from_the_first_row_on() -> None:
    assert FillHistory.read(None, None) == FillHistory()


def test_the_sql_is_unchanged_if_no_column_was_added_later() -> None:
    original = build_layout(aggregation(), TYPES)
    assert mask_incomplete_metrics(original, FillHistory(7)) is original
    assert mask_incomplete_metrics(original, FillHistory(7, {"_max_v": FillPeriods(7)})) is original
    assert "_since" not in window_source("t", original)


REUSED: list[tuple[str, list[str], str]] = [
    ("_sum_v", ["sum", "avg"], "all metrics that need the sum"),
    ("_n_v", ["avg", "variance"], "all metrics that divide by the number of values"),
    ("_m2_v", ["variance"], "only the variance, as the sum and the number existed before"),
    ("_low_v", [], "no metric, as the column only makes the variance more exact"),
    ("_count", ["count"], "only the count of all events"),
]


@pytest.mark.parametrize(("column", "waiting", "reason"), REUSED, ids=[row[0] for row in REUSED])
def test_only_metrics_that_need_an_added_column_are_null_in_older_rows(
    column: str, waiting: list[str], reason: str
) -> None:
    masked = mask_incomplete_metrics(build_layout(aggregation(), TYPES), FillHistory(1, {column: FillPeriods(1)}))
    assert [name for name, _ in masked.completeness] == waiting, reason
    answers = {name: expression for name, _, expression in answer_columns(masked)}
    assert [name for name, expression in answers.items() if f'CASE WHEN "_whole_{name}"' in expression] == waiting


QUERIES = ["", "group_by=", "granularity=6h", "granularity=all", "granularity=6h&group_by=", "sum__gte=1&metrics=count"]


@pytest.mark.parametrize("hopping", [False, True])
@pytest.mark.parametrize("text", QUERIES)
def test_roll_ups_and_filters_use_only_rows_with_all_events(text: str, hopping: bool) -> None:
    """A roll-up is null if a merged row lacks events. A filter on a metric uses the same value as the answer."""
    spec = aggregation(hopping)
    history = FillHistory(2, {"_sum_v": FillPeriods(2)})
    model: Any = AggregationModel(spec, 1, build_layout(spec, TYPES), "t").mask_incomplete(history)
    sql = statement(parse_query(model, Parameters.from_query(text.encode())), Binder(), None)
    assert '(_since >= 2) AS "_whole_sum"' in sql
    assert 'CASE WHEN "_whole_sum" THEN ' in sql
    assert ("bool_and" in sql) == (hopping or "group_by" in text or "granularity" in text)
