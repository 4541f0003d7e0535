"""Tests of functions of expressions against the same functions of a real Postgres."""

from __future__ import annotations

import datetime as dt
import math
import sys
from typing import Any

import polars as pl
import psycopg
import pytest

from tidemill_contract.expressions.compiler import POLARS_TYPES, compile_transform
from tidemill_contract.functions import doubles
from tidemill_contract.functions.base import SQL_TYPES
from tidemill_contract.resource.spec import PipelineSpec

pytestmark = pytest.mark.integration

TYPES = {"s": "string", "f": "number", "t": "timestamp", "u": "timestamp"}
UTC = dt.UTC
ROWS: list[tuple[Any, ...]] = [
    (None, None, None, None),
    ("", 0.0, dt.datetime(1970, 1, 1, tzinfo=UTC), dt.datetime(1970, 1, 1, tzinfo=UTC)),
    ("a/b/c", 1_284_352_323.5, dt.datetime(2026, 3, 29, 1, 30, 15, 123_000, UTC), dt.datetime(2026, 3, 1, tzinfo=UTC)),
    ("/", -1.25, dt.datetime(1969, 12, 31, 23, 59, 59, 999_000, UTC), dt.datetime(2000, 2, 29, 12, tzinfo=UTC)),
    ("new YORK-city 1st_place", 253_402_300_799.0, dt.datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC),
     dt.datetime(1, 1, 1, tzinfo=UTC)),
    ("id=42&x=7//", -62_135_596_800.0, dt.datetime(1, 1, 1, 0, 0, 1, tzinfo=UTC), dt.datetime(9999, 1, 1, tzinfo=UTC)),
    ('{"user": {"id": 7, "tags": ["x", null, true]}, "name": "Ann"}', 1e9, dt.datetime(2024, 12, 30, tzinfo=UTC),
     dt.datetime(2024, 12, 29, 23, 59, 59, 999_000, UTC)),
]  # fmt: skip
_JSON = "CASE WHEN s LIKE '{{%%' THEN jsonb_path_query_first(s::jsonb, '{path}') #>> '{{}}' END"
_SECONDS = "trunc(extract(epoch FROM u - t) / {n})::bigint"
CASES: list[tuple[str, str]] = [
    ("REGEXP_LIKE(s, '^[a-z]+/')", "regexp_like(s, '^[a-z]+/')"),
    ("REGEXP_LIKE(s, '(?i)York')", "regexp_like(s, '(?i)York')"),
    ("REGEXP_EXTRACT(s, '[0-9]+')", "regexp_substr(s, '[0-9]+')"),
    ("REGEXP_EXTRACT(s, '([a-z]+)=([0-9]+)', 2)", "regexp_substr(s, '([a-z]+)=([0-9]+)', 1, 1, '', 2)"),
    *((f"SPLIT_PART(s, '/', {n})", f"split_part(s, '/', {n})") for n in (1, 2, 3, 9, -1, -2, -9)),
    ("SPLIT_PART(s, '//', 1)", "split_part(s, '//', 1)"),
    ("INITCAP(s)", "initcap(s)"),
    ("MD5(s)", "md5(s)"),
    ("SHA256(s)", "encode(sha256(convert_to(s, 'UTF8')), 'hex')"),
    *((f"JSON_VALUE(s, '{path}')", _JSON.format(path=path))
      for path in ("$.user.id", "$.name", "$.user.tags[0]", "$.user.tags[1]", "$.user.tags[2]", "$.none.id")),
    *((f"DATE_TRUNC('{unit}', t)", f"date_trunc('{unit}', t, 'UTC')")
      for unit in ("second", "minute", "hour", "day", "week", "month", "quarter", "year")),
    *((f"TIMESTAMPDIFF('{unit}', t, u)", _SECONDS.format(n=n))
      for unit, n in (("millisecond", 0.001), ("second", 1), ("minute", 60), ("hour", 3600), ("day", 86400),
                      ("week", 604800))),
    ("TO_TIMESTAMP(f)", "to_timestamp(f)"),
]  # fmt: skip


def computed(texts: list[str]) -> list[list[Any]]:
    """Return the values of expressions over each row."""
    spec = PipelineSpec.model_validate(
        {
            "source": {"fields": [{"name": name, "type": kind} for name, kind in TYPES.items()]},
            "transform": {"derive": [{"name": f"d{n}", "expression": text} for n, text in enumerate(texts)]},
            "aggregations": [
                {
                    "name": "a",
                    "window": {"type": "tumbling", "size": "1h"},
                    "metrics": [{"name": "n", "function": "count"}],
                }
            ],
        }
    )
    frame = pl.DataFrame(ROWS, schema={name: POLARS_TYPES[kind] for name, kind in TYPES.items()}, orient="row")
    return [list(row[len(TYPES) :]) for row in compile_transform(spec).apply(frame).rows()]


def test_functions_have_the_values_of_postgres(admin: psycopg.Connection[Any]) -> None:
    """The rows have nulls, and times of the years 1 to 9999."""
    casts = ", ".join(f"%s::{SQL_TYPES[kind]}" for kind in TYPES.values())
    listed = ", ".join(f"({casts})" for _ in ROWS)
    selected = ", ".join(sql if "%%" in sql else sql.replace("%", "%%") for _, sql in CASES)
    query = f"SELECT {selected} FROM (VALUES {listed}) AS r ({', '.join(TYPES)})"
    wanted = admin.execute(query.encode(), [value for row in ROWS for value in row]).fetchall()
    texts = [text for text, _ in CASES]
    parts = [row for start in range(0, len(texts), 32) for row in [computed(texts[start : start + 32])]]
    rows = [[value for part in parts for value in part[n]] for n in range(len(ROWS))]
    wrong = [
        (text, event[0], ours, theirs)
        for event, mine, row in zip(ROWS, rows, wanted, strict=True)
        for text, ours, theirs in zip(texts, mine, row, strict=True)
        if ours != theirs
    ]
    assert wrong == []


def test_quotients_of_extreme_doubles_are_right_or_null(admin: psycopg.Connection[Any]) -> None:
    """The quotients are rates of windows of any length and means of any number of values."""
    largest = sys.float_info.max
    values = [0.0, 5e-324, -5e-324, 1e-323, 1e-300, 1.0, -7.5, 1e300, largest, -largest]
    lengths = [0.0, 0.001, 0.1, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.4, 86_400.0, 315_360_000.0]
    counts = [0, 1, 2, 3, 10**9, 2**63 - 1]
    for quotient, kind, divisors in ((doubles.per_second, "float8", lengths), (doubles.divide, "bigint", counts)):
        rows = admin.execute(
            f"SELECT v, d, {quotient('v', 'd')} FROM unnest(%s::float8[]) AS v, unnest(%s::{kind}[]) AS d",
            (values, divisors),
        ).fetchall()
        assert len(rows) == len(values) * len(divisors)
        for value, divisor, answer in rows:
            expected = value / divisor if divisor else math.inf
            if math.isinf(expected):
                assert answer is None, (value, divisor)
            else:
                assert answer == pytest.approx(expected, rel=1e-9, abs=5e-324), (value, divisor)
