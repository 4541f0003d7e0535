"""The one decoder: which bytes are a valid event of a pipeline, for ingest and processor alike.

Valid means that nothing later can refuse the event: Postgres takes every value. An invalid one is told by a closed set
of reasons, the field and a detail. Reading is msgspec only (a vectorised reader disagrees with it on hostile values).
"""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Sequence
from enum import StrEnum
from operator import attrgetter
from typing import Annotated, Any

import msgspec

from tidemill_contract.duration import parse_ms
from tidemill_contract.spec import PipelineSpec

MAX_EVENT_BYTES = 1024 * 1024
MAX_KEY_BYTES = 1024
# A key is a field of the event, so a record may hold an event's bytes twice; the rest is for headers.
MAX_RECORD_BYTES = 2 * MAX_EVENT_BYTES + 128 * 1024
EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
_MILLISECOND = dt.timedelta(milliseconds=1)
_MIN_TIMESTAMP_MS, _MAX_TIMESTAMP_MS = -62_135_596_800_000, 253_402_300_799_999

QUARANTINE_PREFIX = b"\x00"
"""First byte of a record that ingest has refused: no JSON text starts with it, so no decoder counts such a record."""
REASON_HEADER, FIELD_HEADER = "reason", "field"


class Reason(StrEnum):
    """Why an event is a dead letter."""

    NOT_JSON = "not_json"
    NOT_AN_OBJECT = "not_an_object"
    MISSING_FIELD = "missing_field"
    UNKNOWN_FIELD = "unknown_field"
    MISTYPED = "mistyped"
    OUT_OF_RANGE = "out_of_range"
    BAD_STRING = "bad_string"
    KEY_TOO_LONG = "key_too_long"
    TOO_LARGE = "too_large"
    TOO_OLD = "too_old"
    TOO_FAR_IN_THE_FUTURE = "too_far_in_the_future"
    EXPRESSION_FAILED = "expression_failed"
    REFUSED_BY_DATABASE = "refused_by_database"
    LATE = "late"


class InvalidEvent(Exception):
    """An event is not valid."""

    def __init__(self, reason: Reason, field: str | None = None, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason, self.field, self.detail = reason, field, detail


_TYPES: dict[str, Any] = {
    "string": str,
    "integer": Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)],
    "number": float,
    "boolean": bool,
    "timestamp": int | Annotated[dt.datetime, msgspec.Meta(tz=True)],
}
_AT = re.compile(r" - at `\$\.([^`.\[]+)")
_NAMED = re.compile(r"field `([^`]+)`")


class EventDecoder:
    """Decodes and judges the events of one pipeline.

    `decode` returns a msgspec Struct with one attribute a field, in the spec's order; timestamps are epoch
    milliseconds, absent optional fields None.
    """

    def __init__(self, spec: PipelineSpec) -> None:
        fields = spec.source.fields
        self.names = tuple(f.name for f in fields)
        self.event_time_field = spec.source.event_time.field
        self._timestamps = tuple(f.name for f in fields if f.type == "timestamp")
        self._strings = tuple(f.name for f in fields if f.type == "string")
        self._group_strings = tuple(name for name in self._strings if name in spec.group_columns)
        self._max_future_ms = parse_ms(spec.source.event_time.max_future)
        required = [(f.name, _TYPES[f.type]) for f in fields if f.required or f.name == self.event_time_field]
        optional = [
            (f.name, _TYPES[f.type] | None, None) for f in fields if not f.required and f.name != self.event_time_field
        ]
        self.type = msgspec.defstruct(
            "Event", [*required, *optional], kw_only=True, forbid_unknown_fields=spec.source.strict, gc=False
        )
        self._decode = msgspec.json.Decoder(self.type).decode

    def decode(self, raw: bytes, now_ms: int) -> Any:
        """The event in `raw`, judged at wall time `now_ms` (epoch milliseconds).

        Raises:
            InvalidEvent: it is not a valid event.
        """
        if len(raw) > MAX_EVENT_BYTES:
            raise InvalidEvent(Reason.TOO_LARGE, None, f"{len(raw)} bytes; at most {MAX_EVENT_BYTES} are taken")
        try:
            event = self._decode(raw)
        except msgspec.ValidationError as error:
            raise _verdict(error) from None
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise InvalidEvent(Reason.NOT_JSON, None, str(error)) from None
        for name in self._timestamps:
            value = getattr(event, name)
            if value is None:
                continue
            if value.__class__ is not int:
                value = _epoch_ms(value)
                setattr(event, name, value)
            if not _MIN_TIMESTAMP_MS <= value <= _MAX_TIMESTAMP_MS:
                raise InvalidEvent(Reason.OUT_OF_RANGE, name, f"{value} ms is outside the years 1 to 9999")
        # Only an escape can bring a NUL; raw control characters are not JSON.
        if b"\\u0000" in raw:
            self._check_nul(event)
        if len(raw) > MAX_KEY_BYTES:
            self._check_keys(event)
        if self.event_time_field is not None:
            self.check_time(getattr(event, self.event_time_field), now_ms)
        return event

    def decode_batch(
        self, raws: Sequence[bytes], now_ms: int, *, largest: int | None = None
    ) -> tuple[list[Any], dict[int, InvalidEvent]]:
        """Decode many: the events in order (None where invalid) and the verdicts by index.

        The same verdicts as `decode`, event by event. A batch that is seen at once to hold nothing unusual skips the
        checks that only unusual bytes need; any other goes through `decode` as it is.

        Args:
            raws: the records' bytes.
            now_ms: wall time, epoch milliseconds.
            largest: bytes of the largest record, if the caller has looked.
        """
        largest = max(map(len, raws), default=0) if largest is None else largest
        events = self._decode_plain(raws, now_ms) if 0 < largest <= MAX_KEY_BYTES else None
        if events is not None:
            return events, {}
        events, invalid = [], {}
        for index, raw in enumerate(raws):
            try:
                events.append(self.decode(raw, now_ms))
            except InvalidEvent as verdict:
                events.append(None)
                invalid[index] = verdict
        return events, invalid

    def _decode_plain(self, raws: Sequence[bytes], now_ms: int) -> list[Any] | None:
        together = b"\n".join(raws)
        # One byte is found much faster than six, and most events escape nothing.
        if b"\\" in together and b"\\u0000" in together:
            return None
        decode = self._decode
        try:
            events = [decode(raw) for raw in raws]
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return None
        for name in self._timestamps:
            values = list(map(attrgetter(name), events))
            if set(map(type, values)) != {int}:
                values = [value if value.__class__ is int or value is None else _epoch_ms(value) for value in values]
                for event, value in zip(events, values, strict=True):
                    setattr(event, name, value)
                values = [value for value in values if value is not None]
            own = name == self.event_time_field
            low, high = (0, now_ms + self._max_future_ms) if own else (_MIN_TIMESTAMP_MS, _MAX_TIMESTAMP_MS)
            if values and (min(values) < low or max(values) > high):
                return None
        return events

    def check_time(self, event_time_ms: int, now_ms: int) -> None:
        """Judge an event time (epoch milliseconds), the field's or the record's own.

        Raises:
            InvalidEvent: before 1970, or further ahead of `now_ms` than maxFuture.
        """
        if event_time_ms < 0:
            raise InvalidEvent(Reason.TOO_OLD, self.event_time_field, f"{event_time_ms} ms is before 1970")
        if event_time_ms > now_ms + self._max_future_ms:
            ahead = event_time_ms - now_ms
            raise InvalidEvent(
                Reason.TOO_FAR_IN_THE_FUTURE,
                self.event_time_field,
                f"{ahead} ms ahead of the clock; maxFuture is {self._max_future_ms} ms",
            )

    def _check_nul(self, event: Any) -> None:
        for name in self._strings:
            if "\0" in (getattr(event, name) or ""):
                raise InvalidEvent(Reason.BAD_STRING, name, "holds a NUL character, which Postgres cannot store")

    def _check_keys(self, event: Any) -> None:
        for name in self._group_strings:
            length = len((getattr(event, name) or "").encode())
            if length > MAX_KEY_BYTES:
                raise InvalidEvent(
                    Reason.KEY_TOO_LONG, name, f"{length} bytes; a group column takes at most {MAX_KEY_BYTES}"
                )


def _epoch_ms(moment: dt.datetime) -> int:
    return (moment - EPOCH) // _MILLISECOND


def _verdict(error: msgspec.ValidationError) -> InvalidEvent:
    text = str(error)
    at = _AT.search(text)
    field = at.group(1) if at else None
    if "missing required field" in text:
        named = _NAMED.search(text)
        return InvalidEvent(Reason.MISSING_FIELD, named.group(1) if named else None, text)
    if "unknown field" in text:
        named = _NAMED.search(text)
        return InvalidEvent(Reason.UNKNOWN_FIELD, named.group(1) if named else None, text)
    if field is None:
        return InvalidEvent(Reason.NOT_AN_OBJECT, None, text)
    if "out of range" in text or "<=" in text or ">=" in text or "RFC3339" in text:
        return InvalidEvent(Reason.OUT_OF_RANGE, field, text)
    return InvalidEvent(Reason.MISTYPED, field, text)
