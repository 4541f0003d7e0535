"""Tests of filter and derive expressions: values, types and errors."""

from __future__ import annotations

import contextlib
import datetime as dt
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.transforms import BIG, NOTHING, ROW, SCHEMA, SUNDAY, TYPES, spec, value
from tidemill_contract.expressions.compiler import (
    MAX_DERIVED_BYTES,
    POLARS_TYPES,
    ExpressionError,
    check_type,
    column_names,
    compile_transform,
    derived_types,
)


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("i + j", -5),
        ("i - j * 2 + 1", -10),
        ("(i - j) * 2", -18),
        ("-i", 7),
        ("i / j", -3.5),
        ("i % j", -1),
        ("MOD(-i, -j)", 1),
        ("f * 2", 5.0),
        ("1.5 + .5 + 1e1", 12.0),
        ("-9223372036854775808", -(2**63)),
        ("i < j AND b", True),
        ("NOT b OR i = -7", True),
        ("i <> j", True),
        ("i != -7", False),
        ("i BETWEEN -7 AND j", True),
        ("i NOT BETWEEN -7 AND j", False),
        ("s IN ('x', 'Abc')", True),
        ("i NOT IN (1, 2.5)", True),
        ("s LIKE 'A_c'", True),
        ("s LIKE 'b%'", False),
        ("s NOT LIKE '%b%'", False),
        ("s ILIKE 'aB%'", True),
        ("'a.c' LIKE 'abc'", False),
        ("'a_c' LIKE 'a!_c' ESCAPE '!'", True),
        ("'abc' LIKE 'a!_c' ESCAPE '!'", False),
        ("'100%' LIKE '%\\%' ESCAPE '\\'", True),
        ("'a!b' NOT LIKE 'a!!%' ESCAPE '!'", False),
        ("'A%B' ILIKE 'a%%b' ESCAPE '%'", True),
        ("'a\\b' LIKE 'a\\b'", True),
        ("s IS NULL", False),
        ("s IS NOT NULL", True),
        ("b IS NOT TRUE", False),
        ("CASE WHEN i > 0 THEN 'up' WHEN i < 0 THEN 'down' ELSE 'flat' END", "down"),
        ("CASE s WHEN 'Abc' THEN 1 ELSE 2.5 END", 1.0),
        ("CASE WHEN i > 0 THEN 1 END", None),
        ("COALESCE(NULL, i, 1)", -7),
        ("COALESCE(NULLIF(i, -7), f)", 2.5),
        ("IFNULL(NULLIF(s, 'Abc'), 'none')", "none"),
        ("IF(b, 'yes', 'no')", "yes"),
        ("GREATEST(i, j, f)", 2.5),
        ("LEAST(i, j)", -7),
        ("ABS(i)", 7),
        ("SIGN(-f)", -1.0),
        ("ROUND(f)", 3.0),
        ("ROUND(-f)", -3.0),
        ("ROUND(2.345, 1)", 2.3),
        ("FLOOR(-f)", -3.0),
        ("CEIL(f)", 3.0),
        ("SQRT(j * 8)", 4.0),
        ("LN(EXP(f))", 2.5),
        ("LOG10(1000)", 3.0),
        ("POW(j, -1)", 0.5),
        ("LENGTH(s) - 5", -2),
        ("LOWER(s) || UPPER(s)", "abcABC"),
        ("TRIM('  a ')", "a"),
        ("SUBSTR(s, 2, 1)", "b"),
        ("SUBSTRING(s, 2)", "bc"),
        ("LEFT(s, 2)", "Ab"),
        ("CONCAT(s, '-', i, NULLIF(s, 'Abc'))", "Abc--7"),
        ("REPLACE(s, 'b', '$1')", "A$1c"),
        ("STARTS_WITH(s, 'A') AND ENDS_WITH(s, 'c') AND CONTAINS(s, 'b')", True),
        ("'it''s' = s", False),
        ('"s" = S', True),
        ("EXTRACT(HOUR FROM t) * 100 + EXTRACT(MINUTE FROM t)", 2359),
        ("DATE_PART('dow', t)", 0),
        ("EXTRACT(ISODOW FROM t)", 7),
        ("EXTRACT(EPOCH FROM t)", SUNDAY.timestamp()),
        ("t >= '2013-01-06T18:00:00-05:00'", True),
        ("t", SUNDAY),
        ("TRY_CAST('12' AS integer) + 1", 13),
        ("TRY_CAST('x' AS BIGINT)", None),
        ("TRY_CAST('1e3' AS DOUBLE)", 1000.0),
        ("TRY_CAST(f AS integer)", 2),
        ("TRY_CAST(b AS integer)", 1),
        ("TRY_CAST('TRUE' AS boolean)", True),
        ("TRY_CAST(i AS boolean)", True),
        ("TRY_CAST(i AS string)", "-7"),
        ("TRY_CAST(b AS string)", "true"),
        ("TRY_CAST(t AS string)", "2013-01-06T23:59:07.000Z"),
        ("TRY_CAST(TRY_CAST(t AS integer) AS timestamp) = t", True),
    ],
)
def test_an_expression_has_this_value_of_this_type(expression: str, expected: Any) -> None:
    actual = value(expression)
    assert (type(actual), actual) == (
        type(expected),
        pytest.approx(expected) if isinstance(expected, float) else expected,
    )


@pytest.mark.parametrize(
    ("expression", "row", "expected", "reason"),
    [
        ("i / j", {"j": 0}, None, "division by zero"),
        ("i / j > 3", {"j": 0}, None, "infinity must not count as a large number"),
        ("f / 0 * 0 > 3", {}, None, "NaN must not count as a large number"),
        ("i % j", {"j": 0}, None, "remainder of zero"),
        ("i * j", {"i": BIG}, None, "64-bit overflow does not wrap"),
        ("i + 1", {"i": BIG}, None, "64-bit overflow does not wrap"),
        ("ABS(i)", {"i": -(2**63)}, None, "the least integer has no positive counterpart"),
        ("i % j", {"i": -(2**63), "j": -1}, 0, "the remainder of the least integer and -1 is 0"),
        ("EXP(f)", {"f": 1e4}, None, "the result exceeds a float"),
        ("SQRT(f)", {"f": -1.0}, None, "the root is not real"),
        ("LN(f)", {"f": 0.0}, None, "the result is minus infinity"),
        ("POW(f, f)", {"f": -0.5}, None, "the power is not real"),
        ("TRY_CAST(f AS integer)", {"f": 1e300}, None, "the number does not fit 64 bits"),
        ("TRY_CAST(i AS timestamp)", {"i": BIG}, None, "the year has more than four digits"),
        ("TRY_CAST(s AS number)", {"s": "nan"}, None, "the text is no finite number"),
        ("s || 'x'", {"s": None}, None, "NULL makes the result NULL"),
        ("b OR i > 0", {"b": None, "i": 1}, True, "three-valued OR"),
        ("b AND i > 0", {"b": None, "i": -1}, False, "three-valued AND"),
        ("NOT b", {"b": None}, None, "three-valued NOT"),
        ("b IS FALSE", {"b": None}, False, "IS is never NULL"),
        ("s NOT IN ('a')", {"s": None}, None, "IN is NULL for NULL"),
        ("NULLIF(i, j)", {"j": None}, -7, "NULL equals no value"),
        ("LENGTH(s)", {"s": "🌊é"}, 2, "the length is in characters, not bytes"),
        ("s LIKE '%x%'", {"s": "a\nx\n"}, True, "% matches line breaks"),
        ("CONCAT(s, s)", {"s": "é" * MAX_DERIVED_BYTES}, None, "the text is too long for a group column"),
    ],
)
def test_an_expression_without_a_result_is_null(
    expression: str, row: dict[str, Any], expected: Any, reason: str
) -> None:
    assert value(expression, **row) == expected, reason


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        ("dep", "unknown column 'dep'; known columns: s, i, j, f, b, t"),
        ("sum", "unknown column 'sum'"),
        ("SUM(i)", "SUM uses several events"),
        ("COUNT(*) > 1", r"COUNT(*) uses several events"),
        ("LAG(i)", "LAG uses several events"),
        ("ABS(i) OVER (PARTITION BY s)", "ABS(…) OVER uses several events"),
        ("i OVER (ORDER BY t)", "OVER uses several events"),
        ("(SELECT 1)", "subqueries are not allowed"),
        ("i IN (SELECT i FROM x)", "subqueries are not allowed"),
        ("SELECT i", "SELECT is not allowed"),
        ("EXISTS (SELECT 1)", "EXISTS is not allowed"),
        ("NOW() > t", "NOW gives a different value at each call"),
        ("CURRENT_TIMESTAMP > t", "CURRENT_TIMESTAMP gives a different value at each call"),
        ("RANDOM()", "RANDOM gives a different value at each call"),
        ("CAST(s AS integer)", "CAST fails for texts of another type; write TRY_CAST"),
        ("s::integer", "'::' fails for texts of another type; write TRY_CAST"),
        ("TRY_CAST(s AS decimal)", "TRY_CAST: DECIMAL is not a type; write decimal(PRECISION, SCALE)"),
        ("TRY_CAST(s AS timestamp)", "a string cannot be converted to a timestamp"),
        ("ROND(f)", "unknown function ROND; did you mean ROUND?"),
        ("ROUND()", "ROUND takes 1 to 2 arguments, not 0"),
        ("ROUND(f, i)", "ROUND: the number of digits must be a constant integer"),
        ("SUBSTR(s, 0)", "SUBSTR: the start (from 1) must be a constant"),
        ("REPLACE(s, '', 'x')", "REPLACE: the text to search for must not be empty"),
        ("s > 1", "'>' mixes integer and string"),
        ("b > TRUE", "'>' does not order booleans"),
        ("s + 1", "'+' takes numbers, not a string"),
        ("s = NULL", "'= NULL' is never true; write IS NULL"),
        ("f % 2", "% takes integers and decimals, not a number; convert with TRY_CAST"),
        ("MOD(i, 2.5)", "MOD takes integers and decimals, not a number"),
        ("i IN (1, NULL)", "IN takes constants other than NULL"),
        ("i IN (j)", "IN takes constants"),
        ("s LIKE s", "LIKE: the pattern must be a constant"),
        ("s LIKE 'a' ESCAPE s", "LIKE: ESCAPE must be a constant string"),
        ("s LIKE 'a' ESCAPE 1", "LIKE: ESCAPE must be a constant string"),
        ("s LIKE 'a' ESCAPE '!!'", "LIKE: ESCAPE takes one character, not '!!'"),
        ("s ILIKE 'a' ESCAPE ''", "ILIKE: ESCAPE takes one character, not ''"),
        ("s LIKE 'a!b' ESCAPE '!'", "LIKE: '!b' in the pattern is not valid; after the escape, write %, _ or '!'"),
        ("s LIKE 'a!' ESCAPE '!'", "LIKE: '!' in the pattern is not valid"),
        ("s LIKE 'a' ESCAPE", "expected at the end"),
        ("s ESCAPE '!'", "an operator or the end expected"),
        ("t > 2.5", "'>' mixes number and timestamp; convert one value with TRY_CAST(… AS integer)"),
        ("b = t", "'=' mixes boolean and timestamp; convert one value with TRY_CAST(… AS string)"),
        ("EXTRCT(t)", "unknown function EXTRCT; did you mean EXTRACT?"),
        ("i AND b", "AND takes a condition, not a integer"),
        ("t > '2013-01-01T00:00'", "'2013-01-01T00:00' is not a time; write RFC 3339"),
        ("EXTRACT(HOUR FROM i)", "HOUR can only be taken from a timestamp"),
        ("EXTRACT(AGE FROM t)", "a timestamp has no part AGE"),
        ("COALESCE(s, i)", "COALESCE mixes integer and string"),
        ("NULL", "is always NULL"),
        ("9223372036854775808", "does not fit 64 bits"),
        ("1e999", "too large for a number"),
        ("i >", "expected at the end"),
        ("i j", "expected at character 3, before 'j'"),
        ("i = j = 1", "comparisons cannot be chained"),
        ("CASE i END", "WHEN expected at character 8"),
        ("end + 1", "a field named 'end' is written \"end\""),
        ("x.i", "write column names without a table"),
        ("i -- note", "comments are not allowed"),
        ("i; DROP", "cannot read ';' at character 2"),
        ("s = 'open", "a text without a closing quote at character 5"),
        ("'\0' = s", "contains a NUL"),
        ("(" * 500 + "i" + ")" * 500, "nested more than"),
        ("+".join("i" * 200), "in a row"),
        ("NULLIF(" * 12 + "i" + ", j)" * 12, "too large after compilation"),
        ("   ", "expected at the end"),
    ],
    ids=lambda text: text[:24],
)
def test_an_invalid_expression_is_refused_with_the_reason(expression: str, message: str) -> None:
    with pytest.raises(ExpressionError) as caught:
        check_type(expression, TYPES)
    assert message in str(caught.value)


def test_a_filter_must_be_a_condition() -> None:
    assert check_type("i > 1", TYPES, as_filter=True) == "boolean"
    with pytest.raises(ExpressionError, match="is of type integer, not a condition"):
        check_type("i", TYPES, as_filter=True)


def test_a_derive_may_use_earlier_derives_and_the_filter_may_use_all() -> None:
    pipeline = spec("i + 1", "d0 * 2", "d1 > 0", where="d2 AND s IS NOT NULL")
    assert derived_types(pipeline) == {"d0": "integer", "d1": "integer", "d2": "boolean"}
    frame = pl.DataFrame([ROW, ROW | {"i": 1}, ROW | {"i": 1, "s": None}, NOTHING], schema=SCHEMA, orient="row")
    result = compile_transform(pipeline).apply(frame)
    assert result.select("i", "d0", "d1", "d2").rows() == [(1, 2, 4, True)]
    assert result.schema == SCHEMA | {"d0": pl.Int64(), "d1": pl.Int64(), "d2": pl.Boolean()}


def test_a_derive_cannot_use_a_later_derive() -> None:
    with pytest.raises(ExpressionError, match="derive d0: unknown column 'd1'"):
        compile_transform(spec("d1 + 1", "i"))


def test_an_error_in_the_filter_names_the_filter() -> None:
    with pytest.raises(ExpressionError, match=r"^filter: unknown column 'x'"):
        compile_transform(spec(where="x > 1"))


def test_a_constant_is_repeated_for_every_row_and_adds_no_row_to_an_empty_frame() -> None:
    transform = compile_transform(spec("1", "'x'", "POW(2, 0.5)", where="TRUE"))
    empty = pl.DataFrame([], schema=SCHEMA)
    assert transform.apply(empty).shape == (0, len(SCHEMA) + 3)
    assert transform.apply(pl.DataFrame([ROW, ROW], schema=SCHEMA, orient="row")).shape == (2, len(SCHEMA) + 3)


def test_the_columns_of_an_expression_are_the_columns_that_it_reads() -> None:
    assert column_names("CASE WHEN i > 0 THEN UPPER(s) ELSE 'x' END") == {"i", "s"}


@pytest.mark.parametrize("expression", ["f * -1", "-f", "ROUND(f - 0.2)", "CEIL(f - 0.5)", "-0.0", "SIGN(-f)", "f"])
def test_the_result_zero_has_no_sign(expression: str) -> None:
    """Otherwise -0.0 and 0.0, which are equal, would be two groups or two distinct values."""
    for zero in (0.0, -0.0):
        assert repr(value(expression, f=zero)) == "0.0"
        assert value(f"TRY_CAST({expression} AS string)", f=zero) == "0.0"


@given(st.text(max_size=60))
@settings(max_examples=80, deadline=None)
def test_any_text_gives_a_type_or_an_expression_error(text: str) -> None:
    with contextlib.suppress(ExpressionError):
        assert check_type(text, TYPES) in POLARS_TYPES


LATE = dt.datetime(2013, 1, 1, 0, 0, 7, 999_000, tzinfo=dt.UTC)
NEIGHBOUR, FLOAT = 2**53 + 1, 2.0**53


@pytest.mark.parametrize(
    ("expression", "row", "expected"),
    [
        ("EXTRACT(SECOND FROM t)", {"t": LATE}, 7),
        ("EXTRACT(SECOND FROM t)", {"t": dt.datetime(1969, 12, 31, 23, 59, 59, 500_000, tzinfo=dt.UTC)}, 59),
        ("EXTRACT(EPOCH FROM t)", {"t": LATE}, 1356998407.999),
        ("i = f", {"i": NEIGHBOUR, "f": FLOAT}, True),
        ("i > 9007199254740992.0", {"i": NEIGHBOUR}, False),
        ("GREATEST(i, f)", {"i": NEIGHBOUR, "f": 1.0}, FLOAT),
        ("i = j", {"i": NEIGHBOUR, "j": 2**53}, False),
        ("i > 9007199254740992", {"i": NEIGHBOUR}, True),
        ("i % j", {"i": -7, "j": 2}, -1),
        ("t >= '2013-01-01'", {"t": LATE}, True),
        ("t < '2013-01-01T00:00:07.9999999Z'", {"t": LATE}, False),
    ],
)
def test_parts_remainders_and_large_integers_follow_the_reference(
    expression: str, row: dict[str, Any], expected: Any
) -> None:
    actual = value(expression, **row)
    assert (actual, type(actual)) == (expected, type(expected))
