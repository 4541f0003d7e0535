"""Tests of filters, orders and cursors: how they become SQL conditions."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidemill_api.query.parameters import Parameters
from tidemill_api.query.selection import Binder, Column, condition, parse_filters, parse_page

COLUMNS = {"a": Column("a", "integer"), "b": Column("b", "integer"), "id": Column("id", "integer", nullable=False)}
Row = dict[str, Any]


def _after(row: Row, order: list[tuple[str, bool]], other: Row) -> bool:
    """Return whether `row` comes after `other`, with nulls last in both directions."""
    for name, descending in order:
        mine, theirs = row[name], other[name]
        if mine == theirs:
            continue
        if mine is None or theirs is None:
            return mine is None
        return bool(mine < theirs) if descending else bool(mine > theirs)
    return False


@given(
    st.lists(st.tuples(st.none() | st.integers(0, 2), st.none() | st.integers(0, 2)), max_size=12),
    st.lists(st.tuples(st.sampled_from(["a", "b"]), st.booleans()), max_size=2, unique_by=lambda pair: pair[0]),
    st.integers(0, 11),
)
def test_the_keyset_condition_holds_for_exactly_the_rows_after_the_cursor(
    pairs: list[tuple[int | None, int | None]], requested: list[tuple[str, bool]], at: int
) -> None:
    rows = [{"a": a, "b": b, "id": n} for n, (a, b) in enumerate(pairs)]
    if not rows:
        return
    text = ",".join(f"-{name}" if descending else name for name, descending in requested) or "id"
    parameters = Parameters({"order": [text]}, split=True)
    options: dict[str, Any] = {"unique": ["id"], "default_limit": 5, "max_limit": 10, "fingerprint": "x"}
    page = parse_page(parameters, COLUMNS, default_order=[], **options)
    last = rows[at % len(rows)]
    parameters = Parameters({"order": [text], "cursor": [page.cursor(last)]}, split=True)
    page = parse_page(parameters, COLUMNS, default_order=[], **options)
    binder = Binder()
    sql = page.keyset_condition(binder)
    order = [(o.column.name, o.descending) for o in page.order]
    for row in rows:
        assert _holds(sql, row, binder.values) == _after(row, order, last), sql


def _holds(sql: str, row: Row, values: dict[str, str]) -> bool:
    """Evaluate a keyset condition. As in a WHERE clause, comparisons with null are false."""
    text = re.sub(r"%\((p\d+)\)s::\w+", lambda m: values[m.group(1)], sql)
    text = re.sub(r'"(\w+)" IS NULL', lambda m: str(row[m.group(1)] is None), text)

    def compared(match: re.Match[str]) -> str:
        mine, operator, theirs = row[match.group(1)], match.group(2), int(match.group(3))
        return str(mine is not None and {"<": mine < theirs, ">": mine > theirs, "=": mine == theirs}[operator])

    text = re.sub(r'"(\w+)" ([<>=]) (-?\d+)', compared, text)
    return bool(eval(text.replace("AND", "and").replace("OR", "or").replace("false", "False")))  # noqa: S307


CONDITIONS = [
    ("a=1", '"a" = %(p0)s::bigint'),
    ("a__ne=1", '"a" IS DISTINCT FROM %(p0)s::bigint'),
    ("a__in=1,2", '"a" IN (%(p0)s::bigint, %(p1)s::bigint)'),
    ("a__gte=99999999999999999999", '"a" >= %(p0)s::numeric'),
    ("a__isnull=true", '"a" IS NULL'),
    ("a__isnull=false", '"a" IS NOT NULL'),
]


@pytest.mark.parametrize(("text", "sql"), CONDITIONS)
def test_each_filter_becomes_a_condition_with_a_parameter(text: str, sql: str) -> None:
    (filter_,) = parse_filters(Parameters.from_query(text.encode()), COLUMNS, ())
    assert condition(filter_, Binder()) == sql


def test_a_column_whose_name_looks_like_a_filter_is_found_by_its_name() -> None:
    columns = {**COLUMNS, "a__in": Column("a__in", "string")}
    (filter_,) = parse_filters(Parameters.from_query(b"a__in=1,2"), columns, ())
    assert (filter_.column, filter_.operator, filter_.values) == ("a__in", "eq", ("1,2",))
