"""SQL over double precision that never raises an error, whatever its finite operands are.

Postgres aborts a statement when finite operands give an infinite result ("overflow"), or operands other than zero give
zero ("underflow"). One such partial would stop the whole batch. So a result beyond a double becomes ±Infinity or NaN
here. It stays so, because arithmetic with such an operand does not raise; the answer shows it as null. A result too
small for a double becomes zero.
"""

from __future__ import annotations

INFINITE = "'Infinity'::double precision"
LARGEST = "'1.7976931348623157e308'::double precision"
TINIEST = "'4.9406564584124654e-324'::double precision"
_HALF = "8e307"
"""The sum of two such values is finite."""
_INVISIBLE = "1e291"
"""Less than half a unit in the last place of the largest double."""
_SPLIT = "1e289"
"""The sum of 2^63 values below this is finite. So is the sum of 2^63 larger values after they are scaled by 2^-64."""
_DOWN, _UP = "5.421010862427522e-20", "18446744073709551616"
"""2^-64 and 2^64. Scaling by a power of two is exact."""
_SCALED = "9.745314011399999e288"
"""2^960: a scaled value below this is finite after it is scaled up again."""


def finite(value: str) -> str:
    """Return SQL for the value, or null if it is beyond a double."""
    return f"CASE WHEN abs({value}) < 'Infinity' THEN {value} END"


def added(a: str, b: str) -> str:
    """Return SQL for the sum of two values; a null counts as absent."""
    return (
        f"CASE WHEN {a} IS NULL THEN {b} WHEN {b} IS NULL THEN {a}"
        f" WHEN greatest(abs({a}), abs({b})) < {_HALF} OR sign({a}) <> sign({b})"
        f" OR least(abs({a}), abs({b})) < {_INVISIBLE} OR abs({a}) < {LARGEST} - abs({b}) THEN {a} + {b}"
        f" ELSE sign({a}) * {INFINITE} END"
    )


def total(value: str) -> str:
    """Return an SQL aggregate: the sum over rows. It is finite also when only a partial sum is beyond a double."""
    small = f"sum({value}) FILTER (WHERE abs({value}) < {_SPLIT})"
    large = f"sum({value} * {_DOWN}) FILTER (WHERE abs({value}) >= {_SPLIT})"
    scaled = f"({large} + CASE WHEN abs({small}) > 1e200 THEN {small} * {_DOWN} ELSE 0 END)"
    return (
        f"CASE WHEN {large} IS NULL THEN {small}"
        f" WHEN abs({large}) < 4e288 THEN {large} * {_UP} + coalesce({small}, 0)"
        f" WHEN abs({scaled}) < {_SCALED} THEN {scaled} * {_UP} ELSE sign({large}) * {INFINITE} END"
    )


def per(value: str, seconds: str) -> str:
    """Return SQL for the value divided by `seconds` (0, or at least 0.001); null for 0 seconds or beyond a double."""
    return (
        f"CASE WHEN abs({value}) > {LARGEST} * least({seconds}, 1) THEN NULL"
        f" WHEN abs({value}) < {seconds} * {TINIEST} THEN 0 ELSE {value} / nullif({seconds}, 0) END"
    )


def divided(value: str, count: str) -> str:
    """Return SQL for the value divided by a count; null if the count is 0 or null."""
    return f"CASE WHEN abs({value}) < {count} * {TINIEST} THEN 0 ELSE {value} / nullif({count}, 0) END"
