"""Read events member by member, and rewrite valid values that the typed decoder refuses.

Examples are the integer `200.0`, and a timestamp without a time of day, which means midnight UTC.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from decimal import Decimal, InvalidOperation

import msgspec

JSON_ERRORS = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
"""The errors that a JSON reader raises for invalid JSON or unexpected types."""
Members = dict[str, bytes]
"""The JSON text of each member in an event. If a name occurs twice, the last member counts."""

# Matches times with seven or more decimals of a second, which msgspec may round up.
_LONG_FRACTION = re.compile(rb"\.(?<=:..:..\.)\d{6}[5-9]")
# Matches a dot, digit or colon that is written as a JSON escape, such as `\u002e`.
_ESCAPED = re.compile(rb"\\u00(?:2[eE]|3[0-9aA])")
_MORE_THAN_MICROS = re.compile(r"(.*:\d\d:\d\d\.\d{6})\d+([^\d].*)", re.ASCII | re.DOTALL)
_DATE = re.compile(r"\d{4}-\d{2}-\d{2}", re.ASCII)
_MAX_DIGITS = 19
_TOO_LARGE = 10**20

_read = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_read_items = msgspec.json.Decoder(list[msgspec.Raw]).decode
_read_text = msgspec.json.Decoder(str).decode


def is_utf8(raw: bytes) -> bool:
    """Return whether the bytes are UTF-8."""
    try:
        raw.decode()
    except UnicodeDecodeError:
        return False
    return True


def members(raw: bytes) -> Members:
    """Return the JSON texts of the members in a JSON object, by name.

    Raises:
        msgspec.MsgspecError, UnicodeDecodeError: the bytes are not a JSON object.
        RecursionError: the JSON is nested too deeply.
    """
    return {name: bytes(value) for name, value in _read(raw).items()}


def items(raw: bytes) -> list[bytes]:
    """Return the JSON texts of the items in a JSON array.

    Raises:
        msgspec.MsgspecError, UnicodeDecodeError: the bytes are not a JSON array.
        RecursionError: the JSON is nested too deeply.
    """
    return [bytes(value) for value in _read_items(raw)]


def may_be_rounded(raw: bytes) -> bool:
    """Return whether the bytes may contain a time that the typed decoder rounds up."""
    return bool(_LONG_FRACTION.search(raw)) or (b"\\u00" in raw and bool(_ESCAPED.search(raw)))


def normalize(raw_members: Members, kinds: Mapping[str, str]) -> bytes | None:
    """Rewrite valid values that the typed decoder refuses, or return None if there are no such values."""
    changed = {}
    for name, value in raw_members.items():
        kind = kinds.get(name)
        if kind == "integer" or (kind == "timestamp" and value[:1] != b'"'):
            rewritten = _as_integer(value)
        elif kind == "timestamp":
            rewritten = _as_timestamp(value)
        else:
            continue
        if rewritten is not None:
            changed[name] = rewritten
    if not changed:
        return None
    return as_object(raw_members | changed)


def as_object(raw_members: Members) -> bytes:
    """Return the members as a JSON object."""
    return msgspec.json.encode({name: msgspec.Raw(value) for name, value in raw_members.items()})


def whole_number(text: str) -> int | None:
    """Return the exact integer of a JSON number such as `2e2`. If the text is not a whole number, return None.

    For a number of 20 or more digits, the result is 10^20 or -10^20. This limits time and memory. No such number fits
    a signed 64-bit integer.
    """
    try:
        number = Decimal(text)
    except InvalidOperation:
        return None
    if not number.is_finite():
        return None
    if not number:
        return 0
    if number.adjusted() >= _MAX_DIGITS:
        return -_TOO_LARGE if number < 0 else _TOO_LARGE
    if number.adjusted() < 0:
        return None
    value = int(number)
    return value if value == number else None


def _as_integer(value: bytes) -> bytes | None:
    if value[:1] not in b"-0123456789" or not any(mark in value for mark in (b".", b"e", b"E")):
        return None
    number = whole_number(value.decode("ascii"))
    return None if number is None else str(number).encode()


def _as_timestamp(value: bytes) -> bytes | None:
    text = _read_text(value)
    if _DATE.fullmatch(text):
        return msgspec.json.encode(f"{text}T00:00:00Z")
    match = _MORE_THAN_MICROS.fullmatch(text)
    return msgspec.json.encode(match.group(1) + match.group(2)) if match else None
