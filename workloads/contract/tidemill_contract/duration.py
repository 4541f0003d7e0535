"""Durations as the resource writes them: `250ms`, `10s`, `5m`, `1h`, `7d`."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator, StringConstraints

UNITS_MS = {"ms": 1, "s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
PATTERN = r"^[1-9][0-9]{0,8}(ms|s|m|h|d)$|^0(ms|s|m|h|d)$"
MAX_LENGTH = 16
MAX_MS = 10 * 365 * 86_400_000


def parse_ms(text: str) -> int:
    """Milliseconds of a duration such as `5m`.

    Raises:
        ValueError: no unit, an unknown unit, a sign or fraction, or more than ten years.
    """
    if not re.fullmatch(PATTERN, text, re.ASCII) or text.endswith("\n"):
        raise ValueError(f"'{text}' is not a duration: write a whole number and a unit, such as 250ms, 10s, 5m, 1h, 7d")
    number, unit = re.fullmatch(r"(\d+)([a-z]+)", text).groups()  # type: ignore[union-attr]
    value = int(number) * UNITS_MS[unit]
    if value > MAX_MS:
        raise ValueError(f"'{text}' is longer than 3650d, the longest duration allowed")
    return value


def format_ms(value_ms: int) -> str:
    """The shortest exact spelling of a number of milliseconds, e.g. 90000 → `90s`."""
    for unit in ("d", "h", "m", "s"):
        if value_ms and value_ms % UNITS_MS[unit] == 0:
            return f"{value_ms // UNITS_MS[unit]}{unit}"
    return f"{value_ms}ms"


def _check(text: str) -> str:
    parse_ms(text)
    return text


Duration = Annotated[str, StringConstraints(max_length=MAX_LENGTH), AfterValidator(_check)]
