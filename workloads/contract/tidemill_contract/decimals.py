"""Decimals: exact numbers with a fixed number of digits after the point (the scale).

Tidemill stores a decimal as a scaled integer, which is the value times 10^scale.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from decimal import Decimal

DECIMAL = "decimal"
_DECIMAL_TEXT = re.compile(r"[\s0-9eE+.\-]*", re.ASCII)
MAX_DIGITS = 18
"""The maximum precision. Every integer with this many digits fits in 64 bits."""
_SCALES = {f"{DECIMAL}({scale})": scale for scale in range(MAX_DIGITS + 1)}
DECIMALS = tuple(_SCALES)
"""The types of decimals. The index of each type is its scale."""


def decimal_type(scale: int) -> str:
    """Return the decimal type with the given scale, from 0 to MAX_DIGITS."""
    return DECIMALS[scale]


def scale_of(kind: str | None) -> int | None:
    """Return the scale of a type, or None if the type is not a decimal."""
    return None if kind is None else _SCALES.get(kind)


def base_type(kind: str) -> str:
    """Return a type without the scale, such as `decimal` for `decimal(2)`."""
    return DECIMAL if kind in _SCALES else kind


def is_decimal_text(text: str) -> bool:
    """Return whether a text contains only ASCII digits, signs, points, exponents and blanks.

    Python's Decimal also accepts underscores and the digits of other scripts.
    """
    return _DECIMAL_TEXT.fullmatch(text) is not None


def value_sql(scaled: str, scale: int) -> str:
    """Return SQL for the exact numeric value of a scaled integer. The value has `scale` digits after the point."""
    return f"({scaled} * {Decimal((0, (1,), -scale)):f}::numeric)"


def value_of(scaled: int, scale: int) -> Decimal:
    """Convert a scaled integer to its value, with `scale` digits after the point."""
    return Decimal(scaled).scaleb(-scale)


def text_of(value: Decimal, scale: int) -> str:
    """Return a value as text, with `scale` digits after the point."""
    return f"{value:.{scale}f}"


def scaled_text(scaled: int, scale: int) -> str:
    """Convert a scaled integer to the decimal text, with `scale` digits after the point."""
    return text_of(value_of(scaled, scale), scale)


def common_scales(kinds: Iterable[str]) -> list[int] | None:
    """Return the scale of each type, with 0 for `integer`.

    The result is None if no type is a decimal. Any type other than decimals and `integer` also makes the result None.
    """
    kinds = list(kinds)
    scales = [0 if kind == "integer" else scale_of(kind) for kind in kinds]
    exact_scales = [scale for scale in scales if scale is not None]
    return exact_scales if len(exact_scales) == len(scales) and any(kind in _SCALES for kind in kinds) else None
