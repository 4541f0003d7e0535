"""Parse and write durations, such as `250ms`, `10s`, `5m`, `1h` and `7d`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import AfterValidator, StringConstraints, WithJsonSchema

UNITS_MS = {"ms": 1, "s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
CALENDAR_UNITS: Mapping[str, tuple[Literal["day", "month"], int]] = {
    "d": ("day", 1), "w": ("day", 7), "mo": ("month", 1), "q": ("month", 3), "y": ("month", 12),
}  # fmt: skip
"""The number of days or months in each calendar unit. Without a time zone, a day of a window always has 24 hours."""
PATTERN = r"^[1-9][0-9]{0,8}(ms|s|m|h|d)$|^0(ms|s|m|h|d)$"
LENGTH_PATTERN = r"^[1-9][0-9]{0,8}(ms|s|m|h|d|w|mo|q|y)$|^0(ms|s|m|h|d)$"
MAX_LENGTH = 16
MAX_MS = 10 * 365 * 86_400_000
_DAYS = {"day": (1, 1), "month": (28, 31)}
"""The minimum and the maximum number of days in each unit."""


def parse_ms(text: str) -> int:
    """Return the milliseconds of a duration such as `5m`.

    Raises:
        ValueError: the unit is missing or unknown, there is a sign or a fraction, or the duration exceeds 3650 days.
    """
    if not re.fullmatch(PATTERN, text, re.ASCII) or text.endswith("\n"):
        hint = "; w, mo, q and y are allowed only in window sizes" if _has_calendar_unit(text) else ""
        raise ValueError(
            f"'{text}' is not a duration: write a whole number and a unit, such as 250ms, 10s, 5m, 1h, 7d{hint}"
        )
    number, unit = re.fullmatch(r"(\d+)([a-z]+)", text).groups()  # type: ignore[union-attr]
    value = int(number) * UNITS_MS[unit]
    if value > MAX_MS:
        raise ValueError(f"'{text}' is longer than 3650d, the longest duration allowed")
    return value


def calendar_units(text: str) -> tuple[Literal["day", "month"], int] | None:
    """Return a length as a unit (day or month) and a count, such as `("month", 3)` for `1q`.

    Other units, such as hours, give None.

    Raises:
        ValueError: the length exceeds 3650 days (a month counts as 31 days).
    """
    match = re.fullmatch(r"([1-9][0-9]{0,8})(d|w|mo|q|y)", text, re.ASCII)
    if match is None or text.endswith("\n"):
        return None
    kind, number = CALENDAR_UNITS[match[2]]
    number *= int(match[1])
    if number * _DAYS[kind][1] * UNITS_MS["d"] > MAX_MS:
        raise ValueError(f"'{text}' is longer than 3650d, the longest duration allowed")
    return kind, number


def min_length_ms(text: str) -> int:
    """Return a window length in milliseconds (a month counts as 28 days).

    Raises:
        ValueError: the text is not a window length, or exceeds 3650 days (a month counts as 31 days).
    """
    units = calendar_units(text)
    return parse_ms(text) if units is None else units[1] * _DAYS[units[0]][0] * UNITS_MS["d"]


def is_calendar(text: str) -> bool:
    """Return whether a length is in weeks, months, quarters or years."""
    return _has_calendar_unit(text) and not text.endswith("d")


def _has_calendar_unit(text: str) -> bool:
    return re.fullmatch(r"[0-9]+(d|w|mo|q|y)", text, re.ASCII) is not None


def format_ms(value_ms: int) -> str:
    """Return the shortest exact notation of milliseconds, such as `90s` for 90000."""
    for unit in ("d", "h", "m", "s"):
        if value_ms and value_ms % UNITS_MS[unit] == 0:
            return f"{value_ms // UNITS_MS[unit]}{unit}"
    return f"{value_ms}ms"


def _check(text: str) -> str:
    parse_ms(text)
    return text


def _check_length(text: str) -> str:
    if calendar_units(text) is None:
        try:
            parse_ms(text)
        except ValueError:
            if re.fullmatch(PATTERN, text, re.ASCII):
                raise
            raise ValueError(
                f"'{text}' is not a duration: write a whole number and a unit, such as 10s, 5m, 1h, 1d, 1w, 1mo, 1q, 1y"
            ) from None
    return text


Duration = Annotated[str, StringConstraints(max_length=MAX_LENGTH), AfterValidator(_check)]
WindowLength = Annotated[
    str,
    StringConstraints(max_length=MAX_LENGTH),
    AfterValidator(_check_length),
    WithJsonSchema({"type": "string", "maxLength": MAX_LENGTH, "pattern": LENGTH_PATTERN}),
]
"""The length of a window, or the distance between the starts of consecutive windows."""
