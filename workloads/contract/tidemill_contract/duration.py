"""Durations in the notation of the resource: `250ms`, `10s`, `5m`, `1h`, `7d`."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator, StringConstraints

UNITS_MS = {"ms": 1, "s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
PATTERN = r"^[1-9][0-9]{0,8}(ms|s|m|h|d)$|^0(ms|s|m|h|d)$"
MAX_LENGTH = 16
MAX_MS = 10 * 365 * 86_400_000


def parse_ms(text: str) -> int:
    """Return the milliseconds of a duration such as `5m`.

    Raises:
        ValueError: the unit is missing or unknown, there is a sign or a fraction, or it is more than 3650 days.
    """
    if not re.fullmatch(PATTERN, text, re.ASCII) or text.endswith("\n"):
        raise ValueError(f"'{text}' is not a duration: write a whole number and a unit, such as 250ms, 10s, 5m, 1h, 7d")
    number, unit = re.fullmatch(r"(\d+)([a-z]+)", text).groups()  # type: ignore[union-attr]
    value = int(number) * UNITS_MS[unit]
    if value > MAX_MS:
        raise ValueError(f"'{text}' is longer than 3650d, the longest duration allowed")
    return value


def format_ms(value_ms: int) -> str:
    """Return the shortest exact notation of a number of milliseconds, e.g. `90s` for 90000."""
    for unit in ("d", "h", "m", "s"):
        if value_ms and value_ms % UNITS_MS[unit] == 0:
            return f"{value_ms // UNITS_MS[unit]}{unit}"
    return f"{value_ms}ms"


def _check(text: str) -> str:
    parse_ms(text)
    return text


Duration = Annotated[str, StringConstraints(max_length=MAX_LENGTH), AfterValidator(_check)]
