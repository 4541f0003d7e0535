"""Which partial columns are fed since when: the bookkeeping, and the SQL that tells whole rows from others."""

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
    (Feed(), None, "fed from the first row on: nothing to ask"),
    (Feed(2), "(_since >= 2)", "came later"),
    (Feed(None), "false", "left, and nothing was closed until then"),
    (
        Feed(None, ((0, NOON),)),
        "((_since >= 0 AND window_start + interval '3600000 milliseconds' <= timestamptz '2026-03-01T12:00:00Z'))",
        "left: what was closed by then stays right",
    ),
    (
        Feed(5, ((0, NOON), (3, NOON + HOUR))),
        "(_since >= 5"
        " OR (_since >= 3 AND window_start + interval '3600000 milliseconds' <= timestamptz '2026-03-01T13:00:00Z')"
        " OR (_since >= 0 AND window_start + interval '3600000 milliseconds' <= timestamptz '2026-03-01T12:00:00Z'))",
        "came back twice",
    ),
]


@pytest.mark.parametrize(("feed", "expected", "reason"), CONDITIONS, ids=[reason for *_, reason in CONDITIONS])
def test_which_rows_hold_all_events(feed: Feed, expected: str | None, reason: str) -> None:
    assert feed.condition(END) == expected, reason


CHANGES: list[tuple[Feeds, str, str, str, int | None, Feeds, str]] = [
    (Feeds(), "a b", "a b", "a b", NOON, Feeds(), "nothing changes"),
    (Feeds(), "a", "a b", "a", NOON, Feeds(1, {"b": Feed(1)}), "b comes"),
    (Feeds(), "a b", "a", "a b", NOON, Feeds(1, {"b": Feed(None, ((0, NOON),))}), "b leaves"),
    (Feeds(), "a b", "a", "a b", None, Feeds(1, {"b": Feed(None)}), "b leaves, nothing was closed: no row is whole"),
    (
        Feeds(1, {"b": Feed(None, ((0, NOON),))}), "a", "a b", "a b", NOON + HOUR,
        Feeds(2, {"b": Feed(2, ((0, NOON),))}), "b comes back, and knows what it held before",
    ),
    (
        Feeds(2, {"b": Feed(2, ((0, NOON),))}), "a b", "a", "a b", NOON + HOUR,
        Feeds(3, {"b": Feed(None, ((0, NOON), (2, NOON + HOUR)))}), "b leaves again",
    ),
    (Feeds(), "a b", "", "a b", NOON, Feeds(1, {c: Feed(None, ((0, NOON),)) for c in "ab"}), "the aggregation leaves"),
    (
        Feeds(1, {c: Feed(None, ((0, NOON),)) for c in "ab"}), "a b", "", "a b", NOON + HOUR,
        Feeds(1, {c: Feed(None, ((0, NOON),)) for c in "ab"}), "it is still away",
    ),
    (
        Feeds(1, {c: Feed(None, ((0, NOON),)) for c in "ab"}), "a b", "a b", "a b", NOON,
        Feeds(2, {c: Feed(2, ((0, NOON),)) for c in "ab"}), "it comes back",
    ),
    (Feeds(), "a b", "a b", "a", NOON, Feeds(1, {"b": Feed(1)}), "somebody dropped b: what it held is gone"),
    (
        Feeds(1, {"b": Feed(None, ((0, NOON),))}), "a", "a b", "a", NOON,
        Feeds(2, {"b": Feed(2)}), "somebody dropped b while it was not fed",
    ),
    (Feeds(4), "a", "b", "a", NOON, Feeds(5, {"a": Feed(None, ((0, NOON),)), "b": Feed(5)}), "one for another"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("before", "known", "wanted", "there", "closed", "after", "reason"), CHANGES, ids=[row[-1] for row in CHANGES]
)
def test_columns_that_come_or_leave_change_the_feeds_once(
    before: Feeds, known: str, wanted: str, there: str, closed: int | None, after: Feeds, reason: str
) -> None:
    """The known columns and the wanted ones, those of the table, and what was closed."""
    changed = before.changed(known.split(), wanted.split(), there=there.split(), closed_until=closed)
    assert changed == after, reason
    again = changed.changed(wanted.split() or known.split(), wanted.split(), there=known + wanted, closed_until=NOON)
    assert again is changed


WRITERS: list[tuple[Feeds, str, int, str]] = [
    (Feeds(), "a", 0, "a table that never changed"),
    (Feeds(3, {"b": Feed(3)}), "a b", 3, "it feeds all"),
    (Feeds(3, {"b": Feed(3)}), "a", 2, "an older spec: not as if it fed b"),
    (Feeds(5, {"b": Feed(2), "c": Feed(5)}), "a c", 1, "before the first that it lacks"),
    (Feeds(5, {"b": Feed(None, ((0, NOON),))}), "a", 5, "nobody feeds b"),
]


@pytest.mark.parametrize(("feeds", "columns", "since", "reason"), WRITERS, ids=[row[-1] for row in WRITERS])
def test_a_writer_notes_the_feed_of_the_columns_it_has(feeds: Feeds, columns: str, since: int, reason: str) -> None:
    assert feeds.of_writer(columns.split()) == since, reason


FEEDS = st.builds(
    Feed,
    st.none() | st.integers(0, 9),
    st.lists(st.tuples(st.integers(0, 9), st.integers(0, NOON)), max_size=3).map(tuple),
)


@given(st.builds(Feeds, st.integers(0, 99), st.dictionaries(st.sampled_from(["_count", "_sum_v", "_n_v"]), FEEDS)))
def test_what_is_stored_reads_back(feeds: Feeds) -> None:
    assert Feeds.read(feeds.layout, json.loads(feeds.fed)) == feeds


def test_a_schema_from_before_counts_as_fed_all_along() -> None:
    assert Feeds.read(None, None) == Feeds()


def test_usual_sql_stays_as_it_is() -> None:
    """Where no column came later, nothing is asked."""
    plan = layout(aggregation(), TYPES)
    assert guarded(plan, Feeds(7)) is plan
    assert guarded(plan, Feeds(7, {"_max_v": Feed(7)})) is plan
    assert "_since" not in window_source("t", plan)


REUSED: list[tuple[str, list[str], str]] = [
    ("_sum_v", ["sum", "avg"], "whatever is made of the sum"),
    ("_n_v", ["avg", "variance"], "whatever divides by the number"),
    ("_m2_v", ["variance"], "the sum and the average were there already"),
    ("_low_v", [], "it only makes the variance more exact"),
    ("_count", ["count"], "all events"),
]


@pytest.mark.parametrize(("column", "waiting", "reason"), REUSED, ids=[row[0] for row in REUSED])
def test_only_metrics_that_need_the_column_wait(column: str, waiting: list[str], reason: str) -> None:
    plan = guarded(layout(aggregation(), TYPES), Feeds(1, {column: Feed(1)}))
    assert [name for name, _ in plan.whole] == waiting, reason
    answers = {name: expression for name, _, expression in answer_columns(plan)}
    assert [name for name, expression in answers.items() if f'CASE WHEN "_whole_{name}"' in expression] == waiting


QUERIES = ["", "group_by=", "granularity=6h", "granularity=all", "granularity=6h&group_by=", "sum__gte=1&metrics=count"]


@pytest.mark.parametrize("hopping", [False, True])
@pytest.mark.parametrize("text", QUERIES)
def test_roll_ups_and_filters_ask_too(text: str, hopping: bool) -> None:
    """Every row that is merged must be whole, and a filter on a metric sees what the answer would be."""
    spec = aggregation(hopping)
    feeds = Feeds(2, {"_sum_v": Feed(2)})
    model: Any = AggregationModel(spec, 1, layout(spec, TYPES), "t").fed(feeds)
    found = statement(take_query(model, Parameters.from_query(text.encode())), Binder(), None)
    assert '(_since >= 2) AS "_whole_sum"' in found
    assert 'CASE WHEN "_whole_sum" THEN ' in found
    assert ("bool_and" in found) == (hopping or "group_by" in text or "granularity" in text)
