"""Write and read times in RFC 3339. Times are written in UTC, with milliseconds only if the milliseconds are not 0."""

from __future__ import annotations

import datetime as dt
import re

_EPOCH, _MILLISECOND = dt.datetime(1970, 1, 1, tzinfo=dt.UTC), dt.timedelta(milliseconds=1)
_MICROSECOND_DIGITS = 6
_LOCAL = re.compile(r"(\d{4}-\d{2}-\d{2})(?:[Tt ](\d{2}:\d{2}:\d{2})(?:\.(\d+))?)?", re.ASCII)
_TIME = re.compile(
    r"(\d{4}-\d{2}-\d{2})(?:[Tt ](\d{2}:\d{2}:\d{2})(?:\.(\d+))?(?:[Zz]|([+-]\d{2}):?(\d{2})))?", re.ASCII
)


class YearOutOfRange(ValueError):
    """The error for a time outside the years 1 to 9999."""

    def __init__(self) -> None:
        super().__init__("the time is outside the years 1 to 9999")


def rfc3339(moment: dt.datetime) -> str:
    """Return a time as `2013-01-01T05:00:00Z`, or with milliseconds as `2013-01-01T05:00:00.250Z`."""
    moment = moment.astimezone(dt.UTC)
    text = moment.isoformat(timespec="milliseconds" if moment.microsecond else "seconds")
    return text.replace("+00:00", "Z")


def rfc3339_ms(epoch_ms: int) -> str:
    """Return a time (epoch milliseconds) as text, in the same format as `rfc3339`."""
    return rfc3339(_EPOCH + dt.timedelta(milliseconds=epoch_ms))


def read_time(text: str) -> dt.datetime:
    """Return the time (UTC) of an RFC 3339 text with a zone. For a date, return midnight UTC.

    Raises:
        YearOutOfRange: the time is outside the years 1 to 9999.
        ValueError: the text is neither RFC 3339 with a zone nor a date.
    """
    match = _TIME.fullmatch(text)
    if match is None:
        raise ValueError("the text is neither RFC 3339 with a zone nor a date")
    day, time, fraction, hours, minutes = match.groups()
    digits = (fraction or "")[:_MICROSECOND_DIGITS].ljust(_MICROSECOND_DIGITS, "0")
    try:
        moment = dt.datetime.fromisoformat(f"{day}T{time or '00:00:00'}.{digits}{hours or '+00'}:{minutes or '00'}")
        return moment.astimezone(dt.UTC)
    except OverflowError:
        raise YearOutOfRange from None


def read_local(text: str, zone: dt.tzinfo) -> dt.datetime:
    """Return the time (UTC) of a text. `read_time` reads a text with a zone. A text without a zone is a time in `zone`.

    A local time that occurs twice means the first occurrence. A local time that a clock change skips is read with the
    offset before the change.

    Raises:
        YearOutOfRange: the time is outside the years 1 to 9999.
        ValueError: the text is not a time.
    """
    match = _LOCAL.fullmatch(text)
    if match is None:
        return read_time(text)
    day, time, fraction = match.groups()
    digits = (fraction or "")[:_MICROSECOND_DIGITS].ljust(_MICROSECOND_DIGITS, "0")
    try:
        moment = dt.datetime.fromisoformat(f"{day}T{time or '00:00:00'}.{digits}")
        return moment.replace(tzinfo=zone).astimezone(dt.UTC)
    except OverflowError:
        raise YearOutOfRange from None


def read_start(text: str) -> dt.datetime:
    """Read a time with `read_time`. If `read_time` fails, read the text as ISO 8601 with a zone.

    Raises:
        ValueError: the text is not a time, or has no zone.
    """
    try:
        return read_time(text)
    except ValueError:
        moment = dt.datetime.fromisoformat(text)
    if moment.tzinfo is None:
        raise ValueError("it has no zone")
    return moment


def epoch_ms(moment: dt.datetime) -> int:
    """Return the epoch milliseconds of a time, rounded down."""
    return (moment - _EPOCH) // _MILLISECOND
