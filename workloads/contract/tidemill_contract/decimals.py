"""Decimals: exact numbers with a fixed number of digits after the point, which is their scale.

Events, stored partials and expressions have them as integers, the value times 10^scale. Only the decoder, the SQL of
answers and texts apply the scale. The type is written `decimal(2)`. The precision is no part of it: it only limits
which values of events are accepted.
"""

from __future__ import annotations

from decimal import Decimal

DECIMAL = "decimal"
MOST_DIGITS = 18
"""Every integer of so many digits has 64 bits."""
_SCALES = {f"{DECIMAL}({scale})": scale for scale in range(MOST_DIGITS + 1)}
DECIMALS = tuple(_SCALES)
"""All types of decimals, by their scale."""


def decimal_type(scale: int) -> str:
    """The type of decimals of a scale, from 0 to MOST_DIGITS."""
    return DECIMALS[scale]


def scale_of(kind: str | None) -> int | None:
    """The scale of a type; None: it is no decimal."""
    return None if kind is None else _SCALES.get(kind)


def family(kind: str) -> str:
    """The name of a type without its scale."""
    return DECIMAL if kind in _SCALES else kind


def value_sql(scaled: str, scale: int) -> str:
    """SQL of the exact numeric value of a scaled integer, with `scale` digits after the point."""
    return f"({scaled} * {Decimal((0, (1,), -scale)):f}::numeric)"


def value_of(scaled: int, scale: int) -> Decimal:
    """The value of a scaled integer, with `scale` digits after the point."""
    return Decimal(scaled).scaleb(-scale)


def text_of(value: Decimal, scale: int) -> str:
    """A value with all its digits, of which `scale` are after the point."""
    return f"{value:.{scale}f}"
