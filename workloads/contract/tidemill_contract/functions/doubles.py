"""SQL over double precision that never raises, whatever finite values come.

Postgres ends a statement where finite operands give an infinite result ("overflow"), or others than zero give zero
("underflow"). A stored partial must not do that: it would stop all others. So whatever is beyond a double becomes
±Infinity or NaN here, and stays it, because arithmetic with such an operand does not raise; an answer shows it as null.
What is too small for a double becomes zero.
"""

from __future__ import annotations

INFINITE = "'Infinity'::double precision"
LARGEST = "'1.7976931348623157e308'::double precision"
TINIEST = "'4.9406564584124654e-324'::double precision"
_HALF = "8e307"
"""Two of these have a finite sum."""
_INVISIBLE = "1e291"
"""Less than half a unit in the last place of the largest double."""
_SPLIT = "1e289"
"""As many values below this as a bigint can count have a finite sum, and so have those above it, scaled."""
_DOWN, _UP = "5.421010862427522e-20", "18446744073709551616"
"""2^-64 and 2^64: scaling by them is exact."""
_SCALED = "9.745314011399999e288"
"""2^960: what is below it after scaling down is finite after scaling up."""


def finite(value: str) -> str:
    """The value, or null where it is beyond a double."""
    return f"CASE WHEN abs({value}) < 'Infinity' THEN {value} END"


def added(a: str, b: str) -> str:
    """The sum of two values; of one if the other is null."""
    return (
        f"CASE WHEN {a} IS NULL THEN {b} WHEN {b} IS NULL THEN {a}"
        f" WHEN greatest(abs({a}), abs({b})) < {_HALF} OR sign({a}) <> sign({b})"
        f" OR least(abs({a}), abs({b})) < {_INVISIBLE} OR abs({a}) < {LARGEST} - abs({b}) THEN {a} + {b}"
        f" ELSE sign({a}) * {INFINITE} END"
    )


def total(value: str) -> str:
    """An aggregate: the sum over rows. Values that cancel each other may be larger than the sum can get."""
    small = f"sum({value}) FILTER (WHERE abs({value}) < {_SPLIT})"
    large = f"sum({value} * {_DOWN}) FILTER (WHERE abs({value}) >= {_SPLIT})"
    scaled = f"({large} + CASE WHEN abs({small}) > 1e200 THEN {small} * {_DOWN} ELSE 0 END)"
    return (
        f"CASE WHEN {large} IS NULL THEN {small}"
        f" WHEN abs({large}) < 4e288 THEN {large} * {_UP} + coalesce({small}, 0)"
        f" WHEN abs({scaled}) < {_SCALED} THEN {scaled} * {_UP} ELSE sign({large}) * {INFINITE} END"
    )


def per(value: str, seconds: str) -> str:
    """The value by a number of seconds, 0.001 at least; null where that is beyond a double, or there are none."""
    return (
        f"CASE WHEN abs({value}) > {LARGEST} * least({seconds}, 1) THEN NULL"
        f" WHEN abs({value}) < {seconds} * {TINIEST} THEN 0 ELSE {value} / nullif({seconds}, 0) END"
    )


def divided(value: str, count: str) -> str:
    """The value by a count; null if that is 0 or null."""
    return f"CASE WHEN abs({value}) < {count} * {TINIEST} THEN 0 ELSE {value} / nullif({count}, 0) END"
