"""Functions on strings and timestamps in expressions, in plain Python. Their arguments are never null."""

from __future__ import annotations

import datetime as dt
import hashlib
import json
import math
import re
from collections.abc import Callable
from typing import Any

_EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
_UNITS_MS = {
    "MILLISECOND": 1, "SECOND": 1000, "MINUTE": 60_000, "HOUR": 3_600_000, "DAY": 86_400_000, "WEEK": 604_800_000,
}  # fmt: skip


def _split_part(text: str, delimiter: str, place: int) -> str:
    parts = text.split(delimiter)
    index = place - 1 if place > 0 else len(parts) + place
    return parts[index] if 0 <= index < len(parts) else ""


def _extract(text: str, pattern: str, group: int = 0) -> str | None:
    match = re.search(pattern, text)
    return None if match is None else match[group]


def _json_value(text: str, path: str) -> str | None:
    try:
        value = json.loads(text)
        for step in re.findall(r"\w+", path):
            value = value[int(step)] if isinstance(value, list) else value[step]
    except (ValueError, LookupError, TypeError):
        return None
    if value is None or isinstance(value, str):
        return value
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)


def _truncated(unit: str, moment: dt.datetime) -> dt.datetime:
    day = moment.replace(hour=0, minute=0, second=0, microsecond=0)
    match unit.upper():
        case "WEEK":
            return day - dt.timedelta(days=day.weekday())
        case "MONTH":
            return day.replace(day=1)
        case "QUARTER":
            return day.replace(day=1, month=(day.month - 1) // 3 * 3 + 1)
        case "YEAR":
            return day.replace(day=1, month=1)
    length = dt.timedelta(milliseconds=_UNITS_MS[unit.upper()])
    return _EPOCH + (moment - _EPOCH) // length * length


def _difference(unit: str, first: dt.datetime, last: dt.datetime) -> int:
    ms = (last - first) // dt.timedelta(milliseconds=1)
    whole = abs(ms) // _UNITS_MS[unit.upper()]
    return whole if ms >= 0 else -whole


def _to_timestamp(seconds: float) -> dt.datetime | None:
    if not -62_135_596_800 <= seconds < 253_402_300_800:
        return None
    return _EPOCH + dt.timedelta(milliseconds=math.floor(round(seconds * 1e6) / 1000))


FUNCTIONS: dict[str, tuple[Callable[..., Any], str | None]] = {
    "REGEXP_LIKE": (lambda text, pattern: re.search(pattern, text) is not None, "boolean"),
    "REGEXP_EXTRACT": (_extract, "string"),
    "SPLIT_PART": (_split_part, "string"),
    "INITCAP": (lambda text: re.sub(r"[^\W_]+", lambda word: word[0].capitalize(), text), "string"),
    "JSON_VALUE": (_json_value, "string"),
    "MD5": (lambda text: hashlib.md5(text.encode(), usedforsecurity=False).hexdigest(), "string"),
    "SHA256": (lambda text: hashlib.sha256(text.encode()).hexdigest(), "string"),
    "DATE_TRUNC": (_truncated, "timestamp"),
    "TIMESTAMPDIFF": (_difference, "integer"),
    "TO_TIMESTAMP": (_to_timestamp, "timestamp"),
}
"""For each name: the function in Python, and the type of its result."""
