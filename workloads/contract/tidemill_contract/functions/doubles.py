"""SQL over double precision that never raises an error for finite operands.

Postgres aborts a statement if finite operands have an infinite result ("overflow"), or if operands other than zero have
the result zero ("underflow"). One such partial would stop the whole batch. So here, a result that is too large for a
double becomes ±Infinity or NaN. Later arithmetic with this value raises no error and keeps it infinite or NaN, and the
answer is null. A result that is too small for a double becomes zero.
"""

from __future__ import annotations

INFINITE = "'Infinity'::double precision"
LARGEST = "'1.7976931348623157e308'::double precision"
TINIEST = "'4.9406564584124654e-324'::double precision"
_HALF = "8e307"
"""The sum of two values below this limit is finite."""
_INVISIBLE = "1e291"
"""A value below half a unit in the last place of the largest double. Adding this value to a double near the largest
changes nothing."""
_SPLIT = "1e289"
"""The sum of 2^63 values below this limit is finite. The sum of 2^63 larger values, each scaled by 2^-64, is finite
too."""
_DOWN, _UP = "5.421010862427522e-20", "18446744073709551616"
"""2^-64 and 2^64. Scaling by a power of two is exact."""
_SCALED = "9.745314011399999e288"
"""2^960. A scaled value below this limit is finite after it is scaled up again."""


def finite(value: str) -> str:
    """Return SQL for the value, or for null if the value is infinite or NaN."""
    return f"CASE WHEN abs({value}) < 'Infinity' THEN {value} END"


def added(a: str, b: str) -> str:
    """Return SQL for the sum of two values. If one value is null, the sum is the other value."""
    return (
        f"CASE WHEN {a} IS NULL THEN {b} WHEN {b} IS NULL THEN {a}"
        f" WHEN greatest(abs({a}), abs({b})) < {_HALF} OR sign({a}) <> sign({b})"
        f" OR least(abs({a}), abs({b})) < {_INVISIBLE} OR abs({a}) < {LARGEST} - abs({b}) THEN {a} + {b}"
        f" ELSE sign({a}) * {INFINITE} END"
    )


def total(value: str) -> str:
    """Return an SQL aggregate for the sum over rows.

    The sum is finite even if an intermediate sum is too large for a double.
    """
    small = f"sum({value}) FILTER (WHERE abs({value}) < {_SPLIT})"
    large = f"sum({value} * {_DOWN}) FILTER (WHERE abs({value}) >= {_SPLIT})"
    scaled = f"({large} + CASE WHEN abs({small}) > 1e200 THEN {small} * {_DOWN} ELSE 0 END)"
    return (
        f"CASE WHEN {large} IS NULL THEN {small}"
        f" WHEN abs({large}) < 4e288 THEN {large} * {_UP} + coalesce({small}, 0)"
        f" WHEN abs({scaled}) < {_SCALED} THEN {scaled} * {_UP} ELSE sign({large}) * {INFINITE} END"
    )


def per(value: str, seconds: str) -> str:
    """Return SQL for the value divided by `seconds`, which is 0 or at least 0.001.

    The result is null for 0 seconds, or if it is too large for a double.
    """
    # A quotient can be too large only if the divisor is less than 1, and too small only if the divisor is greater than
    # 1.
    return (
        f"CASE WHEN abs({value}) > {LARGEST} * least({seconds}, 1) THEN NULL"
        f" WHEN abs({value}) < {TINIEST} * greatest({seconds}, 1) THEN 0 / nullif({seconds}, 0)"
        f" ELSE {value} / nullif({seconds}, 0) END"
    )


def divided(value: str, count: str) -> str:
    """Return SQL for the value divided by a count. The result is null if the count is 0 or null."""
    return f"CASE WHEN abs({value}) < {count} * {TINIEST} THEN 0 ELSE {value} / nullif({count}, 0) END"
