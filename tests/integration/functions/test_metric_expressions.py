"""Tests of expressions over metrics on a real Postgres: SQL and plain Python agree, also on extreme values."""

from __future__ import annotations

import datetime as dt
import math
import random
from collections.abc import Sequence
from typing import Any

import psycopg
import pytest

from oracle.draw_expressions import TAME, Drawer
from oracle.expressions import compiled
from tidemill_contract.expressions.sql import Value, compile_sql
from tidemill_contract.expressions.syntax import ExpressionError
from tidemill_contract.functions.base import SQL_TYPES

pytestmark = pytest.mark.integration

TYPES = {"i": "integer", "j": "integer", "f": "number", "g": "number", "b": "boolean", "s": "string", "t": "timestamp"}
COLUMNS = {
    name: Value(kind, f'v."{name}"::numeric' if kind == "integer" else f'v."{name}"', simple=True)
    for name, kind in TYPES.items()
}
LARGEST, TINIEST = 1.7976931348623157e308, 5e-324
VALUES: dict[str, Sequence[Any]] = {
    "integer": (None, 0, 1, -3, 7),
    "number": (None, 0.0, 0.5, -2.5, 3.0, 1e-300, -1e300, LARGEST, -LARGEST, TINIEST, 0.1),
    "boolean": (None, True, False),
    "string": (None, "a", "", "é"),
    "timestamp": (None, dt.datetime(2026, 3, 1, 11, tzinfo=dt.UTC), dt.datetime(2026, 3, 2, tzinfo=dt.UTC)),
}


def answers(
    connection: psycopg.Connection[Any], texts: Sequence[str], rows: Sequence[Sequence[Any]]
) -> list[list[Any]]:
    """Return the values of expressions over each row, as Postgres computes them."""
    casts = ", ".join(f"%s::{SQL_TYPES[kind]}" for kind in TYPES.values())
    listed = ", ".join(f"({casts})" for _ in rows)
    source = f"(SELECT * FROM (VALUES {listed}) AS r ({', '.join(TYPES)}) OFFSET 0) AS v"
    selected = ", ".join(compile_sql(text, COLUMNS).sql for text in texts)
    computed = connection.execute(f"SELECT {selected} FROM {source}".encode(), [value for row in rows for value in row])
    return [list(row) for row in computed]


def _is_accepted(text: str) -> bool:
    """Return whether an expression has only functions that may combine metrics."""
    try:
        compile_sql(text, COLUMNS)
    except ExpressionError as error:
        if "metrics cannot be combined with" not in str(error):
            raise
        return False
    return True


def same(expected: Any, actual: Any) -> bool:
    if isinstance(expected, float):
        close = isinstance(actual, float) and math.isclose(expected, actual, rel_tol=1e-14, abs_tol=1e-322)
        return close and math.copysign(1, expected) == math.copysign(1, actual)
    return bool(expected == actual)


def test_drawn_expressions_have_the_values_of_plain_python(admin: psycopg.Connection[Any]) -> None:
    """No value raises an error. Null stands for overflow, division by zero and roots of negative numbers."""
    rnd = random.Random(7)
    rows = [[rnd.choice(VALUES[kind]) for kind in TYPES.values()] for _ in range(60)]
    texts: list[str] = []
    while len(texts) < 250:
        text = Drawer(rnd, TYPES, TAME).draw(rnd.choice(["integer", "number", "number", "boolean", "timestamp"]), 3)
        if _is_accepted(text):
            texts.append(text)
    computed = [compiled(text, TYPES)[1] for text in texts]
    wrong = []
    for start in range(0, len(texts), 25):
        part = texts[start : start + 25]
        for row, actual_row in zip(rows, answers(admin, part, rows), strict=True):
            event = dict(zip(TYPES, row, strict=True))
            for text, compute, actual in zip(part, computed[start:], actual_row, strict=False):
                if not same(compute(event), actual):
                    wrong.append((text, event, compute(event), actual))
    assert wrong == []


def test_arithmetic_of_extreme_doubles_is_that_of_plain_python(admin: psycopg.Connection[Any]) -> None:
    """The test computes every operator and function for every pair of values."""
    numbers = [
        *VALUES["number"],
        1.0,
        -1.0,
        1e154,
        1e-154,
        8e307,
        1.5e-323,
        2.2250738585072014e-308,
        4503599627370497.5,
    ]
    rows = [[1, 2, a, b, True, "a", None] for a in numbers for b in numbers]
    texts = ["f + g", "f - g", "f * g", "f / g", "-f", "SQRT(f)", "ROUND(f)", "ROUND(f, 2)", "ABS(f)", "FLOOR(f)"]
    texts += [
        "CEIL(f)",
        "SIGN(f)",
        "GREATEST(f, g)",
        "f / 0.0",
        "f / (g - g)",
        "COALESCE(f, g) * 2",
        "f > g",
        "f * 1e308",
    ]
    for row, actual_row in zip(rows, answers(admin, texts, rows), strict=True):
        event = dict(zip(TYPES, row, strict=True))
        expected = [compiled(text, TYPES)[1](event) for text in texts]
        assert [t for t, a, b in zip(texts, expected, actual_row, strict=True) if not same(a, b)] == [], (
            event,
            expected,
            actual_row,
        )


def test_integers_are_exact_beyond_64_bits_and_null_beyond_38_digits(admin: psycopg.Connection[Any]) -> None:
    large = 2**63 - 1
    texts = [
        "i + j",
        "i * j",
        "i * j - i * j + 1",
        "i * j * j",
        "(i * j * j) / i",
        "MOD(i * j, 10)",
        "MOD(i, 0)",
        "i / j",
    ]
    (values,) = answers(admin, texts, [[large, large, 1.0, 1.0, True, "a", None]])
    assert values == [2 * large, large**2, 1, None, float(large**2), large**2 % 10, None, 1.0]


def test_texts_and_times_are_literals_in_metric_expressions(admin: psycopg.Connection[Any]) -> None:
    """A per cent sign starts no parameter of the statement, and a backslash starts no escape."""
    texts = [
        "CASE s WHEN '1%\\''s' THEN '50% ''\\' ELSE 'no' END",
        "s = '1%\\''s'",
        "s < 'Z'",
        "t >= '2026-03-01T12:00:00+01:00'",
    ]
    row = [1, 1, 1.0, 1.0, True, "1%\\'s", dt.datetime(2026, 3, 1, 11, tzinfo=dt.UTC)]
    assert answers(admin, texts, [row]) == [["50% '\\", True, True, True]]
