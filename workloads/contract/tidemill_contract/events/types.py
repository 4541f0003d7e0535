"""The types of fields for the JSON reader, and the default values of fields."""

from __future__ import annotations

import datetime as dt
from decimal import Decimal
from itertools import repeat
from operator import sub
from typing import Annotated, Any

import msgspec

from tidemill_contract.decimals import is_plain
from tidemill_contract.events.decimals import DecimalFormat
from tidemill_contract.events.details import (
    AS_WRITTEN,
    SECONDS_FROM,
    SECONDS_TO,
    beyond_years,
    counts_seconds,
    miswritten,
)
from tidemill_contract.events.event_times import MAX_TIMESTAMP_MS, MIN_TIMESTAMP_MS
from tidemill_contract.events.members import as_object, members, mended
from tidemill_contract.events.timestamps import TimeFormat
from tidemill_contract.events.verdicts import InvalidEvent
from tidemill_contract.resource.source import FieldSpec
from tidemill_contract.times import BeyondYears

EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
_MILLISECOND = dt.timedelta(milliseconds=1)
_DEFAULTS = {
    "string": "write a text without NUL characters, in quotes",
    "integer": "write a whole number of 64 bits",
    "number": "write a number",
    "boolean": "write true or false",
    "decimal": "write a number with as many digits as precision and scale allow",
    "strings": "remove the default, because an absent array counts as empty",
    "timestamp": "write RFC 3339 in quotes, such as '2026-11-28T10:00:00Z', or epoch milliseconds",
}

TYPES: dict[str, Any] = {
    "string": str,
    "integer": Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)],
    "number": float,
    "boolean": bool,
    "decimal": Decimal,
    "strings": list[str | None],
    "timestamp": int | Annotated[dt.datetime, msgspec.Meta(tz=True)],
}


def epoch_ms(moment: dt.datetime) -> int:
    """Return the epoch milliseconds of a time, rounded down."""
    return (moment - EPOCH) // _MILLISECOND


def all_epoch_ms(values: list[Any], kinds: set[type]) -> list[Any]:
    """Convert times from the JSON reader to epoch milliseconds. `kinds` is the set of the types of `values`."""
    if kinds != {dt.datetime}:
        return [value if value.__class__ is int or value is None else epoch_ms(value) for value in values]
    spans = map(sub, values, repeat(EPOCH))
    return [s.days * 86_400_000 + s.seconds * 1000 + s.microseconds // 1000 for s in spans]


def micros_of(moment: dt.datetime | int | None) -> int:
    """Return the last three digits of a time's microseconds, such as 456 for 12:00:00.123456."""
    return moment.microsecond % 1000 if isinstance(moment, dt.datetime) else 0


def type_of(field: FieldSpec) -> Any:
    """Return the type that the JSON reader expects for the non-null values of a field."""
    written = TimeFormat.of(field)
    return TYPES[field.type] if written is None else written.type


def kind_of(field: FieldSpec) -> str:
    """Return the field's type for messages, such as `decimal(18,2)` or a timestamp with its format."""
    written, decimal = TimeFormat.of(field), DecimalFormat.of(field)
    if decimal is not None:
        return decimal.name
    return field.type if written is None else f"{AS_WRITTEN}{written.name}"


def read_time(name: str, written: TimeFormat | None, value: Any) -> tuple[int, int]:
    """Return a timestamp as epoch milliseconds and the remaining microseconds (0 to 999).

    Raises:
        InvalidEvent: the time is probably in seconds, is not in the field's format, or is outside the years 1 to 9999.
    """
    hint = None
    is_number = value.__class__ is int
    if is_number and (written is None or written.guesses) and SECONDS_FROM <= value <= SECONDS_TO:
        raise counts_seconds(name, value)
    if written is not None:
        try:
            exact = written.micros(value)
        except BeyondYears:
            raise beyond_years(name, value, "send a time in these years") from None
        except ValueError:
            raise miswritten(name, f"{AS_WRITTEN}{written.name}", value) from None
        time, micros, hint = exact // 1000, exact % 1000, written.hint(exact)
    else:
        time, micros = (value, 0) if is_number else (epoch_ms(value), micros_of(value))
    if not MIN_TIMESTAMP_MS <= time <= MAX_TIMESTAMP_MS:
        raise beyond_years(name, value, hint)
    return time, micros


def check_default(field: FieldSpec) -> None:
    """Raise ValueError (`message: remedy`) if a field's default would be invalid in an event."""
    value = default_of(field)
    if value is None or field.type != "timestamp":
        return
    try:
        read_time(field.name, TimeFormat.of(field), value)
    except InvalidEvent as verdict:
        raise ValueError(f"is refused in events: {verdict.detail.removeprefix(f'{field.name}: ')}") from None


def default_of(field: FieldSpec) -> Any:
    """Return a field's default with the Python type that the JSON reader gives. Without a default, return None.

    Raises:
        ValueError: the default does not fit the field's type.
    """
    if field.default is None:
        return None
    written = TimeFormat.of(field)
    try:
        text = {field.name: msgspec.json.encode(field.default)}
        whole = mended(text, {field.name: kind_of(field)}) or as_object(text)
        value = msgspec.json.decode(members(whole)[field.name], type=type_of(field))
        if written is not None:
            written.micros(field.default if written.counts and isinstance(field.default, str) else value)
        if (decimal := DecimalFormat.of(field)) is not None:
            if isinstance(field.default, str) and not is_plain(field.default):
                raise ValueError
            decimal.all_scaled([value])
    except (msgspec.MsgspecError, ArithmeticError, ValueError):
        remedy = _DEFAULTS[field.type] if written is None else "write the default in the field's format"
        raise ValueError(f"is not of type {kind_of(field)}: {remedy}") from None
    if isinstance(value, str) and "\0" in value:
        raise ValueError(f"contains a NUL character: {_DEFAULTS[field.type]}")
    return epoch_ms(value) if isinstance(value, dt.datetime) else value
