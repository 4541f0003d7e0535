"""Write the details of dead letters: the value received, the value expected, and the remedy."""

from __future__ import annotations

import datetime as dt
import json
import re
from collections.abc import Container, Mapping, Sequence
from typing import Any

import msgspec

from tidemill_contract.decimals import DECIMAL
from tidemill_contract.events.invalid_events import InvalidEvent, Reason
from tidemill_contract.events.members import Members, is_utf8, members
from tidemill_contract.functions.base import STRINGS
from tidemill_contract.resource.paths import Steps, show_path

SECONDS_FROM, SECONDS_TO = 631_152_000, 4_102_444_800
"""The years 1990 to 2100 in epoch seconds. A timestamp in this range is refused, because it probably counts
seconds, not milliseconds."""
TOMBSTONE_MESSAGE = (
    "the record is a tombstone (no value; deletes a key), but an event needs a value; keep tombstones out of this"
    " topic (Debezium: tombstones.on.delete=false)"
)

TIME_FORMAT_PREFIX = "timestamp as "
"""The words before a timestamp format in messages, for example in "timestamp as %d.%m.%Y"."""
_EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
_UNITS = (("seconds", 1), ("microseconds", 10**6), ("nanoseconds", 10**9))
_MAX_NUMBER = 10**21
"""A number above this limit means a time after 2100 in every unit. The division of a much larger integer would raise
OverflowError."""
_MAX_SHOWN = 60
_PATH_IN_ERROR = re.compile(r" - at `\$\.([^`.\[]+)")
_FIELD_IN_ERROR = re.compile(r"field `([^`]+)`")
_TIME_REMEDY = "send RFC 3339, such as 2026-11-28T10:00:00Z, or epoch milliseconds"
_WELL_FORMED = re.compile(r"[+-]?\d{4,}-\d{2}-\d{2}([Tt ]\d{2}:\d{2}:\d{2}(\.\d+)?([Zz]|[+-]\d{2}:?\d{2}))?", re.ASCII)
_TIME_REMEDIES = (
    (re.compile(r".*:60(\.\d+)?([Zz]|[+-].*)", re.ASCII), "epoch time has no leap seconds: send :59"),
    (re.compile(r".*[Tt ]24:.*", re.ASCII), "send 00:00:00 of the next day"),
    (re.compile(r"[+-]?\d+(\.\d+)?", re.ASCII), "send epoch milliseconds as a number, without quotes"),
    (re.compile(r".*\d:\d\d:\d\d(\.\d*)?", re.ASCII), "add the zone: Z, or an offset such as +01:00"),
    (re.compile(r".*[+-]\d\d", re.ASCII), "write the offset with minutes, such as +01:00"),
)
_FIRST_BYTES = (
    (b"\x1f\x8b", "is compressed with gzip", "let Kafka's client compress (compression.type), or do not compress"),
    (b"\x28\xb5\x2f\xfd", "is compressed with zstd", "let Kafka's client compress (compression.type)"),
    (b"\x04\x22\x4d\x18", "is compressed with LZ4", "let Kafka's client compress (compression.type)"),
    (b"Obj\x01", "is an Avro file", "send one JSON object per record"),
    (b"\xef\xbb\xbf", "begins with a byte order mark", "write UTF-8 without a byte order mark"),
    (b"\xff\xfe", "is UTF-16", "write UTF-8"),
    (b"\xfe\xff", "is UTF-16", "write UTF-8"),
)
_NOT_A_NUMBER = re.compile(rb"[:\[,]\s*-?(?:NaN|Infinity|inf|nan)\b")
_HALF_PAIR = re.compile(rb"(?<!\\)\\u[dD][89abAB][0-9a-fA-F]{2}(?!\\u[dD][c-fC-F][0-9a-fA-F]{2})")
_CONTROL = re.compile(rb"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")


def decoder_failure(error: Exception) -> InvalidEvent:
    """Return an InvalidEvent for an unexpected error in a decoder. A MemoryError is raised again."""
    if isinstance(error, MemoryError):
        raise error
    detail = f"the event cannot be read, because of a fault in Tidemill ({type(error).__name__}: {str(error)[:120]})"
    return InvalidEvent(Reason.UNREADABLE, None, f"{detail}; please report it with the event")


def not_json(raw: bytes, error: Exception) -> InvalidEvent:
    """Return an InvalidEvent for bytes that are not JSON, with the probable format as the detail."""
    if not raw:
        return InvalidEvent(Reason.NOT_JSON, None, "the record is empty; send a JSON object")
    if match := _HALF_PAIR.search(raw):
        detail = f"contains half a surrogate pair ({match.group().decode()}); send both halves, or the character itself"
        return InvalidEvent(Reason.NOT_JSON, None, detail)
    return InvalidEvent(Reason.NOT_JSON, None, f"{_probable_format(raw)} ({error})")


def _probable_format(raw: bytes) -> str:
    if raw[0] == 0 and len(raw) > 5:
        number = int.from_bytes(raw[1:5])
        what = "JSON" if raw[5:].lstrip()[:1] == b"{" else "Avro or Protobuf"
        return (
            f"begins with a zero byte, as records of a schema registry do (schema {number}, then {what}); send plain"
            " JSON: use a serializer without a registry (Kafka Connect: JsonConverter)"
        )
    for start, what, remedy in _FIRST_BYTES:
        if raw.startswith(start):
            return f"{what}; {remedy}"
    if _NOT_A_NUMBER.search(raw):
        return "JSON has no NaN and no Infinity; send null"
    if _CONTROL.search(raw[:256]) or not is_utf8(raw):
        return "is binary (such as Avro, Protobuf or MessagePack) or is not UTF-8; send JSON in UTF-8"
    return "is not JSON; send one JSON object per record"


def decoder_refusal(
    raw: bytes, error: msgspec.ValidationError, kinds: Mapping[str, str], *, envelope: str | None = None
) -> InvalidEvent:
    """Return an InvalidEvent for an event that the typed decoder refuses.

    If `envelope` (the text from `envelope_hint`) is None, the function calls `envelope_hint`.
    """
    text = str(error)
    path_match, field_match = _PATH_IN_ERROR.search(text), _FIELD_IN_ERROR.search(text)
    if path_match is None and field_match is None:
        return not_an_object(raw, text)
    try:
        raw_members = members(raw)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as json_error:
        return not_json(raw, json_error)  # the decoder reported a wrong value, and did not reach the invalid JSON
    envelope = envelope_hint(raw_members, kinds) if envelope is None else envelope
    hint = f"; {envelope}" if envelope else ""
    if field_match is not None:
        name = field_match.group(1)
        if "missing required field" in text:
            return InvalidEvent(Reason.MISSING_FIELD, name, f"{name} is missing; send it{hint}")
        declared = ", ".join(list(kinds)[:12])
        return InvalidEvent(
            Reason.UNKNOWN_FIELD, name, f"{_shorten(name)} is not declared; fields are {declared}{hint}"
        )
    assert path_match is not None  # noqa: S101 - for the type checker
    name = path_match.group(1)
    reason, detail = _wrong_type(name, raw_members.get(name, b""), kinds.get(name, ""), text)
    return InvalidEvent(reason, name, f"{detail}{hint}")


def wrong_path(name: str, steps: Steps, value: bytes, *, array: bool) -> InvalidEvent:
    """Return an InvalidEvent for a field whose path leads through a value of the wrong type.

    The expected type is an array if `array` is true, else an object.
    """
    expected, got = "array" if array else "object", _JSON_TYPES.get(value[:1], "number")
    received = f"{got} {show_bytes(value)}" if got not in ("object", "array") else got
    detail = f"{_shorten(show_path(steps))}: expected {expected}, got {received}; the path of {name} leads through it"
    return InvalidEvent(Reason.MISTYPED, name, f"{detail}: correct the path, or the event")


def unknown_member(steps: Steps, declared: Sequence[Steps]) -> InvalidEvent:
    """Return an InvalidEvent for an unknown member, with the declared paths in the detail."""
    listed = ", ".join(show_path(each) for each in declared[:12])
    name = show_path(steps)
    detail = f"{_shorten(name)} is not declared; fields are read from {listed}"
    return InvalidEvent(Reason.UNKNOWN_FIELD, name, detail)


def with_path(error: InvalidEvent, steps: Steps | None) -> InvalidEvent:
    """Add the field's path to an InvalidEvent's detail, unless the path is only the field's name."""
    if steps is None or steps == (error.field,):
        return error
    return InvalidEvent(error.reason, error.field, error.detail + _place_note(_shorten(show_path(steps))))


def with_place(error: InvalidEvent, steps: Steps, place: str) -> InvalidEvent:
    """In an InvalidEvent's detail, replace the field's path (`steps`) with a text, such as "the envelope's op"."""
    detail = error.detail.removesuffix(_place_note(_shorten(show_path(steps))))
    return InvalidEvent(error.reason, error.field, detail + _place_note(place))


def _place_note(place: str) -> str:
    return f"; the field is read from {place}"


def envelope_hint(raw_members: Members, kinds: Container[str]) -> str | None:
    """Return an explanation if the event is an unexpected envelope of Kafka Connect or Debezium, else None."""
    if {"schema", "payload"} <= raw_members.keys() and "payload" not in kinds:
        return (
            "this is a Kafka Connect envelope (schema, payload): set source.format.envelope to connect, or to debezium"
            " for a connector of Debezium; or set value.converter.schemas.enable=false in the connector"
        )
    if "op" in raw_members and {"before", "after"} & raw_members.keys() and "after" not in kinds:
        return (
            "this is a Debezium change event (before, after, op): set source.format.envelope: debezium, or unwrap it"
            " with the transform ExtractNewRecordState"
        )
    return None


def unit_hint(value: int | float) -> str | None:
    """Return a remedy if a timestamp is probably not in milliseconds, else None.

    A unit is probable if the timestamp in this unit is between 1990 and 2100.
    """
    if not -_MAX_NUMBER < value < _MAX_NUMBER:
        return None
    for unit, scale in _UNITS:
        seconds = value / scale
        if SECONDS_FROM <= seconds <= SECONDS_TO:
            day = _day(seconds * 1000)
            return f"in {unit}, the value means {day}: send milliseconds, or RFC 3339"
    return None


def time_in_seconds(name: str | None, value: int) -> InvalidEvent:
    """Return an InvalidEvent for a time in seconds.

    `name` is the field, or None if the time is the record's timestamp.
    """
    detail = f"{name or 'record time'}: {value} means {_day(value)} in milliseconds; {unit_hint(value)}"
    return InvalidEvent(Reason.OUT_OF_RANGE, name, detail)


def wrong_type(name: str, value: bytes, kind: str) -> InvalidEvent:
    """Return an InvalidEvent for a JSON value whose type differs from the type of the field `name`."""
    reason, detail = _wrong_type(name, value, kind, "")
    return InvalidEvent(reason, name, detail)


def wrong_time_format(name: str, kind: str, value: Any) -> InvalidEvent:
    """Return an InvalidEvent for a timestamp that does not match the field's format."""
    received = f"string {json.dumps(value)}" if isinstance(value, str) else f"number {value}"
    detail = (
        f"{name}: expected {kind}, got {_shorten(received)}; send values in this format, or correct the field's format"
    )
    return InvalidEvent(Reason.MISTYPED, name, detail)


def time_out_of_range(name: str, value: Any, hint: str | None = None) -> InvalidEvent:
    """Return an InvalidEvent for a timestamp outside the years 1 to 9999.

    `hint` is the remedy, or None to derive a remedy from the value.
    """
    if isinstance(value, dt.datetime):
        detail = f"{name}: {value.isoformat()} is outside the years 1 to 9999 in UTC"
        return InvalidEvent(Reason.OUT_OF_RANGE, name, f"{detail}; send a time in these years")
    received = show_bytes(str(value).encode()) + (" ms" if hint is None else "")
    hint = hint or unit_hint(value) or "send a time in these years"
    return InvalidEvent(Reason.OUT_OF_RANGE, name, f"{name}: {received} is outside the years 1 to 9999; {hint}")


def _day(milliseconds: float) -> str:
    return (_EPOCH + dt.timedelta(milliseconds=milliseconds)).date().isoformat()


def not_an_object(raw: bytes, text: str = "") -> InvalidEvent:
    """Return an InvalidEvent for JSON that is not an object. If `raw` is empty, the detail is `text`."""
    got = raw.lstrip()
    detail = f"expected an object, got {show_bytes(got)}" if got else text
    if got[:1] == b"[":
        detail = "expected an object, got an array; send each event in a separate record"
    elif got[:1] == b'"' and got[1:].lstrip()[:1] == b"{":
        detail = "expected an object, got JSON in a string: the event was encoded twice; encode the event once"
    return InvalidEvent(Reason.NOT_AN_OBJECT, None, detail)


def _wrong_type(name: str, value: bytes, kind: str, text: str) -> tuple[Reason, str]:
    got = _JSON_TYPES.get(value[:1], "number")
    if kind == STRINGS and got != "null":
        detail = f"{name}: expected an array of strings, got {got} {show_bytes(value)}"
        return Reason.MISTYPED, f"{detail}; send an array of strings, or declare the field with the type of its values"
    mismatch = f"{name}: expected {kind}, got {got}"
    if got == "null":
        return Reason.MISSING_FIELD, f"{name} is null, but required; send a value"
    if got in ("object", "array"):
        return Reason.MISTYPED, f"{mismatch}; send one value"
    mismatch = f"{mismatch} {show_bytes(value)}"
    if got == "number" and kind in ("integer", "number") and ("out of range" in text or "=" in text):
        wide = "64 bits" if kind == "integer" else "a 64-bit float, at most 1.7e308"
        return Reason.OUT_OF_RANGE, f"{name}: {show_bytes(value)} does not fit {wide}; send a smaller number"
    if kind.startswith(DECIMAL):
        # The JSON reader refuses a number only if its exponent is too large.
        reason = Reason.OUT_OF_RANGE if got == "number" else Reason.MISTYPED
        return reason, f"{mismatch}; {_decimal_remedy(value, got)}"
    if kind.startswith(TIME_FORMAT_PREFIX):
        return Reason.MISTYPED, f"{mismatch}; send values in this format, or correct the field's format"
    if kind == "timestamp":
        return _wrong_time(mismatch, value, got)
    return Reason.MISTYPED, f"{mismatch}; {_remedy(value, kind, got)}"


def _wrong_time(mismatch: str, value: bytes, got: str) -> tuple[Reason, str]:
    if got == "number":
        hint = unit_hint(float(value))
        return Reason.MISTYPED, f"{mismatch}; {hint or 'send whole milliseconds, or RFC 3339'}"
    if got != "string":
        return Reason.MISTYPED, f"{mismatch}; {_TIME_REMEDY}"
    text = _unquote(value)
    # Long texts are not matched, because the patterns take quadratic time for some texts.
    remedies = _TIME_REMEDIES if len(text) <= _MAX_SHOWN else ()
    remedy = next((remedy for pattern, remedy in remedies if pattern.fullmatch(text)), _TIME_REMEDY)
    if _WELL_FORMED.fullmatch(text):
        return Reason.OUT_OF_RANGE, f"{mismatch}, which is not a valid time in the years 1 to 9999; {remedy}"
    return Reason.MISTYPED, f"{mismatch}; {remedy}"


def _decimal_remedy(value: bytes, got: str) -> str:
    if got == "number":
        return "send a smaller number"
    if got == "string" and re.fullmatch(r"[+-]?\d+,\d+", _unquote(value), re.ASCII):
        return "write a decimal point: 12.50"
    return "send a number such as 12.50, with or without quotes"


def _remedy(value: bytes, kind: str, got: str) -> str:
    if kind == "string":
        return f"send the value in quotes, or declare the field as {got}"
    text = _unquote(value) if got == "string" else ""
    if kind == "boolean":
        return "send the value without quotes" if text in ("true", "false") else "send true or false"
    if got == "string":
        if text.startswith("+"):
            return "send the value without the plus sign"
        if re.fullmatch(r"[+-]?\d+,\d+", text, re.ASCII):
            return "send a number with a decimal point and without quotes, such as 12.5"
        if re.fullmatch(r"[+-]?\d+(\.\d+)?([eE][+-]?\d+)?", text, re.ASCII):
            return "send the value without quotes"
        return f"send {'a whole number' if kind == 'integer' else 'a number'}, or declare the field as string"
    if kind == "integer" and got == "number":
        return "send a whole number, or declare the field as number"
    return "send a number"


def show_bytes(value: bytes) -> str:
    """Return the text of a JSON value, shortened if it is long."""
    text = value[: 4 * _MAX_SHOWN].decode("utf-8", "replace")
    return _shorten(text)


def _shorten(text: str) -> str:
    return text if len(text) <= _MAX_SHOWN else f"{text[: _MAX_SHOWN - 1]}…"


def _unquote(value: bytes) -> str:
    try:
        return msgspec.json.decode(value, type=str)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return ""


_JSON_TYPES = {
    b"": "nothing", b'"': "string", b"{": "object", b"[": "array", b"t": "boolean", b"f": "boolean", b"n": "null",
}  # fmt: skip
