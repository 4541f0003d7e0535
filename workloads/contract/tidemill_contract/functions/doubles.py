"""SQL for double precision arithmetic without overflow errors.

If all operands are finite, the SQL never raises an error. An overflow gives ±Infinity or NaN, and an underflow gives
zero.
"""

from __future__ import annotations

INFINITE = "'Infinity'::double precision"
LARGEST = "'1.7976931348623157e308'::double precision"
TINIEST = "'4.9406564584124654e-324'::double precision"
_HALF = "8e307"
"""The sum of two values below this limit is finite."""
_INVISIBLE = "1e291"
"""Adding a value below this limit does not change the largest doubles."""
_SPLIT = "1e289"
"""The sum of 2^63 values below this limit is finite. Larger values are multiplied by 2^-64 before the addition."""
_DOWN, _UP = "5.421010862427522e-20", "18446744073709551616"
"""2^-64 and 2^64. Multiplication by a power of two is exact."""
_SCALED = "9.745314011399999e288"
"""2^960. Below this limit, a scaled sum can be multiplied by 2^64 without overflow."""


def finite_or_null(value: str) -> str:
    """Return SQL for the value, or for null if the value is infinite or NaN."""
    return f"CASE WHEN abs({value}) < 'Infinity' THEN {value} END"


def add(a: str, b: str) -> str:
    """Return SQL for the sum of two values. If one value is null, the result is the other value."""
    return (
        f"CASE WHEN {a} IS NULL THEN {b} WHEN {b} IS NULL THEN {a}"
        f" WHEN greatest(abs({a}), abs({b})) < {_HALF} OR sign({a}) <> sign({b})"
        f" OR least(abs({a}), abs({b})) < {_INVISIBLE} OR abs({a}) < {LARGEST} - abs({b}) THEN {a} + {b}"
        f" ELSE sign({a}) * {INFINITE} END"
    )


def sum_aggregate(value: str) -> str:
    """Return an SQL aggregate for the sum. If the sum is too large for a double, the result is ±Infinity."""
    small = f"sum({value}) FILTER (WHERE abs({value}) < {_SPLIT})"
    large = f"sum({value} * {_DOWN}) FILTER (WHERE abs({value}) >= {_SPLIT})"
    scaled = f"({large} + CASE WHEN abs({small}) > 1e200 THEN {small} * {_DOWN} ELSE 0 END)"
    return (
        f"CASE WHEN {large} IS NULL THEN {small}"
        f" WHEN abs({large}) < 4e288 THEN {large} * {_UP} + coalesce({small}, 0)"
        f" WHEN abs({scaled}) < {_SCALED} THEN {scaled} * {_UP} ELSE sign({large}) * {INFINITE} END"
    )


def per_second(value: str, seconds: str) -> str:
    """Return SQL for the value per second.

    The result is null if `seconds` is 0, or if the quotient is too large for a double.
    """
    # The quotient can overflow only if the divisor's magnitude is below 1. The quotient can underflow only if the
    # magnitude is above 1.
    return (
        f"CASE WHEN abs({value}) > {LARGEST} * least({seconds}, 1) THEN NULL"
        f" WHEN abs({value}) < {TINIEST} * greatest({seconds}, 1) THEN 0 / nullif({seconds}, 0)"
        f" ELSE {value} / nullif({seconds}, 0) END"
    )


def divide(value: str, count: str) -> str:
    """Return SQL for the value divided by a count. If the count is 0 or null, the result is null."""
    return f"CASE WHEN abs({value}) < {count} * {TINIEST} THEN 0 ELSE {value} / nullif({count}, 0) END"
