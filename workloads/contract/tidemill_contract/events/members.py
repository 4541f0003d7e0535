"""Reads events member by member, and rewrites values that the typed decoder refuses although their meaning is clear.

- An integer may be written as `200.0` or `2e2`, for example by data frame libraries.
- A time may be a date alone, which means midnight UTC.
- Fractions of seconds are truncated to microseconds. The typed decoder would round the fractions, which could move an
  event into the next window.

The typed decoder then reads the rewritten event, so that it validates every event.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from decimal import Decimal, InvalidOperation

import msgspec

BROKEN = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
"""The errors that a reader raises for bytes that are not JSON, or not JSON of the expected types."""
Members = dict[str, bytes]
"""The JSON text of each member of an event. If a name occurs twice, the last member counts."""

# Finds times with seven or more decimals of a second, which the typed decoder may round up. The pattern starts with the
# dot, because JSON has fewer dots than colons, so the search is faster.
_LONG_FRACTION = re.compile(rb"\.(?<=:..:..\.)\d{6}[5-9]")
# Finds a dot, digit or colon that is written as an escape, which the pattern above does not match.
_ESCAPED = re.compile(rb"\\u00(?:2[eE]|3[0-9aA])")
_CUT = re.compile(r"(.*:\d\d:\d\d\.\d{6})\d+([^\d].*)", re.ASCII | re.DOTALL)
_DATE = re.compile(r"\d{4}-\d{2}-\d{2}", re.ASCII)
_MOST_DIGITS = 19
_TOO_LARGE = 10**20

_read = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_read_items = msgspec.json.Decoder(list[msgspec.Raw]).decode
_text = msgspec.json.Decoder(str).decode


def is_utf8(raw: bytes) -> bool:
    """Return whether the bytes are UTF-8."""
    try:
        raw.decode()
    except UnicodeDecodeError:
        return False
    return True


def members(raw: bytes) -> Members:
    """Return the members of an event.

    Raises:
        msgspec.MsgspecError, UnicodeDecodeError, RecursionError: the bytes are not a JSON object.
    """
    return {name: bytes(value) for name, value in _read(raw).items()}


def items(raw: bytes) -> list[bytes]:
    """Return the JSON texts of the items of an array.

    Raises:
        msgspec.MsgspecError, UnicodeDecodeError, RecursionError: the bytes are not a JSON array.
    """
    return [bytes(value) for value in _read_items(raw)]


def may_be_rounded(raw: bytes) -> bool:
    """Return whether these bytes (one or more events) may contain a time that the typed decoder rounds up."""
    return bool(_LONG_FRACTION.search(raw)) or (b"\\u00" in raw and bool(_ESCAPED.search(raw)))


def mended(found: Members, kinds: Mapping[str, str]) -> bytes | None:
    """Return the event with its values rewritten for the typed decoder, or None if there is nothing to rewrite.

    Args:
        found: the event's members.
        kinds: the spec types of the fields by name.
    """
    changed = {}
    for name, value in found.items():
        kind = kinds.get(name)
        if kind == "integer" or (kind == "timestamp" and value[:1] != b'"'):
            better = _whole(value)
        elif kind == "timestamp":
            better = _moment(value)
        else:
            continue
        if better is not None:
            changed[name] = better
    if not changed:
        return None
    return as_object(found | changed)


def as_object(found: Members) -> bytes:
    """Return a JSON object with these members."""
    return msgspec.json.encode({name: msgspec.Raw(value) for name, value in found.items()})


def whole_number(text: str) -> int | None:
    """Return the exact integer of a JSON number such as `2e2`, or None if the text has a fraction or is no number.

    Any number of 10^19 or more is returned as 10^20, to limit time and memory: neither fits in 64 bits. The same holds
    for negative numbers.
    """
    try:
        number = Decimal(text)
    except InvalidOperation:
        return None
    if not number.is_finite():
        return None
    if not number:
        return 0
    if number.adjusted() >= _MOST_DIGITS:
        return -_TOO_LARGE if number < 0 else _TOO_LARGE
    if number.adjusted() < 0:
        return None
    value = int(number)
    return value if value == number else None


def _whole(value: bytes) -> bytes | None:
    if value[:1] not in b"-0123456789" or not any(mark in value for mark in (b".", b"e", b"E")):
        return None
    number = whole_number(value.decode("ascii"))
    return None if number is None else str(number).encode()


def _moment(value: bytes) -> bytes | None:
    text = _text(value)
    if _DATE.fullmatch(text):
        return msgspec.json.encode(f"{text}T00:00:00Z")
    cut = _CUT.fullmatch(text)
    return msgspec.json.encode(cut.group(1) + cut.group(2)) if cut else None
