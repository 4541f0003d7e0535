"""Tests of feeds: since when partial columns are filled, and the SQL that finds rows with all events."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidemill_api.catalog import AggregationModel
from tidemill_api.query.aggregate import take_query
from tidemill_api.query.parameters import Parameters
from tidemill_api.query.selection import Binder
from tidemill_api.query.sql import statement
from tidemill_contract.functions.feeds import Feed, Feeds, guarded
from tidemill_contract.functions.partials import layout
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


CONDITIONS: list[tuple[Feed, str | None, str]] = [
    (Feed(), None, "filled from the first row on"),
    (Feed(2), "(_since >= 2)", "added later"),
    (Feed(None), "false", "removed before any window was closed"),
    (
        Feed(None, ((0, NOON),)),
        "((_since >= 0 AND window_start + interval '3600000 milliseconds' <= timestamptz '2026-03-01T12:00:00Z'))",
        "removed, but closed windows have all events",
    ),
    (
        Feed(5, ((0, NOON), (3, NOON + HOUR))),
        "(_since >= 5"
        " OR (_since >= 3 AND window_start + interval '3600000 milliseconds' <= timestamptz '2026-03-01T13:00:00Z')"
        " OR (_since >= 0 AND window_start + interval '3600000 milliseconds' <= timestamptz '2026-03-01T12:00:00Z'))",
        "removed and added again twice",
    ),
]


@pytest.mark.parametrize(("feed", "expected", "reason"), CONDITIONS, ids=[reason for *_, reason in CONDITIONS])
def test_the_condition_of_a_feed_selects_rows_with_all_events(feed: Feed, expected: str | None, reason: str) -> None:
    assert feed.condition(END) == expected, reason


CHANGES: list[tuple[Feeds, str, str, str, int | None, Feeds, str]] = [
    (Feeds(), "a b", "a b", "a b", NOON, Feeds(), "no change"),
    (Feeds(), "a", "a b", "a", NOON, Feeds(1, {"b": Feed(1)}), "b is added"),
    (Feeds(), "a b", "a", "a b", NOON, Feeds(1, {"b": Feed(None, ((0, NOON),))}), "b is removed"),
    (Feeds(), "a b", "a", "a b", None, Feeds(1, {"b": Feed(None)}), "b is removed before any window was closed"),
    (
        Feeds(1, {"b": Feed(None, ((0, NOON),))}), "a", "a b", "a b", NOON + HOUR,
        Feeds(2, {"b": Feed(2, ((0, NOON),))}), "b is added again and keeps its closed windows",
    ),
    (
        Feeds(2, {"b": Feed(2, ((0, NOON),))}), "a b", "a", "a b", NOON + HOUR,
        Feeds(3, {"b": Feed(None, ((0, NOON), (2, NOON + HOUR)))}), "b is removed again",
    ),
    (Feeds(), "a b", "", "a b", NOON, Feeds(1, {c: Feed(None, ((0, NOON),)) for c in "ab"}), "all columns are removed"),
    (
        Feeds(1, {c: Feed(None, ((0, NOON),)) for c in "ab"}), "a b", "", "a b", NOON + HOUR,
        Feeds(1, {c: Feed(None, ((0, NOON),)) for c in "ab"}), "all columns are still removed",
    ),
    (
        Feeds(1, {c: Feed(None, ((0, NOON),)) for c in "ab"}), "a b", "a b", "a b", NOON,
        Feeds(2, {c: Feed(2, ((0, NOON),)) for c in "ab"}), "all columns are added again",
    ),
    (Feeds(), "a b", "a b", "a", NOON, Feeds(1, {"b": Feed(1)}), "b was dropped from the table"),
    (
        Feeds(1, {"b": Feed(None, ((0, NOON),))}), "a", "a b", "a", NOON,
        Feeds(2, {"b": Feed(2)}), "b was dropped from the table while it was removed",
    ),
    (Feeds(4), "a", "b", "a", NOON, Feeds(5, {"a": Feed(None, ((0, NOON),)), "b": Feed(5)}), "b replaces a"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("before", "known", "wanted", "existing", "closed", "after", "reason"), CHANGES, ids=[row[-1] for row in CHANGES]
)
def test_added_and_removed_columns_change_the_feeds_once(
    before: Feeds, known: str, wanted: str, existing: str, closed: int | None, after: Feeds, reason: str
) -> None:
    """`known` are the former columns, `wanted` the new columns, and `existing` the columns of the table."""
    changed = before.changed(known.split(), wanted.split(), there=existing.split(), closed_until=closed)
    assert changed == after, reason
    again = changed.changed(wanted.split() or known.split(), wanted.split(), there=known + wanted, closed_until=NOON)
    assert again is changed


WRITERS: list[tuple[Feeds, str, int, str]] = [
    (Feeds(), "a", 0, "the table never changed"),
    (Feeds(3, {"b": Feed(3)}), "a b", 3, "the writer fills all columns"),
    (Feeds(3, {"b": Feed(3)}), "a", 2, "the writer has an older spec without b"),
    (Feeds(5, {"b": Feed(2), "c": Feed(5)}), "a c", 1, "the writer lacks a column that was added at 2"),
    (Feeds(5, {"b": Feed(None, ((0, NOON),))}), "a", 5, "no writer fills b"),
]


@pytest.mark.parametrize(("feeds", "columns", "since", "reason"), WRITERS, ids=[row[-1] for row in WRITERS])
def test_a_writer_marks_rows_with_the_feed_of_its_columns(feeds: Feeds, columns: str, since: int, reason: str) -> None:
    assert feeds.of_writer(columns.split()) == since, reason


FEEDS = st.builds(
    Feed,
    st.none() | st.integers(0, 9),
    st.lists(st.tuples(st.integers(0, 9), st.integers(0, NOON)), max_size=3).map(tuple),
)


@given(st.builds(Feeds, st.integers(0, 99), st.dictionaries(st.sampled_from(["_count", "_sum_v", "_n_v"]), FEEDS)))
def test_feeds_are_read_as_they_were_stored(feeds: Feeds) -> None:
    assert Feeds.read(feeds.layout, json.loads(feeds.fed)) == feeds


def test_a_schema_without_feeds_counts_as_filled_from_the_first_row_on() -> None:
    assert Feeds.read(None, None) == Feeds()


def test_the_sql_is_unchanged_if_no_column_was_added_later() -> None:
    plan = layout(aggregation(), TYPES)
    assert guarded(plan, Feeds(7)) is plan
    assert guarded(plan, Feeds(7, {"_max_v": Feed(7)})) is plan
    assert "_since" not in window_source("t", plan)


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
    plan = guarded(layout(aggregation(), TYPES), Feeds(1, {column: Feed(1)}))
    assert [name for name, _ in plan.whole] == waiting, reason
    answers = {name: expression for name, _, expression in answer_columns(plan)}
    assert [name for name, expression in answers.items() if f'CASE WHEN "_whole_{name}"' in expression] == waiting


QUERIES = ["", "group_by=", "granularity=6h", "granularity=all", "granularity=6h&group_by=", "sum__gte=1&metrics=count"]


@pytest.mark.parametrize("hopping", [False, True])
@pytest.mark.parametrize("text", QUERIES)
def test_roll_ups_and_filters_use_only_rows_with_all_events(text: str, hopping: bool) -> None:
    """A roll-up is null if a merged row lacks events. A filter on a metric uses the same value as the answer."""
    spec = aggregation(hopping)
    feeds = Feeds(2, {"_sum_v": Feed(2)})
    model: Any = AggregationModel(spec, 1, layout(spec, TYPES), "t").fed(feeds)
    sql = statement(take_query(model, Parameters.from_query(text.encode())), Binder(), None)
    assert '(_since >= 2) AS "_whole_sum"' in sql
    assert 'CASE WHEN "_whole_sum" THEN ' in sql
    assert ("bool_and" in sql) == (hopping or "group_by" in text or "granularity" in text)
