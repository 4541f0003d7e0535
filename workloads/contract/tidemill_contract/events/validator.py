"""Read and validate events one by one, and find out why an event is invalid."""

from __future__ import annotations

import datetime as dt
from decimal import Decimal
from typing import Any

import msgspec

from tidemill_contract.decimals import is_decimal_text
from tidemill_contract.events.event_errors import (
    decoder_failure,
    decoder_refusal,
    envelope_hint,
    not_json,
    with_path,
    wrong_time_format,
    wrong_type,
)
from tidemill_contract.events.fields import MAX_EVENT_BYTES, MAX_KEY_BYTES, EventFields
from tidemill_contract.events.invalid_events import InvalidEvent, Reason
from tidemill_contract.events.members import JSON_ERRORS, as_object, may_be_rounded, members, normalize
from tidemill_contract.events.timestamps import is_number, may_be_lenient
from tidemill_contract.events.types import read_time


class EventValidator:
    """Reads and validates events one by one."""

    def __init__(self, fields: EventFields) -> None:
        self._fields = fields
        self._decode = fields.decode

    def decode_event(self, raw: bytes, now_ms: int) -> tuple[Any, int]:
        """Return the event in `raw`, and the microseconds (0 to 999) after the event time's milliseconds.

        `now_ms` is the wall time in epoch milliseconds.

        Raises:
            InvalidEvent: the event is invalid.
        """
        try:
            return self._decode_unguarded(raw, now_ms)
        except InvalidEvent:
            raise
        except Exception as error:
            raise decoder_failure(error) from error

    def _decode_unguarded(self, raw: bytes, now_ms: int) -> tuple[Any, int]:
        if len(raw) > MAX_EVENT_BYTES:
            raise InvalidEvent(Reason.TOO_LARGE, None, f"{len(raw)} bytes; at most {MAX_EVENT_BYTES} are allowed")
        if not raw.isascii():
            _check_utf8(raw)
        event = self._read(raw)
        if self._fields.numeric_timestamps:
            self._check_numeric_timestamps(raw, event)
        if self._fields.decimals.may_be_lenient(raw):
            self._check_decimals(raw)
        micros = 0
        for name in self._fields.timestamps:
            value = self._value(event, name)
            if value is None:
                continue
            time, time_micros = read_time(name, self._fields.formats.get(name), value)
            if name == self._fields.event_time:
                micros = time_micros
            if time is not value:
                self._fields.shape.put([event], name, [time])
        self._fields.decimals.scale(self._fields.shape, event)
        # JSON can contain NUL only as the escape \u0000, so events without the escape skip the check.
        if b"\\u0000" in raw:
            self._check_nul(event)
        if len(raw) > MAX_KEY_BYTES:
            self._check_keys(event)
        if self._fields.json_fields is not None:
            self._fields.json_fields.check(raw)
        if self._fields.event_time is not None:
            self._fields.times.check(self._value(event, self._fields.event_time), now_ms)
        return event, micros

    def truncate_times(self, raw: bytes, event: Any) -> Any:
        """Decode an event again if msgspec may have rounded up one of its times.

        The second decoding truncates times to microseconds.
        """
        # A time that was rounded up to the next millisecond ends with 000 microseconds.
        for name in self._fields.timestamps:
            time = self._value(event, name)
            if time.__class__ is dt.datetime and (self._fields.exact or time.microsecond % 1000 == 0):
                if not may_be_rounded(raw):
                    return event
                rewritten = normalize(self._fields.shape.extract(raw), self._fields.kinds)
                return event if rewritten is None else self._fields.shape.read_flat(rewritten)
        return event

    def _value(self, event: Any, name: str) -> Any:
        return self._fields.shape.values((event,), name)[0]

    def _read(self, raw: bytes) -> Any:
        try:
            event = self._decode(raw)
            if self._fields.timestamps:
                event = self.truncate_times(raw, event)
        except msgspec.ValidationError as error:
            return self._read_normalized(raw, error)
        except JSON_ERRORS as error:
            raise not_json(raw, error) from None
        fields = self._fields
        if fields.accepts_envelopes and all(self._value(event, name) is None for name in fields.expected_names):
            envelope = envelope_hint(members(raw), self._fields.shape.top_level_names)
            if envelope is not None:
                raise InvalidEvent(Reason.MISSING_FIELD, None, f"the event has no field of the spec; {envelope}")
        return event

    def _read_normalized(self, raw: bytes, error: msgspec.ValidationError) -> Any:
        if self._fields.shape.nested:
            return self._read_extracted(raw)
        try:
            rewritten = normalize(members(raw), self._fields.kinds)
            if rewritten is not None:
                return self._fields.shape.read_flat(rewritten)
        except msgspec.ValidationError as second_error:
            error = second_error
        except JSON_ERRORS:
            pass  # if the event cannot be split into members, report the original error
        raise self._decoder_refusal(raw, error) from None

    def _read_extracted(self, raw: bytes) -> Any:
        try:
            raw_fields = self._fields.shape.extract(raw)
        except msgspec.ValidationError as error:
            raise self._decoder_refusal(raw, error) from None
        except JSON_ERRORS as error:
            raise not_json(raw, error) from None
        try:
            return self._fields.shape.read_flat(normalize(raw_fields, self._fields.kinds) or as_object(raw_fields))
        except msgspec.ValidationError as error:
            names = self._fields.shape.top_level_names
            envelope = envelope_hint(members(raw), names) if self._fields.may_be_envelope else ""
            refusal = decoder_refusal(as_object(raw_fields), error, self._fields.kinds, envelope=envelope)
            raise with_path(refusal, self._fields.steps.get(refusal.field or "")) from None
        except JSON_ERRORS as error:
            raise not_json(raw, error) from None

    def _decoder_refusal(self, raw: bytes, error: msgspec.ValidationError) -> InvalidEvent:
        return decoder_refusal(raw, error, self._fields.kinds, envelope=None if self._fields.may_be_envelope else "")

    def _check_numeric_timestamps(self, raw: bytes, event: Any) -> None:
        names = [name for name in self._fields.numeric_timestamps if isinstance(self._value(event, name), Decimal)]
        if not names or not may_be_lenient(raw):
            return
        raw_fields = self._fields.shape.extract(raw)
        for name in names:
            if (raw_value := raw_fields.get(name, b""))[:1] == b'"':
                text = msgspec.json.decode(raw_value, type=str)
                if not is_number(text):
                    raise wrong_time_format(name, self._fields.kinds[name], text)

    def _check_decimals(self, raw: bytes) -> None:
        raw_fields = self._fields.shape.extract(raw)
        for name in self._fields.decimals.names:
            raw_value = raw_fields.get(name, b"")
            if raw_value[:1] == b'"' and not is_decimal_text(msgspec.json.decode(raw_value, type=str)):
                raise wrong_type(name, raw_value, self._fields.kinds[name])

    def _check_nul(self, event: Any) -> None:
        texts = [(name, [self._value(event, name)]) for name in self._fields.strings]
        texts += [(name, self._value(event, name) or []) for name in self._fields.string_lists]
        for name, values in texts:
            if any("\0" in (text or "") for text in values):
                raise InvalidEvent(Reason.BAD_STRING, name, "contains a NUL character, which Postgres cannot store")

    def _check_keys(self, event: Any) -> None:
        for name in self._fields.group_strings:
            length = len((self._value(event, name) or "").encode())
            if length > MAX_KEY_BYTES:
                raise InvalidEvent(
                    Reason.KEY_TOO_LONG, name, f"{length} bytes; a group column can hold at most {MAX_KEY_BYTES}"
                )


def _check_utf8(raw: bytes) -> None:
    # The JSON reader does not check UTF-8 in members that it skips, so UTF-8 is checked here.
    try:
        raw.decode()
    except UnicodeDecodeError as error:
        raise not_json(raw, error) from None
