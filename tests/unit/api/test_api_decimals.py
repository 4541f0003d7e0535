"""Tests of decimals in requests and answers: filters by value, and all digits in each format."""

from __future__ import annotations

import io
from dataclasses import replace
from decimal import Decimal
from typing import Any

import polars as pl
import pyarrow as pa
import pytest

from tidemill_api.catalog import AggregationModel
from tidemill_api.formats.arrow import ArrowWriter
from tidemill_api.formats.csv import CsvWriter
from tidemill_api.formats.json import describe_columns
from tidemill_api.formats.ndjson import NdjsonWriter
from tidemill_api.live.change import RowFilter
from tidemill_api.query.aggregate import AggregateQuery, parse_query
from tidemill_api.query.parameters import Parameters
from tidemill_api.query.selection import Binder, Column, Filter
from tidemill_api.query.sql import statement
from tidemill_api.query.values import cast_type, parse_value, to_text
from tidemill_chassis.web.problems import Problem
from tidemill_contract.functions.partials import build_layout
from tidemill_contract.resource.spec import AggregationSpec

FREQUENT = (Column("value", "decimal(2)"), Column("count", "integer"), Column("error", "integer"))
LISTED = [{"value": "-0.50", "count": 2, "error": 0}]
COLUMNS = [
    Column("d", "decimal(2)"),
    Column("whole", "decimal(0)"),
    Column("middle", "decimal(8)", decode=lambda stored: stored and Decimal(stored.decode())),
    Column("top", "array", decode=lambda stored: stored, members=FREQUENT),
]
ROWS: list[tuple[Any, ...]] = [
    (Decimal("-12.50"), Decimal(7), b"1E-8", LISTED),
    (Decimal("123456789012345678901234567890.12"), Decimal("0"), b"0E-8", []),
    (None, None, None, None),
]


def numbers() -> list[Column]:
    return [replace(column, decimals_as_numbers=True) for column in COLUMNS]


def test_json_contains_every_digit_as_a_text_or_as_a_number() -> None:
    texts = NdjsonWriter(COLUMNS).batch(ROWS).splitlines()
    assert texts == [
        b'{"d":"-12.50","whole":"7","middle":"0.00000001","top":[{"value":"-0.50","count":2,"error":0}]}',
        b'{"d":"123456789012345678901234567890.12","whole":"0","middle":"0.00000000","top":[]}',
        b'{"d":null,"whole":null,"middle":null,"top":null}',
    ]
    assert NdjsonWriter(numbers()).batch(ROWS).splitlines() == [
        b'{"d":-12.50,"whole":7,"middle":0.00000001,"top":[{"value":-0.50,"count":2,"error":0}]}',
        b'{"d":123456789012345678901234567890.12,"whole":0,"middle":0.00000000,"top":[]}',
        b'{"d":null,"whole":null,"middle":null,"top":null}',
    ]
    assert describe_columns(COLUMNS)[0] == {"name": "d", "type": "decimal", "scale": 2}


def test_a_negative_decimal_has_no_apostrophe_in_csv() -> None:
    lines = CsvWriter(COLUMNS[:3]).batch([row[:3] for row in ROWS]).splitlines()
    assert lines == [b"-12.50,7,0.00000001", b"123456789012345678901234567890.12,0,0.00000000", b",,"]


def test_arrow_contains_decimals_of_up_to_38_digits() -> None:
    writer = ArrowWriter(COLUMNS)
    written = writer.head() + writer.batch(ROWS) + writer.tail()
    table = pa.ipc.open_stream(written).read_all()
    assert [str(table.schema.field(name).type) for name in ("d", "whole", "middle")] == [
        "decimal128(38, 2)", "decimal128(38, 0)", "decimal128(38, 8)",
    ]  # fmt: skip
    rows = pl.read_ipc_stream(io.BytesIO(written)).rows()
    assert rows == [
        (Decimal("-12.50"), Decimal(7), Decimal("1E-8"), [{"value": Decimal("-0.50"), "count": 2, "error": 0}]),
        (Decimal("123456789012345678901234567890.12"), Decimal(0), Decimal("0E-8"), []),
        (None, None, None, None),
    ]
    with pytest.raises(Problem, match="value_too_large") as refused:
        writer.batch([(Decimal(10**36), None, None, None)])
    assert "d: 1000000000000000000000000000000000000 does not fit Arrow's decimals of 38 digits" in str(refused.value)


@pytest.mark.parametrize(
    ("text", "value"),
    [("12.5", "12.5"), ("-0.010", "-0.010"), ("1e3", "1000"), ("+7", "7"), (".5", "0.5"), ("9" * 40, "9" * 40)],
)
def test_decimals_in_requests_are_exact(text: str, value: str) -> None:
    parsed = parse_value(text, "decimal(2)")
    assert (type(parsed), to_text(parsed), cast_type(parsed, "decimal(2)")) == (Decimal, value, "numeric")


@pytest.mark.parametrize("text", ["", "x", "NaN", "inf", "1_000", "1,5", " 1"])
def test_a_text_that_is_no_decimal_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(ValueError, match=r"is not of type decimal; write a number, such as 12\.50"):
        parse_value(text, "decimal(2)")


@pytest.mark.parametrize(
    ("operator", "wanted", "cell", "fits"),
    [
        ("eq", ["12.5"], "12.50", True),
        ("in", ["1", "12.500"], "12.50", True),
        ("gt", ["9"], "12.50", True),
        ("lt", ["9"], "12.50", False),
        ("ne", ["9"], None, True),
    ],
)
def test_live_filters_compare_decimals_by_value(
    operator: str, wanted: list[str], cell: str | None, *, fits: bool
) -> None:
    values = tuple(parse_value(text, "decimal(2)") for text in wanted)
    assert RowFilter((Filter("c", "decimal(2)", operator, values),)).matches({"c": cell}) is fits


def query(text: str) -> AggregateQuery:
    spec = AggregationSpec.model_validate(
        {
            "name": "agg",
            "groupBy": ["price"],
            "window": {"type": "tumbling", "size": "1h"},
            "metrics": [{"name": "total", "function": "sum", "field": "price"}],
        }
    )
    model = AggregationModel(spec, 1, build_layout(spec, {"price": "decimal(2)"}), '"s"."agg_v1"')
    return parse_query(model, Parameters.from_query(text.encode()))


def test_the_form_of_decimals_changes_the_answer_but_not_the_cursor() -> None:
    first, other = query(""), query("decimals=number")
    assert first.key == query("decimals=string").key != other.key
    assert first.page.fingerprint == other.page.fingerprint
    assert not any(column.decimals_as_numbers for column in first.columns)
    assert all(column.decimals_as_numbers for column in other.columns)
    with pytest.raises(Problem, match="'float' is not one of string, number"):
        query("decimals=float")


def test_filters_on_decimal_groups_and_sums_compare_numerics() -> None:
    binder = Binder()
    sql = statement(query("price=12.5&total__gte=1e2"), binder, None)
    assert {"12.5", "100"} <= set(binder.values.values())
    assert '"price" = %(p' in sql
    assert '("_sum_price" * 0.01::numeric) AS "total"' in sql
    filled = statement(query("fill=zero&from=0&to=7200000"), Binder(), None)
    assert 'coalesce(g."price", 0::numeric)' in filled
