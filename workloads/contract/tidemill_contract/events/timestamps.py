"""Read timestamps with a format or a zone, and convert them to microseconds since 1970.

Fractions are truncated, because rounding could move a time into the next window.
"""

from __future__ import annotations

import datetime as dt
import decimal
import re
import zoneinfo
from collections.abc import Sequence
from functools import lru_cache
from types import NoneType
from typing import Any

import msgspec

from tidemill_contract.resource.source import FieldSpec
from tidemill_contract.times import YearOutOfRange, read_local

RFC3339 = "rfc3339"
UNITS = {"s": 6, "ms": 3, "us": 0, "ns": -3}
"""For each unit, the exponent `n`: one unit is 10^n microseconds."""
_EPOCH, _MICROSECOND = dt.datetime(1970, 1, 1, tzinfo=dt.UTC), dt.timedelta(microseconds=1)
_MAX_CACHED_TEXTS, _MAX_CACHED_LENGTH = 16_384, 64
"""The maximum number of cached texts, and the maximum length of a cached text."""
_MAX_DIGITS, _BEYOND = 25, 10**40
"""In every unit, a number with more digits than `_MAX_DIGITS` is outside the years 1 to 9999. `_BEYOND` replaces the
number, to limit the memory."""
_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?")
# Matches JSON strings of blanks, underscores, escapes and digits of any script. Python may parse them as numbers.
_MAYBE_NUMBERS = re.compile(rb'"(?:[\x00- +\-._0-9eE\x80-\xff]|\\u[0-9a-fA-F]{4}|\\[bfnrt])+"')
_FLOOR_CONTEXT = decimal.Context(prec=60, rounding=decimal.ROUND_FLOOR, Emin=-(10**6), Emax=10**6)
_UNIT_NAMES = {"s": "seconds", "ms": "milliseconds", "us": "microseconds", "ns": "nanoseconds"}
_SAMPLE_TIME = dt.datetime(2000, 11, 22, 13, 14, 15, tzinfo=dt.UTC)
_ZONE = re.compile(r"[A-Za-z][A-Za-z0-9_+\-]*(/[A-Za-z0-9_+\-]+)*", re.ASCII)


def check_format(text: str) -> None:
    """Raise ValueError (`message: remedy`) unless the text is a timestamp format."""
    if text in UNITS or text == RFC3339:
        return
    if "%" not in text:
        raise ValueError(
            "is not a timestamp format: write rfc3339, s, ms, us, ns or a pattern such as '%d.%m.%Y %H:%M'"
        )
    try:
        parsed = dt.datetime.strptime(_SAMPLE_TIME.strftime(text), text)
    except (ValueError, re.error):
        remedy = "write directives of Python's strptime, such as '%d.%m.%Y %H:%M:%S'"
        raise ValueError(f"is not a timestamp pattern: {remedy}") from None
    if parsed.date() != _SAMPLE_TIME.date():
        raise ValueError("has no complete date: add year, month and day, such as %Y-%m-%d")


def check_zone(name: str) -> None:
    """Raise ValueError (`message: remedy`) unless the name is a time zone."""
    try:
        if _ZONE.fullmatch(name) is None:
            raise ValueError
        zoneinfo.ZoneInfo(name)
    except (ValueError, OSError, zoneinfo.ZoneInfoNotFoundError):
        raise ValueError("is not a time zone: write a name, such as Europe/Berlin or UTC") from None


class TimeFormat:
    """Reads the values of one timestamp field.

    Attributes:
        type: the type that the JSON reader accepts.
        name: the format and the zone, for messages.
        is_numeric: whether the values are numbers in a unit, such as seconds since 1970.
        refuses_seconds: whether to refuse numbers that are probably seconds.
    """

    def __init__(self, text: str, zone: str | None) -> None:
        self._unit = UNITS.get(text)
        self._pattern = text if "%" in text else None
        self._zone: dt.tzinfo = zoneinfo.ZoneInfo(zone) if zone else dt.UTC
        self._read_cached = lru_cache(maxsize=_MAX_CACHED_TEXTS)(self._micros_of_text)
        self.is_numeric = self._unit is not None
        self.refuses_seconds = text == RFC3339
        self.name = text if zone is None else f"{text} in {zone}"
        # Read numbers with a decimal point as Decimal, because floats are inexact.
        self.type: Any = int | str if self._unit is None else int | decimal.Decimal

    @classmethod
    def of(cls, field: FieldSpec) -> TimeFormat | None:
        """Return the format of a timestamp field. If the JSON reader can read the values by itself, return None."""
        if field.type != "timestamp" or (field.format in (None, RFC3339) and field.zone is None):
            return None
        return cls(field.format or RFC3339, field.zone)

    def micros(self, value: Any) -> int:
        """Convert a value from the JSON reader to microseconds since 1970, or raise ValueError."""
        if self._unit is not None:
            return _to_micros(value, self._unit)
        if value.__class__ is int:
            return int(value) * 1000 if self._pattern is None else self._read_text(str(value))
        return self._read_text(value)

    def all_micros(self, values: Sequence[Any]) -> list[int | None]:
        """Convert many values to microseconds since 1970, or raise ValueError for an invalid value."""
        kinds = set(map(type, values))
        if self._unit is not None and kinds == {int}:
            factor, divisor = 10 ** max(self._unit, 0), 10 ** max(-self._unit, 0)
            return [value * factor // divisor for value in values]
        if self._unit is None and kinds == {str}:
            short = max(map(len, values)) <= _MAX_CACHED_LENGTH
            return list(map(self._read_cached if short else self._read_text, values))
        if NoneType not in kinds:
            return list(map(self.micros, values))
        return [None if value is None else self.micros(value) for value in values]

    def _read_text(self, text: str) -> int:
        return self._read_cached(text) if len(text) <= _MAX_CACHED_LENGTH else self._micros_of_text(text)

    def _micros_of_text(self, text: str) -> int:
        if self._pattern is None:
            time = read_local(text, self._zone)
        else:
            time = dt.datetime.strptime(text, self._pattern)
            time = time if time.tzinfo is not None else time.replace(tzinfo=self._zone)
        try:
            return (time - _EPOCH) // _MICROSECOND
        except OverflowError:
            raise YearOutOfRange from None

    def hint(self, micros: int) -> str:
        """Return the remedy for a time outside the years 1 to 9999."""
        # Exclude integers beyond `_BEYOND`, because the division of a very large integer raises OverflowError.
        for name, digits in UNITS.items() if -_BEYOND < micros < _BEYOND else ():
            seconds = micros / 10 ** (self._unit or 0) * 10**digits / 10**6
            if self._unit is not None and digits != self._unit and 631_152_000 <= seconds <= 4_102_444_800:
                day = (_EPOCH + dt.timedelta(seconds=seconds)).date().isoformat()
                return f"in {_UNIT_NAMES[name]}, the value means {day}: set the field's format to {name}"
        return "send a time in these years"


def is_number(text: str) -> bool:
    """Return whether a text is a number as JSON writes it."""
    return _NUMBER.fullmatch(text) is not None


def may_be_lenient(raw: bytes) -> bool:
    """Return True for bytes with a text such as `1_000` or `007`. Such texts are numbers in Python, but not in JSON."""
    for match in _MAYBE_NUMBERS.finditer(raw):
        try:
            text = msgspec.json.decode(match.group(), type=str)
            if not is_number(text) and decimal.Decimal(text).is_finite():
                return True
        except (msgspec.MsgspecError, UnicodeDecodeError, decimal.InvalidOperation):
            continue
    return False


def _to_micros(value: int | decimal.Decimal | str, digits: int) -> int:
    if isinstance(value, int):
        value = max(-_BEYOND, min(value, _BEYOND))
        return value * int(10**digits) if digits >= 0 else value // int(10**-digits)
    if isinstance(value, str) and not is_number(value):
        raise ValueError("the value is not a number")
    try:
        number = decimal.Decimal(value)
    except decimal.InvalidOperation:
        raise ValueError("the value is not a number") from None
    if not number.is_finite():
        raise ValueError("the value is not a number")
    if number and number.adjusted() > _MAX_DIGITS:
        return -_BEYOND if number < 0 else _BEYOND
    return int(_FLOOR_CONTEXT.to_integral_value(_FLOOR_CONTEXT.scaleb(number, digits)))
