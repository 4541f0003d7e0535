"""Read and validate events one by one, and find out why an event is invalid."""

from __future__ import annotations

import datetime as dt
from decimal import Decimal
from typing import Any

import msgspec

from tidemill_contract.decimals import is_plain
from tidemill_contract.events.details import envelope_of, failed, misfit, miswritten, not_json, refused, with_path
from tidemill_contract.events.fields import MAX_EVENT_BYTES, MAX_KEY_BYTES, EventFields
from tidemill_contract.events.members import BROKEN, as_object, may_be_rounded, members, mended
from tidemill_contract.events.timestamps import is_number, may_be_lenient
from tidemill_contract.events.types import read_time
from tidemill_contract.events.verdicts import InvalidEvent, Reason


class EventJudge:
    """Reads and validates events one by one."""

    def __init__(self, fields: EventFields) -> None:
        self._fields = fields
        self._decode = fields.decode

    def judged(self, raw: bytes, now_ms: int) -> tuple[Any, int]:
        """Return the event in `raw`, and the microseconds (0 to 999) after the event time's milliseconds.

        `now_ms` is the wall time in epoch milliseconds.

        Raises:
            InvalidEvent: the event is invalid.
        """
        try:
            return self._judged(raw, now_ms)
        except InvalidEvent:
            raise
        except Exception as error:
            raise failed(error) from error

    def _judged(self, raw: bytes, now_ms: int) -> tuple[Any, int]:
        if len(raw) > MAX_EVENT_BYTES:
            raise InvalidEvent(Reason.TOO_LARGE, None, f"{len(raw)} bytes; at most {MAX_EVENT_BYTES} are allowed")
        if not raw.isascii():
            _check_utf8(raw)
        event = self._read(raw)
        if self._fields.counts:
            self._check_counts(raw, event)
        if self._fields.decimals.may_be_other(raw):
            self._check_decimals(raw)
        micros = 0
        for name in self._fields.timestamps:
            value = self._value(event, name)
            if value is None:
                continue
            time, beyond = read_time(name, self._fields.formats.get(name), value)
            if name == self._fields.event_time:
                micros = beyond
            if time is not value:
                self._fields.shape.put([event], name, [time])
        self._fields.decimals.scale(self._fields.shape, event)
        # JSON can contain NUL only as the escape \u0000, so events without the escape skip the check.
        if b"\\u0000" in raw:
            self._check_nul(event)
        if len(raw) > MAX_KEY_BYTES:
            self._check_keys(event)
        if self._fields.kept is not None:
            self._fields.kept.check(raw)
        if self._fields.event_time is not None:
            self._fields.times.check(self._value(event, self._fields.event_time), now_ms)
        return event, micros

    def cut(self, raw: bytes, event: Any) -> Any:
        """Decode an event again if msgspec may have rounded up one of its times.

        The second decoding truncates times to microseconds.
        """
        # A time that was rounded up to the next millisecond ends with 000 microseconds.
        for name in self._fields.timestamps:
            moment = self._value(event, name)
            if moment.__class__ is dt.datetime and (self._fields.exact or moment.microsecond % 1000 == 0):
                if not may_be_rounded(raw):
                    return event
                better = mended(self._fields.shape.extracted(raw), self._fields.kinds)
                return event if better is None else self._fields.shape.read_flat(better)
        return event

    def _value(self, event: Any, name: str) -> Any:
        return self._fields.shape.values((event,), name)[0]

    def _read(self, raw: bytes) -> Any:
        try:
            event = self._decode(raw)
            if self._fields.timestamps:
                event = self.cut(raw, event)
        except msgspec.ValidationError as error:
            return self._read_mended(raw, error)
        except BROKEN as error:
            raise not_json(raw, error) from None
        if self._fields.takes_any and all(self._value(event, name) is None for name in self._fields.checked):
            envelope = envelope_of(members(raw), self._fields.shape.tops)
            if envelope is not None:
                raise InvalidEvent(Reason.MISSING_FIELD, None, f"the event has no field of the spec; {envelope}")
        return event

    def _read_mended(self, raw: bytes, error: msgspec.ValidationError) -> Any:
        if self._fields.shape.nested:
            return self._read_extracted(raw)
        try:
            better = mended(members(raw), self._fields.kinds)
            if better is not None:
                return self._fields.shape.read_flat(better)
        except msgspec.ValidationError as still:
            error = still
        except BROKEN:
            pass  # if the event cannot be split into members, report the original error
        raise self._refused(raw, error) from None

    def _read_extracted(self, raw: bytes) -> Any:
        try:
            raw_fields = self._fields.shape.extracted(raw)
        except msgspec.ValidationError as error:
            raise self._refused(raw, error) from None
        except BROKEN as error:
            raise not_json(raw, error) from None
        try:
            return self._fields.shape.read_flat(mended(raw_fields, self._fields.kinds) or as_object(raw_fields))
        except msgspec.ValidationError as error:
            envelope = envelope_of(members(raw), self._fields.shape.tops) if self._fields.may_be_envelope else ""
            refusal = refused(as_object(raw_fields), error, self._fields.kinds, envelope=envelope)
            raise with_path(refusal, self._fields.steps.get(refusal.field or "")) from None
        except BROKEN as error:
            raise not_json(raw, error) from None

    def _refused(self, raw: bytes, error: msgspec.ValidationError) -> InvalidEvent:
        return refused(raw, error, self._fields.kinds, envelope=None if self._fields.may_be_envelope else "")

    def _check_counts(self, raw: bytes, event: Any) -> None:
        names = [name for name in self._fields.counts if isinstance(self._value(event, name), Decimal)]
        if not names or not may_be_lenient(raw):
            return
        raw_fields = self._fields.shape.extracted(raw)
        for name in names:
            if (written := raw_fields.get(name, b""))[:1] == b'"':
                text = msgspec.json.decode(written, type=str)
                if not is_number(text):
                    raise miswritten(name, self._fields.kinds[name], text)

    def _check_decimals(self, raw: bytes) -> None:
        raw_fields = self._fields.shape.extracted(raw)
        for name in self._fields.decimals.names:
            written = raw_fields.get(name, b"")
            if written[:1] == b'"' and not is_plain(msgspec.json.decode(written, type=str)):
                raise misfit(name, written, self._fields.kinds[name])

    def _check_nul(self, event: Any) -> None:
        texts = [(name, [self._value(event, name)]) for name in self._fields.strings]
        texts += [(name, self._value(event, name) or []) for name in self._fields.lists]
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
