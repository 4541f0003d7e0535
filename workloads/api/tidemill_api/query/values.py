"""Converts texts of requests to values, values to SQL parameters, and values from Postgres to JSON."""

from __future__ import annotations

import datetime as dt
import math
import re
from collections.abc import Callable
from decimal import Decimal
from functools import partial
from typing import Any

import msgspec

from tidemill_contract.decimals import DECIMAL, base_type, scale_of, text_of
from tidemill_contract.events.event_errors import SECONDS_FROM, SECONDS_TO
from tidemill_contract.functions.partials import SQL_TYPES
from tidemill_contract.times import read_time, rfc3339

UTC = dt.UTC
EPOCH = dt.datetime(1970, 1, 1, tzinfo=UTC)
_MAX_64 = 2**63 - 1
_INTEGER = re.compile(r"([+-]?[0-9]{1,40})(\.0{1,20})?", re.ASCII)
"""Pattern of an integer, such as 2 or 2.0. Some JSON encoders write 2 as 2.0."""
_NUMBER = re.compile(r"[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]{1,4})?", re.ASCII)
_BLANK = re.compile(r"(:\d{2}(?:\.\d+)?) (\d{2}:?\d{2})$", re.ASCII)
_HINTS = {
    "integer": "write a whole number, such as 42",
    "number": "write a number, such as 1.5",
    DECIMAL: "write a number, such as 12.50",
    "boolean": "write true or false",
    "timestamp": "write an RFC 3339 time, such as 2013-01-01T05:00:00Z, a date, or epoch milliseconds",
    "string": "write text without NUL characters or lone surrogates",
}


def parse_time(text: str) -> dt.datetime:
    """Parse a time in RFC 3339, a date (midnight in UTC) or epoch milliseconds.

    A UTC offset may begin with a space instead of `+`. URL decoding turns an unescaped `+` into a space.

    Raises:
        ValueError: the text is not a time.
    """
    if (number := parse_integer(text)) is not None:
        if SECONDS_FROM <= number <= SECONDS_TO:
            raise ValueError(f"{text!r} looks like seconds; write milliseconds ({number}000), or RFC 3339")
        try:
            return EPOCH + dt.timedelta(milliseconds=number)
        except OverflowError:
            raise ValueError(f"{text!r} is outside the years 1 to 9999; {_HINTS['timestamp']}") from None
    try:
        return read_time(_BLANK.sub(r"\1+\2", text))
    except ValueError as error:
        raise ValueError(f"{_shorten(text)!r} is not a time: {error}; {_HINTS['timestamp']}") from None


def parse_integer(text: str) -> int | None:
    """Return the whole number in a text, or None if the text is not a whole number."""
    match = _INTEGER.fullmatch(text)
    return int(match[1]) if match else None


def parse_value(text: str, kind: str) -> Any:
    """Parse a text as a type of the pipeline's spec, such as `integer`.

    Raises:
        ValueError: the text is not a value of this type.
    """
    if kind == "timestamp":
        return parse_time(text)
    if kind == "integer" and (number := parse_integer(text)) is not None:
        return number
    if kind == "number" and _NUMBER.fullmatch(text) and math.isfinite(float(text)):
        return float(text)
    if scale_of(kind) is not None and _NUMBER.fullmatch(text):
        return Decimal(text)
    if kind == "boolean" and text in ("true", "false"):
        return text == "true"
    if kind == "string" and "\0" not in text and not any("\ud800" <= c <= "\udfff" for c in text):
        return text
    how = _HINTS.get(base_type(kind), "this column cannot be compared")
    raise ValueError(f"{_shorten(text)!r} is not of type {base_type(kind)}; {how}")


def _shorten(text: str) -> str:
    return text if len(text) <= 60 else text[:59] + "…"


def to_text(value: Any) -> str:
    """Return a value as text that both Postgres and `parse_value` can read."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, dt.datetime):
        return value.astimezone(UTC).isoformat()
    if isinstance(value, Decimal):
        return f"{value:f}"
    return repr(value) if isinstance(value, float) else str(value)


def cast_type(value: Any, kind: str) -> str:
    """Return the SQL type to which a value of the type `kind` is cast."""
    if kind == "integer":
        # Prefer bigint. For a numeric parameter, Postgres cannot use the index of a bigint column.
        return "bigint" if -_MAX_64 - 1 <= value <= _MAX_64 else "numeric"
    return SQL_TYPES[kind].partition(" ")[0] if kind == "string" else SQL_TYPES[kind]


def kind_converter(kind: str, *, decimals_as_numbers: bool = False) -> Callable[[Any], Any] | None:
    """Return the converter of a type's database values for JSON. If no conversion is needed, return None."""
    scale = scale_of(kind)
    if scale is not None:
        return partial(_decimal_number if decimals_as_numbers else _decimal, scale)
    return {"integer": _integer, "timestamp": _timestamp}.get(kind)


def _decimal(scale: int, value: Decimal | None) -> str | None:
    return None if value is None else text_of(Decimal(value), scale)


def _decimal_number(scale: int, value: Decimal | None) -> msgspec.Raw | None:
    return None if value is None else msgspec.Raw(text_of(Decimal(value), scale).encode())


def _integer(value: Any) -> Any:
    if isinstance(value, Decimal):
        value = int(value)
    if isinstance(value, int) and not -_MAX_64 - 1 <= value <= _MAX_64:
        return msgspec.Raw(str(value).encode())
    return value


def _timestamp(value: dt.datetime | None) -> str | None:
    return None if value is None else rfc3339(value)
