"""The types of fields for the JSON reader, and the default values of fields."""

from __future__ import annotations

import datetime as dt
from decimal import Decimal
from itertools import repeat
from operator import sub
from typing import Annotated, Any

import msgspec

from tidemill_contract.decimals import is_decimal_text
from tidemill_contract.events.decimals import DecimalFormat
from tidemill_contract.events.event_errors import (
    SECONDS_FROM,
    SECONDS_TO,
    TIME_FORMAT_PREFIX,
    time_in_seconds,
    time_out_of_range,
    wrong_time_format,
)
from tidemill_contract.events.event_times import MAX_TIMESTAMP_MS, MIN_TIMESTAMP_MS
from tidemill_contract.events.invalid_events import InvalidEvent
from tidemill_contract.events.members import as_object, members, normalize
from tidemill_contract.events.timestamps import TimeFormat
from tidemill_contract.resource.source import FieldSpec
from tidemill_contract.times import YearOutOfRange

EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
_MILLISECOND = dt.timedelta(milliseconds=1)
_DEFAULT_REMEDIES = {
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


def epoch_ms(time: dt.datetime) -> int:
    """Return the epoch milliseconds of a time, rounded down."""
    return (time - EPOCH) // _MILLISECOND


def all_epoch_ms(values: list[Any], kinds: set[type]) -> list[Any]:
    """Convert times from the JSON reader to epoch milliseconds. `kinds` is the set of the types of `values`."""
    if kinds != {dt.datetime}:
        return [value if value.__class__ is int or value is None else epoch_ms(value) for value in values]
    spans = map(sub, values, repeat(EPOCH))
    return [s.days * 86_400_000 + s.seconds * 1000 + s.microseconds // 1000 for s in spans]


def micros_of(time: dt.datetime | int | None) -> int:
    """Return the last three digits of a time's microseconds, such as 456 for 12:00:00.123456."""
    return time.microsecond % 1000 if isinstance(time, dt.datetime) else 0


def type_of(field: FieldSpec) -> Any:
    """Return the type that the JSON reader expects for the non-null values of a field."""
    time_format = TimeFormat.of(field)
    return TYPES[field.type] if time_format is None else time_format.type


def kind_of(field: FieldSpec) -> str:
    """Return the field's type for messages, such as `decimal(18,2)` or a timestamp with its format."""
    time_format, decimal = TimeFormat.of(field), DecimalFormat.of(field)
    if decimal is not None:
        return decimal.name
    return field.type if time_format is None else f"{TIME_FORMAT_PREFIX}{time_format.name}"


def read_time(name: str, time_format: TimeFormat | None, value: Any) -> tuple[int, int]:
    """Return a timestamp as epoch milliseconds and the remaining microseconds (0 to 999).

    Raises:
        InvalidEvent: the time is probably in seconds, is not in the field's format, or is outside the years 1 to 9999.
    """
    hint = None
    is_number = value.__class__ is int
    if is_number and (time_format is None or time_format.refuses_seconds) and SECONDS_FROM <= value <= SECONDS_TO:
        raise time_in_seconds(name, value)
    if time_format is not None:
        try:
            exact = time_format.micros(value)
        except YearOutOfRange:
            raise time_out_of_range(name, value, "send a time in these years") from None
        except ValueError:
            raise wrong_time_format(name, f"{TIME_FORMAT_PREFIX}{time_format.name}", value) from None
        time, micros, hint = exact // 1000, exact % 1000, time_format.hint(exact)
    else:
        time, micros = (value, 0) if is_number else (epoch_ms(value), micros_of(value))
    if not MIN_TIMESTAMP_MS <= time <= MAX_TIMESTAMP_MS:
        raise time_out_of_range(name, value, hint)
    return time, micros


def check_default(field: FieldSpec) -> None:
    """Raise ValueError (`message: remedy`) if a field's default would be invalid in an event."""
    value = default_of(field)
    if value is None or field.type != "timestamp":
        return
    try:
        read_time(field.name, TimeFormat.of(field), value)
    except InvalidEvent as error:
        raise ValueError(f"is refused in events: {error.detail.removeprefix(f'{field.name}: ')}") from None


def default_of(field: FieldSpec) -> Any:
    """Return a field's default with the Python type that the JSON reader gives. Without a default, return None.

    Raises:
        ValueError: the default does not fit the field's type.
    """
    if field.default is None:
        return None
    time_format = TimeFormat.of(field)
    try:
        text = {field.name: msgspec.json.encode(field.default)}
        document = normalize(text, {field.name: kind_of(field)}) or as_object(text)
        value = msgspec.json.decode(members(document)[field.name], type=type_of(field))
        if time_format is not None:
            time_format.micros(field.default if time_format.is_numeric and isinstance(field.default, str) else value)
        if (decimal := DecimalFormat.of(field)) is not None:
            if isinstance(field.default, str) and not is_decimal_text(field.default):
                raise ValueError
            decimal.scale_values([value])
    except (msgspec.MsgspecError, ArithmeticError, ValueError):
        remedy = _DEFAULT_REMEDIES[field.type] if time_format is None else "write the default in the field's format"
        raise ValueError(f"is not of type {kind_of(field)}: {remedy}") from None
    if isinstance(value, str) and "\0" in value:
        raise ValueError(f"contains a NUL character: {_DEFAULT_REMEDIES[field.type]}")
    return epoch_ms(value) if isinstance(value, dt.datetime) else value
