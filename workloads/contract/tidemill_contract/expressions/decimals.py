"""Exact arithmetic of decimals in filter and derive expressions.

The polars expressions represent a decimal as a scaled integer of 64 bits. A result beyond 64 bits becomes NULL.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from decimal import ROUND_HALF_UP, Context, Decimal, InvalidOperation
from functools import partial
from typing import Any

import polars as pl

from tidemill_contract.decimals import (
    DECIMALS,
    MAX_DIGITS,
    common_scales,
    decimal_type,
    is_decimal_text,
    scale_of,
    scaled_text,
    value_of,
)
from tidemill_contract.expressions.syntax import ExpressionError
from tidemill_contract.expressions.values import (
    WIDE,
    Result,
    TypedExpression,
    as_number,
    narrow,
    rescale,
    with_exact_constants,
)

DECIMAL_NAMES = ("DECIMAL", "NUMERIC")
"""The names of decimal types in TRY_CAST."""
_TYPE = re.compile(r"(?:DECIMAL|NUMERIC)\((\d{1,4})(?:,(\d{1,4}))?\)", re.ASCII)

_ROUNDING = Context(prec=400, rounding=ROUND_HALF_UP)
"""The context for rounding a double to a decimal's scale. A double has at most 309 digits before the point."""


def arithmetic(name: str, args: Sequence[TypedExpression]) -> Result | None:
    """Return the exact sum, difference, product or remainder, or None if the result must be a double."""
    args = with_exact_constants(args)
    scales = common_scales(argument.kind for argument in args)
    if scales is None or name == "/":
        return None
    if name == "*":
        if sum(scales) > MAX_DIGITS:
            return None
        a, b = (argument.expression.cast(WIDE) for argument in args)
        return decimal_type(sum(scales)), narrow(a * b)
    a, b = (rescale(argument, max(scales)) for argument in args)
    # In SQL, the remainder has the dividend's sign. In polars, the remainder has the divisor's sign.
    result = {"+": a + b, "-": a - b}[name] if name in "+-" else a.sign() * (a.abs() % b.abs())
    return decimal_type(max(scales)), narrow(result)


def round_decimal(name: str, argument: TypedExpression, digits: int) -> Result:
    """Round a decimal with ROUND (halves away from zero), FLOOR, CEIL or TRUNCATE.

    The result is an integer if `digits` is 0.
    """
    scale = scale_of(argument.kind) or 0
    kind = decimal_type(min(digits, scale)) if digits else "integer"
    if digits >= scale:
        return kind, argument.expression
    return kind, _map_series(argument, partial(_rounded, name, 10 ** (scale - digits)), pl.Int64())


def _rounded(name: str, step: int, numbers: pl.Series) -> pl.Series:
    whole = numbers // step
    rest = numbers - whole * step  # the remainder is never negative, because // rounds down
    match name:
        case "ROUND":
            rounds_up = (rest * 2 > step) | ((rest * 2 == step) & (numbers > 0))
        case "CEIL" | "CEILING":
            rounds_up = rest > 0
        case "TRUNCATE":
            rounds_up = (rest > 0) & (numbers < 0)
        case _:
            return whole
    return whole + rounds_up.cast(pl.Int64())


def to_text(argument: TypedExpression) -> pl.Expr:
    """Return a decimal as text, with all digits after the point."""
    show_value = partial(scaled_text, scale=scale_of(argument.kind) or 0)
    return _map_series(argument, partial(_map_values, show_value, pl.String()), pl.String())


def to_decimal(name: str, source: TypedExpression, type_name: str) -> Result:
    """Convert a value to a type such as `DECIMAL(18,2)`. A value with too many digits becomes NULL.

    Raises:
        ExpressionError: the type does not exist, or the value cannot be converted to this type.
    """
    match = _TYPE.fullmatch(type_name)
    precision, scale = (int(match[1]), int(match[2] or 0)) if match else (0, 0)
    if not 0 <= scale <= precision <= MAX_DIGITS or not precision:
        raise ExpressionError(
            f"{name}: {type_name} is not a type; write decimal(PRECISION, SCALE), such as decimal(18, 2), with at most"
            f" {MAX_DIGITS} digits, of which SCALE are after the point"
        )
    if source.kind == "null":
        return decimal_type(scale), source.expression.cast(pl.Int64())
    if source.kind not in ("integer", "number", "string", *DECIMALS):
        raise ExpressionError(
            f"a {source.kind} cannot be converted to a decimal; convert the value to an integer first"
        )
    read_value: Callable[[Any], Decimal] = partial(value_of, scale=scale_of(source.kind) or 0)
    if source.kind in ("number", "string"):
        read_value = _exact_decimal
    convert = partial(_map_values, partial(_convert, read_value, precision, scale), pl.Int64())
    return decimal_type(scale), _map_series(source, convert, pl.Int64())


def from_decimal(source: TypedExpression, kind: str) -> Result:
    """Convert a decimal to another type, or raise ExpressionError. Conversion to an integer drops the fraction."""
    match kind:
        case "string":
            return kind, to_text(source)
        case "number":
            return kind, as_number("TRY_CAST", source)
        case "integer":
            return kind, round_decimal("TRUNCATE", source, 0)[1]
        case "boolean":
            return kind, source.expression != 0
    raise ExpressionError(f"a decimal cannot be converted to a {kind}; declare the field as {kind}")


def _exact_decimal(value: float | str) -> Decimal:
    if isinstance(value, float):
        return Decimal(repr(value))
    if not is_decimal_text(value):
        raise InvalidOperation
    return Decimal(value)


def _convert(read_value: Callable[[Any], Decimal], precision: int, scale: int, value: Any) -> int | None:
    try:
        rounded = read_value(value).quantize(Decimal((0, (1,), -scale)), context=_ROUNDING)
        scaled = int(rounded.scaleb(scale, _ROUNDING))
    except (InvalidOperation, ValueError, OverflowError):
        return None
    return scaled if abs(scaled) < 10**precision else None


def _map_values(function: Callable[[Any], Any], dtype: pl.DataType, values: pl.Series) -> pl.Series:
    return pl.Series(values.name, [None if value is None else function(value) for value in values.to_list()], dtype)


def _map_series(argument: TypedExpression, function: Callable[[pl.Series], pl.Series], dtype: pl.DataType) -> pl.Expr:
    return argument.expression.map_batches(function, return_dtype=dtype, is_elementwise=True)
