"""Tests of functions over texts and timestamps in expressions: regular expressions, JSON, hashes and units of time."""

from __future__ import annotations

import datetime as dt
import json
from typing import Any

import polars as pl
import pytest

from oracle.expressions import compiled
from tidemill_contract.expressions.compiler import POLARS_TYPES, ExpressionError, check_type, compile_transform
from tidemill_contract.expressions.functions import apply_function
from tidemill_contract.expressions.values import column, literal
from tidemill_contract.resource.spec import PipelineSpec

TYPES = {"s": "string", "i": "integer", "f": "number", "t": "timestamp", "u": "timestamp"}
SCHEMA = {name: POLARS_TYPES[kind] for name, kind in TYPES.items()}
MOMENT = dt.datetime(2026, 3, 29, 1, 30, 15, 123_000, dt.UTC)
DOCUMENT = json.dumps({"user": {"id": 7, "tags": ["x", None], "a.b": True}, "price": 1.5, "none": None})


def utc(*parts: int) -> dt.datetime:
    return dt.datetime(*parts, tzinfo=dt.UTC)  # type: ignore[misc, arg-type]


def _spec(text: str) -> PipelineSpec:
    metrics = [{"name": "n", "function": "count"}]
    return PipelineSpec.model_validate(
        {
            "source": {"fields": [{"name": name, "type": kind} for name, kind in TYPES.items()]},
            "transform": {"derive": [{"name": "x", "expression": text}]},
            "aggregations": [{"name": "a", "window": {"type": "tumbling", "size": "1h"}, "metrics": metrics}],
        }
    )


def values(text: str, *rows: dict[str, Any]) -> list[Any]:
    """Return the results of an expression for rows, which are equal for each row alone and in a batch."""
    frame = pl.DataFrame([dict.fromkeys(TYPES) | row for row in rows], schema=SCHEMA)
    transform = compile_transform(_spec(text))
    together = transform.apply(frame)["x"].to_list()
    assert together == [transform.apply(frame[n : n + 1])["x"].item() for n in range(frame.height)]
    return together


@pytest.mark.parametrize(
    ("text", "row", "expected"),
    [
        ("REGEXP_LIKE(s, '^GET /[a-z]+')", {"s": "GET /shop/1"}, True),
        ("REGEXP_LIKE(s, '(?i)^get$')", {"s": "GET"}, True),
        ("REGEXP_LIKE(s, 'b.d')", {"s": "abc"}, False),
        ("REGEXP_EXTRACT(s, 'id=([0-9]+)', 1)", {"s": "/a?id=42&x=1"}, "42"),
        ("REGEXP_EXTRACT(s, 'id=([0-9]+)')", {"s": "/a?id=42&x=1"}, "id=42"),
        ("REGEXP_EXTRACT(s, '(a)|(b)', 2)", {"s": "a"}, None),
        ("REGEXP_EXTRACT(s, '[0-9]+')", {"s": "none"}, None),
        ("SPLIT_PART(s, '/', 2)", {"s": "a/b/c"}, "b"),
        ("SPLIT_PART(s, '/', -1)", {"s": "a/b/c"}, "c"),
        ("SPLIT_PART(s, '/', 9)", {"s": "a/b/c"}, ""),
        ("SPLIT_PART(s, '::', 1)", {"s": ""}, ""),
        ("INITCAP(s)", {"s": "new YORK-city 1st"}, "New York-City 1st"),
        ("JSON_VALUE(s, '$.user.id')", {"s": DOCUMENT}, "7"),
        ("JSON_VALUE(s, '$.user.tags[0]')", {"s": DOCUMENT}, "x"),
        ("JSON_VALUE(s, '$.user.tags[1]')", {"s": DOCUMENT}, None),
        ("JSON_VALUE(s, '$.user.tags[9]')", {"s": DOCUMENT}, None),
        ("JSON_VALUE(s, '$.price')", {"s": DOCUMENT}, "1.5"),
        ("TRY_CAST(JSON_VALUE(s, '$.user.id') AS integer) + 1", {"s": DOCUMENT}, 8),
        ("JSON_VALUE(s, '$.user.tags')", {"s": DOCUMENT}, '["x",null]'),
        ("JSON_VALUE(s, '$.none')", {"s": DOCUMENT}, None),
        ("JSON_VALUE(s, '$.user')", {"s": "{broken"}, None),
        ("MD5(s)", {"s": "é"}, "66ddcd97cfdeabb2f6fb8a999b4bc76f"),
        ("LEFT(SHA256(s), 8)", {"s": "abc"}, "ba7816bf"),
        ("DATE_TRUNC('hour', t)", {"t": MOMENT}, utc(2026, 3, 29, 1)),
        ("DATE_TRUNC('week', t)", {"t": MOMENT}, utc(2026, 3, 23)),
        ("DATE_TRUNC('QUARTER', t)", {"t": MOMENT}, utc(2026, 1, 1)),
        ("DATE_TRUNC('second', t)", {"t": utc(1969, 12, 31, 23, 59, 59)}, utc(1969, 12, 31, 23, 59, 59)),
        ("TIMESTAMPDIFF('second', t, u)", {"t": utc(2026, 1, 1), "u": utc(2026, 1, 1, 0, 1)}, 60),
        ("TIMESTAMPDIFF('minute', t, u)", {"t": utc(2026, 1, 1), "u": utc(2025, 12, 31, 23, 58, 1)}, -1),
        ("TIMESTAMPDIFF('day', '2026-01-01', t)", {"t": MOMENT}, 87),
        ("TIMESTAMPDIFF('millisecond', t, u)", {"t": utc(1, 1, 1), "u": utc(9999, 12, 31)}, 315_537_811_200_000),
        ("TO_TIMESTAMP(i)", {"i": 1_770_000_000}, utc(2026, 2, 2, 2, 40)),
        ("TO_TIMESTAMP(f)", {"f": 1_284_352_323.123}, dt.datetime(2010, 9, 13, 4, 32, 3, 123_000, dt.UTC)),
        ("TO_TIMESTAMP(f)", {"f": -0.0005}, dt.datetime(1969, 12, 31, 23, 59, 59, 999_000, dt.UTC)),
        ("TO_TIMESTAMP(f)", {"f": 1e300}, None),
        ("TO_TIMESTAMP(i)", {"i": 253_402_300_800}, None),
        ("TO_TIMESTAMP(s, '%d.%m.%Y %H:%M')", {"s": "01.02.2026 03:04"}, utc(2026, 2, 1, 3, 4)),
        ("TO_TIMESTAMP(s, '%Y-%m-%d')", {"s": "2026-02-01"}, utc(2026, 2, 1)),
        ("TO_TIMESTAMP(s, '%d/%b/%Y:%H:%M:%S %z')", {"s": "01/Feb/2026:03:04:05 +0100"}, utc(2026, 2, 1, 2, 4, 5)),
        ("TO_TIMESTAMP(s, '%Y-%m-%d %H:%M:%S.%f', 'CET')", {"s": "2026-07-01 12:00:00.0009"}, utc(2026, 7, 1, 10)),
        ("TO_TIMESTAMP(s, '%Y-%m-%d %H:%M:%S.%f', 'CET')", {"s": "2026-03-29 02:30:00"}, None),
        ("TO_TIMESTAMP(s, '%Y-%m-%d %H:%M:%S.%f', 'CET')", {"s": "2026-10-25 02:30:00"}, utc(2026, 10, 25, 0, 30)),
        ("TO_TIMESTAMP(s, '%Y-%m-%d')", {"s": "soon"}, None),
        ("TO_TIMESTAMP(s, '%Y-%m-%d %H')", {"s": "2026-02-01 13"}, utc(2026, 2, 1, 13)),
        ("TO_TIMESTAMP(s, '%Y-%m-%d %I %p')", {"s": "2026-02-01 01 PM"}, utc(2026, 2, 1, 13)),
    ],
)  # fmt: skip
def test_a_function_has_this_result_and_null_for_null(text: str, row: dict[str, Any], expected: Any) -> None:
    assert values(text, row, {}) == [expected, None]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "REGEXP_LIKE(s, '(a')",
            "REGEXP_LIKE: '(a' is not a regular expression (unclosed group); write a pattern without",
        ),
        ("REGEXP_LIKE(s, '(?=a)')", "REGEXP_LIKE: '(?=a)' is not a regular expression (look-around"),
        ("REGEXP_LIKE(s, s)", "REGEXP_LIKE: the pattern must be a constant string"),
        ("REGEXP_EXTRACT(s, '(a)', 2)", "REGEXP_EXTRACT: '(a)' has no group 2; groups"),
        ("REGEXP_EXTRACT(s, 'a', 1)", "REGEXP_EXTRACT: 'a' has no group 1"),
        ("SPLIT_PART(s, '', 1)", "SPLIT_PART: the delimiter must not be empty"),
        ("SPLIT_PART(s, ',', 0)", "SPLIT_PART: the first part has number 1"),
        ("INITCAP(i)", "INITCAP takes a string, not a integer"),
        ("JSON_VALUE(s, 'user.id')", "JSON_VALUE: 'user.id' is not a path; write a path such as"),
        ("JSON_VALUE(s, '$..id')", "JSON_VALUE: '$..id' is not a path"),
        ("DATE_TRUNC('fortnight', t)", "DATE_TRUNC does not support the unit 'FORTNIGHT'; write one of SECOND"),
        ("DATE_TRUNC('hour', i)", "DATE_TRUNC takes a timestamp, not a integer"),
        ("TIMESTAMPDIFF('month', t, u)", "TIMESTAMPDIFF does not support the unit 'MONTH'; write one of MILLISECOND"),
        ("TO_TIMESTAMP(s)", "TO_TIMESTAMP takes numbers, not a string"),
        ("TO_TIMESTAMP(s, '%Q')", "TO_TIMESTAMP: in the pattern '%Q' %Q is unknown; write a pattern such as"),
        ("TO_TIMESTAMP(s, '%H:%M')", "TO_TIMESTAMP: in the pattern '%H:%M' the date is incomplete; write"),
        ("TO_TIMESTAMP(s, '%Y-%m-%d %M')", "TO_TIMESTAMP: the pattern '%Y-%m-%d %M' cannot be used (Invalid format"),
        ("TO_TIMESTAMP(s, '%Y-%m-%d', 'Mars/Olympus')", "TO_TIMESTAMP: 'Mars/Olympus' is not a time zone"),
        ("TO_TIMESTAMP(s, '%Y-%m-%d %z', 'UTC')", "TO_TIMESTAMP: the text has its own offset"),
    ],
)
def test_an_invalid_call_of_a_function_is_refused_with_the_remedy(text: str, message: str) -> None:
    with pytest.raises(ExpressionError) as caught:
        check_type(text, TYPES)
    assert str(caught.value).startswith(message)


def test_a_function_of_constants_is_constant() -> None:
    """Constants may be operands of IN and of comparisons in every batch."""
    assert apply_function("INITCAP", [literal("a")]).fixed
    assert not apply_function("INITCAP", [column("s", "string")]).fixed


def test_functions_give_the_same_results_as_the_model_of_the_tests() -> None:
    for text, row in (
        ("SPLIT_PART(s, ',', -2)", {"s": "a,b,c"}),
        ("REGEXP_EXTRACT(s, '([a-z]),([a-z])', 2)", {"s": "1a,b"}),
        ("INITCAP(s)", {"s": "ab-cd 1st"}),
        ("JSON_VALUE(s, '$.a[0].b')", {"s": '{"a": [{"b": "x"}]}'}),
        ("MD5(s) || SHA256(s)", {"s": "a"}),
        ("DATE_TRUNC('week', t)", {"t": MOMENT}),
        ("TIMESTAMPDIFF('hour', u, t)", {"t": MOMENT, "u": utc(1999, 1, 1)}),
        ("TO_TIMESTAMP(f)", {"f": -1.0015}),
    ):
        assert values(text, row) == [compiled(text, TYPES)[1](dict.fromkeys(TYPES) | row)], text
