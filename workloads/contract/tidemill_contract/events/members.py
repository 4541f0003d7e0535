"""Events read member by member: what the typed decoder refuses is mended where only one reading is possible.

An integer may be written as `200.0` or `2e2`, as data frames write it, and a time as a date alone, which is midnight
UTC. Fractions of seconds are cut at the microsecond, where the typed decoder rounds: a time never lies in a later
window than its text says. The typed decoder reads what was mended, so it judges every event.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from decimal import Decimal, InvalidOperation

import msgspec

Members = dict[str, bytes]
"""The JSON text of each member of an event; of those that are there twice, the last."""

# The typed decoder rounds at the seventh digit. There are fewer dots than colons in JSON, so the search begins at them.
_LONG_FRACTION = re.compile(rb"\.(?<=:..:..\.)\d{6}[5-9]")
# A dot, a digit or a colon that is written as an escape may hide such a fraction.
_ESCAPED = re.compile(rb"\\u00(?:2[eE]|3[0-9aA])")
_CUT = re.compile(r"(.*:\d\d:\d\d\.\d{6})\d+([^\d].*)", re.ASCII | re.DOTALL)
_DATE = re.compile(r"\d{4}-\d{2}-\d{2}", re.ASCII)
_MOST_DIGITS = 19
_TOO_LARGE = 10**20

_read = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_read_items = msgspec.json.Decoder(list[msgspec.Raw]).decode
_text = msgspec.json.Decoder(str).decode


def members(raw: bytes) -> Members:
    """The members of an event.

    Raises:
        msgspec.MsgspecError, UnicodeDecodeError, RecursionError: it is not a JSON object.
    """
    return {name: bytes(value) for name, value in _read(raw).items()}


def items(raw: bytes) -> list[bytes]:
    """The JSON texts of the items of an array.

    Raises:
        msgspec.MsgspecError, UnicodeDecodeError, RecursionError: it is not a JSON array.
    """
    return [bytes(value) for value in _read_items(raw)]


def may_be_rounded(raw: bytes) -> bool:
    """Whether a time in an event (or in several, one after the other) may have been rounded up to a microsecond."""
    return bool(_LONG_FRACTION.search(raw)) or (b"\\u00" in raw and bool(_ESCAPED.search(raw)))


def mended(found: Members, kinds: Mapping[str, str]) -> bytes | None:
    """The event with its members written as the typed decoder takes them; None: there is nothing to mend.

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
    """The JSON object of these members."""
    return msgspec.json.encode({name: msgspec.Raw(value) for name, value in found.items()})


def whole_number(text: str) -> int | None:
    """The integer that a JSON number stands for, exactly as written; None: it has a fraction, or is no number.

    What is far beyond 64 bits is some integer beyond them.
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
