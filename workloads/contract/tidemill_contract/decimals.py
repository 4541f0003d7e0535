"""Decimals: exact numbers with a fixed number of digits after the point (the scale).

In events, stored partials and expressions a decimal is a scaled integer: its value times 10^scale. Only the decoder,
the SQL of answers, and the conversion to text apply the scale. The type of a decimal with scale 2 is written
`decimal(2)`. The precision is not part of the type, because it only limits which values are accepted in events.
"""

from __future__ import annotations

from collections.abc import Iterable
from decimal import Decimal

DECIMAL = "decimal"
MOST_DIGITS = 18
"""The maximum precision. Every integer with this many digits fits in 64 bits."""
_SCALES = {f"{DECIMAL}({scale})": scale for scale in range(MOST_DIGITS + 1)}
DECIMALS = tuple(_SCALES)
"""The types of decimals. The index of a type is its scale."""


def decimal_type(scale: int) -> str:
    """Return the type of decimals with a scale from 0 to MOST_DIGITS."""
    return DECIMALS[scale]


def scale_of(kind: str | None) -> int | None:
    """Return the scale of a type, or None if the type is not a decimal."""
    return None if kind is None else _SCALES.get(kind)


def family(kind: str) -> str:
    """Return the name of a type without its scale."""
    return DECIMAL if kind in _SCALES else kind


def value_sql(scaled: str, scale: int) -> str:
    """Return SQL for the exact numeric value of a scaled integer, with `scale` digits after the point."""
    return f"({scaled} * {Decimal((0, (1,), -scale)):f}::numeric)"


def value_of(scaled: int, scale: int) -> Decimal:
    """Return the value of a scaled integer, with `scale` digits after the point."""
    return Decimal(scaled).scaleb(-scale)


def text_of(value: Decimal, scale: int) -> str:
    """Return a value as text, with `scale` digits after the point."""
    return f"{value:.{scale}f}"


def scaled_text(scaled: int, scale: int) -> str:
    """Return the value of a scaled integer as text with all its digits."""
    return text_of(value_of(scaled, scale), scale)


def common_scales(kinds: Iterable[str]) -> list[int] | None:
    """Return the scales of types, or None unless all are decimals or integers, and at least one is a decimal.

    The scale of an integer is 0.
    """
    kinds = list(kinds)
    found = [0 if kind == "integer" else scale_of(kind) for kind in kinds]
    known = [scale for scale in found if scale is not None]
    return known if len(known) == len(found) and any(kind in _SCALES for kind in kinds) else None
