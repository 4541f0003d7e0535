"""Polars expressions with a spec type, and conversions between types."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import polars as pl

from tidemill_contract.decimals import DECIMALS, MAX_DIGITS, base_type, common_scales, decimal_type, scale_of
from tidemill_contract.expressions.syntax import ExpressionError
from tidemill_contract.times import epoch_ms, read_start

POLARS_TYPES: dict[str, pl.DataType] = {
    "string": pl.String(),
    "integer": pl.Int64(),
    "number": pl.Float64(),
    "boolean": pl.Boolean(),
    "timestamp": pl.Datetime("ms", "UTC"),
    **dict.fromkeys(DECIMALS, pl.Int64()),
}
"""The polars dtype of each spec type."""
WIDE = pl.Int128()
NUMERIC = ("integer", "number")


@dataclass(frozen=True)
class TypedExpression:
    """A polars expression with its spec type.

    Attributes:
        kind: the spec type, or `null` for the constant NULL.
        size: the number of nodes in the polars expression.
        constant: the value, if the expression is a constant.
        fixed: whether the expression has the same value in all rows, because it uses no column.
    """

    expression: pl.Expr
    kind: str
    size: int = 1
    constant: Any = None
    is_constant: bool = False
    fixed: bool = False


Result = tuple[str, pl.Expr]
"""The result of a function: the spec type and the polars expression."""
Builder = Callable[[str, Sequence[TypedExpression]], Result]
"""A callable that takes a function's name and arguments, and returns the function's result."""
FunctionRow = tuple[str, int, int, Builder]
"""A row in a table of functions: the names (separated by commas), the minimum and the maximum number of arguments, and
the builder."""


def column(name: str, kind: str) -> TypedExpression:
    """Return the column `name`, which has the spec type `kind`."""
    return TypedExpression(pl.col(name), kind)


def literal(value: str | int | float | bool | None) -> TypedExpression:
    """Return a constant."""
    kinds = {str: "string", bool: "boolean", int: "integer", float: "number", type(None): "null"}
    kind = kinds[type(value)]
    dtype = pl.Boolean() if kind == "null" else POLARS_TYPES[kind]
    return TypedExpression(pl.lit(value, dtype=dtype), kind, 1, value, True, True)


def _wrong_type(name: str, argument: TypedExpression, wanted: str) -> ExpressionError:
    remedy = "" if argument.kind in ("null", "boolean") else "; convert with TRY_CAST(… AS type)"
    return ExpressionError(f"{name} takes {wanted}, not a {base_type(argument.kind)}{remedy}")


def as_boolean(name: str, argument: TypedExpression) -> pl.Expr:
    """Return an argument as a condition, or raise ExpressionError."""
    if argument.kind not in ("boolean", "null"):
        raise ExpressionError(
            f"{name} takes a condition, not a {base_type(argument.kind)}; compare the value with another value"
        )
    return argument.expression


def as_string(name: str, argument: TypedExpression) -> pl.Expr:
    """Return an argument as a string, or raise ExpressionError."""
    if argument.kind not in ("string", "null"):
        raise _wrong_type(name, argument, "a string")
    return argument.expression.cast(pl.String())


def as_number(name: str, argument: TypedExpression) -> pl.Expr:
    """Return an argument as a 64-bit float, or raise ExpressionError."""
    number = argument.expression.cast(pl.Float64())
    if (scale := scale_of(argument.kind)) is not None:
        return quotient(number, pl.lit(10.0**scale)) if scale else number
    if argument.kind not in (*NUMERIC, "null"):
        raise _wrong_type(name, argument, "numbers")
    return number


def with_exact_constants(args: Sequence[TypedExpression]) -> Sequence[TypedExpression]:
    """Return the arguments. If an argument is a decimal, constants of type number become exact decimals."""
    if all(scale_of(argument.kind) is None for argument in args):
        return args
    return [_as_exact_decimal(each) if each.kind == "number" and each.is_constant else each for each in args]


def _as_exact_decimal(argument: TypedExpression) -> TypedExpression:
    decimal = Decimal(repr(argument.constant))
    scale = max(0, -int(decimal.as_tuple().exponent))
    if scale > MAX_DIGITS or decimal.adjusted() >= MAX_DIGITS - scale:
        return argument
    scaled = int(decimal.scaleb(scale))
    return TypedExpression(pl.lit(scaled, dtype=pl.Int64()), decimal_type(scale), 1, argument.constant, True, True)


def rescale(argument: TypedExpression, scale: int) -> pl.Expr:
    """Convert a decimal or an integer to a scaled integer of 128 bits, without losing digits."""
    return argument.expression.cast(WIDE) * pl.lit(10 ** (scale - (scale_of(argument.kind) or 0)), dtype=WIDE)


def constant(name: str, argument: TypedExpression, what: str, kind: str, low: int = 0, high: int = 2**31) -> Any:
    """Return the value of a constant argument, or raise ExpressionError.

    Args:
        name: the name of the function.
        argument: the argument that must be a constant.
        what: the meaning of the argument, for the error message.
        kind: the spec type that the constant must have.
        low: the minimum of a constant integer.
        high: the maximum of a constant integer.
    """
    value = argument.constant
    if not argument.is_constant or argument.kind != kind or (kind == "integer" and not low <= value <= high):
        bounds = f" from {low} to {high}" if kind == "integer" else ""
        raise ExpressionError(f"{name}: {what} must be a constant {kind}{bounds}")
    return value


def unify(name: str, args: Sequence[TypedExpression], *, compared: bool = False) -> tuple[str, list[pl.Expr]]:
    """Return the common type of a function's arguments, and the arguments converted to this type.

    If `compared` is true, decimals and integers may become scaled integers of 128 bits. Before a caller returns a
    value of 128 bits, `narrow_decimal` must convert the value.

    Raises:
        ExpressionError: the arguments have no common type.
    """
    args = with_exact_constants(args)
    kinds = {argument.kind for argument in args} - {"null"}
    if not kinds.isdisjoint(DECIMALS) and kinds <= {*DECIMALS, *NUMERIC}:
        return _unify_decimals(name, args, compared=compared)
    if "timestamp" in kinds and "string" in kinds:
        args = [parse_time_constant(argument) for argument in args]
        kinds = {argument.kind for argument in args} - {"null"}
    if kinds == set(NUMERIC):
        kinds = {"number"}
    if len(kinds) > 1:
        families = " and ".join(sorted(map(base_type, kinds)))
        raise ExpressionError(f"{name} mixes {families}; convert one value with TRY_CAST(… AS {_common(kinds)})")
    kind = kinds.pop() if kinds else "null"
    dtype = POLARS_TYPES.get(kind, pl.Boolean())
    # NULL gets the type of the other arguments. If all arguments are NULL, the type is boolean.
    return kind, [pl.lit(None, dtype=dtype) if a.kind == "null" else a.expression.cast(dtype) for a in args]


def narrow_decimal(kind: str, value: pl.Expr) -> pl.Expr:
    """Convert a decimal to 64 bits, or to NULL if the decimal does not fit.

    The caller has chosen `value` from the results of `unify(…, compared=True)`. Values of other kinds stay unchanged.
    """
    return narrow(value) if kind in DECIMALS else value


def _unify_decimals(name: str, args: Sequence[TypedExpression], *, compared: bool) -> tuple[str, list[pl.Expr]]:
    scales = common_scales(argument.kind for argument in args if argument.kind != "null")
    if scales is None:
        return "number", [as_number(name, argument) for argument in args]
    kind, null = decimal_type(max(scales)), pl.lit(None, dtype=pl.Int64())
    if all(argument.kind in (kind, "null") for argument in args):
        return kind, [null if argument.kind == "null" else argument.expression for argument in args]
    wide = [null.cast(WIDE) if a.kind == "null" else rescale(a, max(scales)) for a in args]
    return kind, wide if compared else [narrow(value) for value in wide]


def _common(kinds: set[str]) -> str:
    if "timestamp" not in kinds:
        kind = min(kinds)
        return kind if (scale := scale_of(kind)) is None else f"decimal({MAX_DIGITS}, {scale})"
    return "integer" if kinds <= {"timestamp", *NUMERIC} else "string"


def parse_time_constant(argument: TypedExpression) -> TypedExpression:
    """Convert a constant string to a time, or raise ExpressionError. Return other arguments unchanged."""
    if argument.kind != "string" or not argument.is_constant:
        return argument
    try:
        milliseconds = epoch_ms(read_start(argument.constant))
    except ValueError:
        raise ExpressionError(
            f"'{argument.constant}' is not a time; write RFC 3339 with a zone, such as '2013-01-31T12:00:00Z'"
        ) from None
    time = pl.lit(milliseconds, dtype=pl.Int64()).cast(POLARS_TYPES["timestamp"])
    return TypedExpression(time, "timestamp", fixed=True)


def can_compare(a: TypedExpression, b: TypedExpression) -> bool:
    """Return whether polars can compare `a` with `b` in this order: `b` is fixed, or `a` is not fixed.

    If a fixed value precedes a column of equal values, polars may return a single row.
    """
    return b.fixed or not a.fixed


def replace_negative_zero(numbers: pl.Series) -> pl.Series:
    """Replace -0.0 with 0.0, because equal floats must be in the same group."""
    zeros = numbers == 0.0  # in polars, -0.0 + 0.0 is -0.0
    return numbers.set(zeros, 0.0) if zeros.any() else numbers


def unsigned_zero(expression: pl.Expr) -> pl.Expr:
    """Return the expression with 0.0 in place of -0.0."""
    return expression.map_batches(replace_negative_zero, return_dtype=pl.Float64(), is_elementwise=True)


def _nullify(series: pl.Series) -> pl.Series:
    finite = series.is_finite()
    return series if finite.all() else series.set(~finite, None)


def finite(expression: pl.Expr) -> pl.Expr:
    """Return the expression with NULL in place of NaN and infinities."""
    # A `when` expression would contain its argument twice. Each level of nesting would double the size.
    return expression.map_batches(_nullify, return_dtype=pl.Float64(), is_elementwise=True)


def _divide(numbers: Sequence[pl.Series]) -> pl.Series:
    dividend, divisor = numbers
    # Make the divisor a column, because polars replaces division by a constant with a less exact multiplication.
    return _nullify(dividend / (dividend * 0.0 + divisor))


def quotient(dividend: pl.Expr, divisor: pl.Expr) -> pl.Expr:
    """Return the correctly rounded quotient of finite numbers, with NULL in place of NaN and infinities."""
    return pl.map_batches([dividend, divisor], _divide, return_dtype=pl.Float64(), is_elementwise=True)


def narrow(expression: pl.Expr) -> pl.Expr:
    """Convert the expression to a 64-bit integer, with NULL for values that do not fit."""
    return expression.cast(pl.Int64(), strict=False)
