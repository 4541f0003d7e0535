"""Tests of expressions over decimals, by comparison with Python's decimal module."""

from __future__ import annotations

from collections.abc import Callable
from decimal import ROUND_CEILING, ROUND_DOWN, ROUND_FLOOR, ROUND_HALF_UP, Context, Decimal
from typing import Any

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidemill_contract.decimals import decimal_type, scale_of, value_of
from tidemill_contract.expressions.compiler import ExpressionError, Transform, check_type, compile_transform
from tidemill_contract.resource.spec import PipelineSpec

WIDE = Context(prec=100)
TYPES = {"a": "decimal(2)", "b": "decimal(3)", "i": "integer", "f": "number", "s": "string", "t": "timestamp"}


def spec(*derives: str, a: int = 2, b: int = 3) -> PipelineSpec:
    kinds = {"i": "integer", "f": "number", "s": "string"}
    fields: list[dict[str, Any]] = [{"name": name, "type": kind} for name, kind in kinds.items()]
    fields += [{"name": name, "type": "decimal", "scale": scale} for name, scale in (("a", a), ("b", b))]
    metrics = [{"name": "n", "function": "count"}]
    return PipelineSpec.model_validate(
        {
            "source": {"fields": fields},
            "transform": {"derive": [{"name": f"d{i}", "expression": text} for i, text in enumerate(derives)]},
            "aggregations": [{"name": "x", "window": {"type": "tumbling", "size": "1m"}, "metrics": metrics}],
        }
    )


def results(transform: Transform, **columns: list[Any]) -> list[list[Any]]:
    """Return the values of the derives by row, with decimals that have all digits of their type."""
    schema = {"i": pl.Int64(), "f": pl.Float64(), "s": pl.String(), "a": pl.Int64(), "b": pl.Int64()}
    height = len(next(iter(columns.values())))
    data = {name: columns.get(name, [None] * height) for name in schema}
    frame = transform.apply(pl.DataFrame(data, schema=schema))
    columns_of_values = []
    for name, kind, _ in transform.derives:
        scale = scale_of(kind)
        values = frame[name].to_list()
        columns_of_values.append([v if v is None or scale is None else value_of(v, scale) for v in values])
    return [list(row) for row in zip(*columns_of_values, strict=True)]


def _to(digits: int, rounding: str) -> Callable[[Decimal], Decimal]:
    return lambda value: value.quantize(Decimal(1).scaleb(-digits), rounding, WIDE)


EXACT: dict[str, Callable[[Decimal, Decimal, int], Any]] = {
    "a + b": lambda a, b, i: WIDE.add(a, b),
    "a - b": lambda a, b, i: WIDE.subtract(a, b),
    "a * b": lambda a, b, i: WIDE.multiply(a, b),
    "a + i": lambda a, b, i: WIDE.add(a, i),
    "i * a": lambda a, b, i: WIDE.multiply(a, i),
    "a * 1.19": lambda a, b, i: WIDE.multiply(a, Decimal("1.19")),
    "-a": lambda a, b, i: -a,
    "MOD(a, b)": lambda a, b, i: WIDE.remainder(a, b) if b else None,
    "a % 0.7": lambda a, b, i: WIDE.remainder(a, Decimal("0.7")),
    "ABS(a)": lambda a, b, i: abs(a),
    "SIGN(a)": lambda a, b, i: (a > 0) - (a < 0),
    "ROUND(a)": lambda a, b, i: _to(0, ROUND_HALF_UP)(a),
    "ROUND(a, 1)": lambda a, b, i: _to(1, ROUND_HALF_UP)(a),
    "ROUND(a, 15)": lambda a, b, i: a,
    "FLOOR(a)": lambda a, b, i: _to(0, ROUND_FLOOR)(a),
    "CEIL(a)": lambda a, b, i: _to(0, ROUND_CEILING)(a),
    "TRY_CAST(a AS integer)": lambda a, b, i: _to(0, ROUND_DOWN)(a),
    "TRY_CAST(a AS boolean)": lambda a, b, i: a != 0,
    "TRY_CAST(a || '' AS numeric(18, 3))": lambda a, b, i: _to(3, ROUND_HALF_UP)(a),
    "TRY_CAST(a AS decimal(18, 1))": lambda a, b, i: _to(1, ROUND_HALF_UP)(a),
    "TRY_CAST(i AS decimal(18, 2))": lambda a, b, i: Decimal(i),
    "GREATEST(a, b, 1.5)": lambda a, b, i: max(a, b, Decimal("1.5")),
    "LEAST(a, b, i)": lambda a, b, i: min(a, b, Decimal(i)),
    "COALESCE(a, b, 0)": lambda a, b, i: a,
    "COALESCE(NULLIF(a, b), 0)": lambda a, b, i: 0 if a == b else a,
    "CASE WHEN a > b THEN a ELSE 0.5 END": lambda a, b, i: a if a > b else Decimal("0.5"),
    "a = b": lambda a, b, i: a == b,
    "a > b": lambda a, b, i: a > b,
    "a <= i": lambda a, b, i: a <= i,
    "12.5 < a": lambda a, b, i: a > Decimal("12.5"),
    "a BETWEEN -0.05 AND 0.05": lambda a, b, i: abs(a) <= Decimal("0.05"),
    "a IN (12.50, 0.1)": lambda a, b, i: a in (Decimal("12.5"), Decimal("0.1")),
}
SCALED = st.sampled_from([-1250, -15, -5, -1, 0, 1, 5, 10, 15, 50, 1250]) | st.integers(1 - 10**18, 10**18 - 1)


def fits(value: Any, kind: str) -> Any:
    """Return a result, or None if its scaled integer has more than 64 bits."""
    if value is None or isinstance(value, bool):
        return value
    return value if abs(int(WIDE.scaleb(value, scale_of(kind) or 0))) < 2**63 else None


@given(
    st.tuples(st.integers(0, 9), st.integers(0, 9)),
    st.lists(st.tuples(SCALED, SCALED, st.integers(-(10**6), 10**6) | st.just(2**63 - 1)), min_size=1, max_size=12),
)
def test_exact_expressions_equal_the_results_of_the_decimal_module(scales: tuple[int, int], rows: list[Any]) -> None:
    transform = compile_transform(spec(*EXACT, a=scales[0], b=scales[1]))
    kinds = [kind for _, kind, _ in transform.derives]
    a, b, i = (list(column) for column in zip(*rows, strict=True))
    actual_rows = results(transform, a=a, b=b, i=i)
    for (x, y, n), actual in zip(rows, actual_rows, strict=True):
        given = value_of(x, scales[0]), value_of(y, scales[1]), n
        for text, kind, value in zip(EXACT, kinds, actual, strict=True):
            assert value == _expected(text, kind, *given), (text, kind, given)


def _expected(text: str, kind: str, a: Decimal, b: Decimal, i: int) -> Any:
    expected = EXACT[text](a, b, i)
    if "TRY_CAST" in text and scale_of(kind) is not None:
        return expected if abs(expected) < 10 ** (18 - (scale_of(kind) or 0)) else None
    return fits(expected, kind)


@pytest.mark.parametrize(
    ("text", "kind", "value"),
    [
        ("a / 4", "number", 3.125),
        ("a / b", "number", 12.5 / 0.07),
        ("a / 0", "number", None),
        ("a + f", "number", 13.0),
        ("a > f", "boolean", True),
        ("SQRT(b)", "number", 0.07**0.5),
        ("TRY_CAST(b AS number)", "number", 0.07),
        ("COALESCE(f, a)", "number", 0.5),
        ("a * 1e-17", "number", 12.5e-17),
        ("a || ' EUR'", "string", "12.50 EUR"),
        ("TRY_CAST(s AS decimal(9, 2))", "decimal(2)", Decimal("1234.57")),
        ("TRY_CAST(s AS decimal(5, 2))", "decimal(2)", None),
        ("TRY_CAST('1_000' AS decimal(9, 2))", "decimal(2)", None),
        ("TRY_CAST('١٢' AS decimal(9, 2))", "decimal(2)", None),
        ("TRY_CAST(' +.5e1 ' AS decimal(9, 2))", "decimal(2)", Decimal("5.00")),
        ("TRY_CAST(f AS decimal(5))", "decimal(0)", Decimal(1)),
        ("TRY_CAST(NULL AS decimal(5, 1))", "decimal(1)", None),
        ("TRY_CAST('1,5' AS decimal(5, 1))", "decimal(1)", None),
        ("TRY_CAST('NaN' AS decimal(5, 1))", "decimal(1)", None),
        ("a + NULL", "number", None),
        ("CASE WHEN f > 1 THEN a END", "decimal(2)", None),
    ],
)
def test_expressions_over_decimals_have_this_type_and_value(text: str, kind: str, value: Any) -> None:
    assert check_type(text, TYPES) == kind
    row = results(compile_transform(spec(text)), a=[1250], b=[70], f=[0.5], s=[" 1234.565 "])
    assert row == [[value]]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("TRY_CAST(a AS decimal(19, 2))", "DECIMAL(19,2) is not a type; write decimal(PRECISION, SCALE), such as"),
        ("TRY_CAST(a AS decimal(2, 3))", "DECIMAL(2,3) is not a type"),
        ("TRY_CAST(a AS decimal(1, 2, 3))", "DECIMAL(1,2,3) is not a type"),
        ("TRY_CAST(a AS decimal(x))", "a number of digits expected at character 23, before 'x'"),
        (
            "TRY_CAST(t AS decimal(9, 2))",
            "a timestamp cannot be converted to a decimal; convert the value to an integer",
        ),
        ("TRY_CAST(a AS timestamp)", "a decimal cannot be converted to a timestamp; declare the field as timestamp"),
        ("a = s", "'=' mixes decimal and string; convert one value with TRY_CAST(… AS decimal(18, 2))"),
        ("LENGTH(a)", "LENGTH takes a string, not a decimal"),
        ("a AND TRUE", "AND takes a condition, not a decimal"),
    ],
)
def test_an_expression_that_mixes_decimals_with_other_types_is_refused(text: str, message: str) -> None:
    with pytest.raises(ExpressionError) as refused:
        check_type(text, TYPES)
    assert message in str(refused.value)


def test_a_product_with_more_than_18_digits_after_the_point_is_a_number() -> None:
    assert check_type("a * a * a * a * a * a * a * a * a", TYPES) == decimal_type(18)
    assert check_type("a * a * a * a * a * a * a * a * a * a", TYPES) == "number"
