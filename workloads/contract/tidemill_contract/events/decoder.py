"""Decodes and validates events. Ingest and processor use the same decoder, so that they always agree.

Nothing refuses a valid event later: Postgres can store all its values. An invalid event gets a verdict with a reason,
the field and a detail. msgspec reads every event, because a vectorised reader disagrees with it on hostile values.
Some values that msgspec refuses or rounds have only one possible meaning. They are rewritten and read again.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import msgspec

from tidemill_contract.duration import parse_ms
from tidemill_contract.events.details import (
    SECONDS_FROM,
    SECONDS_TO,
    beyond_years,
    counts_seconds,
    envelope_of,
    miswritten,
    not_json,
    refused,
    with_path,
)
from tidemill_contract.events.event_times import MAX_TIMESTAMP_MS, MIN_TIMESTAMP_MS, EventTimes
from tidemill_contract.events.kept_json import JSON, KeptJson
from tidemill_contract.events.members import as_object, may_be_rounded, members, mended
from tidemill_contract.events.shapes import Leaf, Shape
from tidemill_contract.events.timestamps import TimeFormat
from tidemill_contract.events.types import all_epoch_ms, default_of, epoch_ms, kind_of, micros_of, type_of
from tidemill_contract.events.verdicts import FIELD_HEADER, QUARANTINE_PREFIX, REASON_HEADER, InvalidEvent, Reason
from tidemill_contract.functions.base import STRINGS
from tidemill_contract.resource.spec import PipelineSpec

__all__ = [
    "FIELD_HEADER",
    "QUARANTINE_PREFIX",
    "REASON_HEADER",
    "Decoded",
    "EventDecoder",
    "InvalidEvent",
    "Reason",
]

MAX_EVENT_BYTES = 1024 * 1024
MAX_KEY_BYTES = 1024
# The key is a field of the event, so a record may hold almost twice an event's bytes. The rest is for headers.
MAX_RECORD_BYTES = 2 * MAX_EVENT_BYTES + 128 * 1024
_TOGETHER, _GROUP = 512, 64
_BROKEN = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)


@dataclass(frozen=True)
class Decoded:
    """A decoded batch of events.

    Attributes:
        events: the events in the order of the records; None for an invalid event.
        invalid: the verdicts on invalid events, by index.
        micros: the microseconds within the millisecond of each event time, in order; None: all are 0, or the decoder
            is not `exact`.
        ignored: the indexes of records that the format's policy leaves out; their events are None.
    """

    events: list[Any]
    invalid: dict[int, InvalidEvent]
    micros: list[int] | None = None
    ignored: frozenset[int] = frozenset()


class EventDecoder:
    """Decodes and validates the events of one pipeline.

    An event is a msgspec Struct, whose fields `values` reads. Without paths, each field is an attribute. Timestamps are
    epoch milliseconds. Absent optional fields are None, or their default.
    """

    def __init__(
        self, spec: PipelineSpec, *, exact: bool = False, array: Leaf | None = None, element: bool = False
    ) -> None:
        """Create the decoder of a pipeline.

        Args:
            spec: the pipeline's spec.
            exact: whether `Decoded` has the microseconds of event times.
            array: the array that is exploded.
            element: whether events are elements of one, so no envelopes.
        """
        fields = [field for field in spec.source.fields if field.origin == "value" and field.type != JSON]
        beside = [field for field in spec.source.fields if field.origin != "value"]
        kept = {field.name: field.steps for field in spec.source.fields if field.type == JSON}
        self._kept = KeptJson(kept) if kept else None
        self.names = tuple(f.name for f in fields)
        self.event_time_field = time if (time := spec.source.event_time.field) in self.names else None
        self._exact = exact and self.event_time_field is not None
        self._kinds = {f.name: kind_of(f) for f in fields}
        self._steps = {f.name: f.steps for f in fields}
        formats = {f.name: TimeFormat.of(f) for f in fields if f.type == "timestamp"}
        # Timestamps without a format come first, because `_cut` may read the event again.
        self._timestamps = tuple(sorted(formats, key=lambda name: formats[name] is not None))
        self._formats = {name: written for name, written in formats.items() if written is not None}
        self._strings = tuple(f.name for f in fields if f.type == "string")
        self._lists = tuple(f.name for f in fields if f.type == STRINGS)
        self._group_strings = tuple(name for name in self._strings if name in spec.group_columns)
        self.times = EventTimes(self.event_time_field, parse_ms(spec.source.event_time.max_future))
        leaves = [
            Leaf(f.name, f.steps, type_of(f), f.required or f.name == self.event_time_field, default_of(f))
            for f in fields
        ]
        self._takes_any = not element and not any(leaf.required for leaf in leaves)
        leaves += [array] if array is not None else []
        inside = [leaf.steps for leaf in leaves]
        leaves += [Leaf(field.name, field.steps, Any, required=False, beside=True) for field in beside]
        if spec.source.strict:
            leaves += [
                Leaf(name, steps, Any, required=False, unread=True)
                for name, steps in kept.items()
                if not any(one[: len(steps)] == steps[: len(one)] for one in inside)
            ]
        self._shape = Shape(leaves, strict=spec.source.strict)
        self.type = self._shape.type
        self._decode = msgspec.json.Decoder(self.type).decode

    def values(self, events: Sequence[Any], name: str) -> list[Any]:
        """Return a field's value in each event."""
        return self._shape.values(events, name)

    def put(self, events: Sequence[Any], name: str, values: Sequence[Any]) -> None:
        """Set a field that is not read from the events."""
        self._shape.put(events, name, values)

    def as_json(self, events: Sequence[Any], raws: Sequence[bytes]) -> list[str]:
        """The fields of each event as a JSON object, by the fields' names; `raws` are the events' bytes."""
        texts = map(msgspec.json.encode, self._shape.flattened(events))
        if self._kept is not None:
            texts = map(self._kept.added, texts, raws)
        return [text.decode() for text in texts]

    def decode(self, raw: bytes, now_ms: int) -> Any:
        """Return the event in `raw`, validated at wall time `now_ms` (epoch milliseconds).

        Raises:
            InvalidEvent: the bytes are not a valid event.
        """
        return self._judged(raw, now_ms)[0]

    def refusal(self, raw: bytes, now_ms: int) -> InvalidEvent | None:
        """Return the verdict on `raw` at wall time `now_ms` (epoch milliseconds); None if the event is valid."""
        try:
            self._judged(raw, now_ms)
        except InvalidEvent as verdict:
            return verdict
        return None

    def decode_batch(
        self, raws: Sequence[bytes], now_ms: int, *, largest: int | None = None
    ) -> tuple[list[Any], dict[int, InvalidEvent]]:
        """Decode a batch as in `decode_all`, and return the events and the verdicts of the result."""
        decoded = self.decode_all(raws, now_ms, largest=largest)
        return decoded.events, decoded.invalid

    def decode_all(self, raws: Sequence[bytes], now_ms: int, *, largest: int | None = None) -> Decoded:
        """Decode a batch. The events and verdicts are the same as those of `decode`.

        A first look at the bytes of all events shows whether they hold anything unusual. If not, the checks of single
        events are skipped. Otherwise this is tried for groups of events, and the events of the remaining groups are
        decoded one by one.

        Args:
            raws: the records' bytes.
            now_ms: wall time, epoch milliseconds.
            largest: size of the largest record in bytes; None: it is computed.
        """
        largest = max(map(len, raws), default=0) if largest is None else largest
        plain = self.decode_plain(raws, now_ms, largest)
        if plain is not None:
            return plain
        events: list[Any] = []
        invalid: dict[int, InvalidEvent] = {}
        micros: list[int] = []
        for start in range(0, len(raws), _GROUP):
            group = raws[start : start + _GROUP]
            plain = self.decode_plain(group, now_ms, max(map(len, group))) if len(raws) > _GROUP else None
            if plain is not None:
                events += plain.events
                micros += plain.micros or [0] * len(group)
                continue
            for index, raw in enumerate(group, start):
                event, micro = None, 0
                try:
                    event, micro = self._judged(raw, now_ms)
                except InvalidEvent as verdict:
                    invalid[index] = verdict
                events.append(event)
                micros.append(micro)
        return Decoded(events, invalid, micros if self._exact else None)

    def decode_plain(self, raws: Sequence[bytes], now_ms: int, largest: int) -> Decoded | None:
        """Decode a batch, see `plain`."""
        if not 0 < largest <= MAX_EVENT_BYTES:
            return None
        decode = self._decode
        try:
            events = [decode(raw) for raw in raws]
        except (*_BROKEN, ValueError, OverflowError):
            return None
        return self.plain(events, raws, now_ms, largest, whole=True)

    def plain(
        self, events: list[Any], raws: Sequence[bytes], now_ms: int, largest: int, *, whole: bool
    ) -> Decoded | None:
        """Judge events that the JSON reader took from `raws` without looking at single ones; None: that is needed.

        `largest` is the size of the largest of `raws` in bytes; `whole`, whether each of them is one event.
        """
        micros, rounded = None, None
        try:
            # Events are joined in small parts, which fit the CPU's cache and need no new memory from the system.
            parts = [b"\n".join(raws[i : i + _TOGETHER]) for i in range(0, len(raws), _TOGETHER)]
            if self._unusual(events, parts, largest):
                return None
            for name in self._timestamps:
                values = self._shape.values(events, name)
                own = name == self.event_time_field
                if name in self._formats:
                    exact = self._formats[name].all_micros(values)
                    values = [None if each is None else each // 1000 for each in exact]
                    if own and self._exact:
                        micros = [(each or 0) % 1000 for each in exact]
                    self._shape.put(events, name, values)
                    known = [value for value in values if value is not None]
                    if known and not self.times.surely(known, own=own, now_ms=now_ms):
                        return None
                    continue
                kinds = set(map(type, values))
                if kinds != {int}:
                    if rounded is None and dt.datetime in kinds:
                        # Fields that were converted before have no times as text, so the events may be read again.
                        rounded = any(map(may_be_rounded, parts))
                        if rounded and not whole:
                            return None
                        if rounded:
                            events = [self._cut(raw, event) for raw, event in zip(raws, events, strict=True)]
                            values = self._shape.values(events, name)
                    if own and self._exact:
                        micros = list(map(micros_of, values))
                    values = all_epoch_ms(values, kinds)
                    self._shape.put(events, name, values)
                    if type(None) in kinds:
                        values = [value for value in values if value is not None]
                if values and not self.times.surely(values, own=own, now_ms=now_ms):
                    return None
        except (*_BROKEN, ValueError, OverflowError):
            return None
        return Decoded(events, {}, micros)

    def _unusual(self, events: list[Any], parts: list[bytes], largest: int) -> bool:
        """Whether an event may hold a NUL or a too long key, or may be an envelope."""
        # A search for one byte is much faster than for six, and most events have no backslash.
        if any(b"\\" in part and b"\\u0000" in part for part in parts):
            return True
        if self._kept is not None and self._kept.unusual(parts):
            return True
        if self._takes_any and any(b'"payload"' in part or b'"op"' in part for part in parts):
            return True
        if largest <= MAX_KEY_BYTES:
            return False
        keys = chain.from_iterable(self._shape.values(events, name) for name in self._group_strings)
        return any(len(key) > MAX_KEY_BYTES // 4 for key in keys if key is not None)

    def _value(self, event: Any, name: str) -> Any:
        return self._shape.values((event,), name)[0]

    def _judged(self, raw: bytes, now_ms: int) -> tuple[Any, int]:
        """Return the event in `raw`, and the microseconds within the millisecond of its event time."""
        if len(raw) > MAX_EVENT_BYTES:
            raise InvalidEvent(Reason.TOO_LARGE, None, f"{len(raw)} bytes; at most {MAX_EVENT_BYTES} are allowed")
        event = self._read(raw)
        micros = 0
        for name in self._timestamps:
            value = self._value(event, name)
            if value is None:
                continue
            time, beyond = self._time(name, value)
            if name == self.event_time_field:
                micros = beyond
            if time is not value:
                self._shape.put([event], name, [time])
        # JSON can only hold a NUL as an escape.
        if b"\\u0000" in raw:
            self._check_nul(event)
        if len(raw) > MAX_KEY_BYTES:
            self._check_keys(event)
        if self._kept is not None:
            self._kept.check(raw)
        if self.event_time_field is not None:
            self.times.check(self._value(event, self.event_time_field), now_ms)
        return event, micros

    def _time(self, name: str, value: Any) -> tuple[int, int]:
        """Return a timestamp from the JSON reader as milliseconds and the remaining microseconds (0 to 999)."""
        written, hint = self._formats.get(name), None
        is_number = value.__class__ is int
        if is_number and (written is None or written.guesses) and SECONDS_FROM <= value <= SECONDS_TO:
            raise counts_seconds(name, value)
        if written is not None:
            try:
                exact = written.micros(value)
            except ValueError:
                raise miswritten(name, self._kinds[name], value) from None
            time, micros, hint = exact // 1000, exact % 1000, written.hint(exact)
        else:
            time, micros = (value, 0) if is_number else (epoch_ms(value), micros_of(value))
        if not MIN_TIMESTAMP_MS <= time <= MAX_TIMESTAMP_MS:
            raise beyond_years(name, value, hint)
        return time, micros

    def _read(self, raw: bytes) -> Any:
        try:
            event = self._decode(raw)
            if self._timestamps:
                event = self._cut(raw, event)
        except msgspec.ValidationError as error:
            return self._read_mended(raw, error)
        except _BROKEN as error:
            raise not_json(raw, error) from None
        if self._takes_any and all(self._value(event, name) is None for name in self.names):
            envelope = envelope_of(members(raw), self._shape.tops)
            if envelope is not None:
                raise InvalidEvent(Reason.MISSING_FIELD, None, f"the event has no field of the spec; {envelope}")
        return event

    def _read_mended(self, raw: bytes, error: msgspec.ValidationError) -> Any:
        if self._shape.nested:
            return self._read_extracted(raw)
        try:
            better = mended(members(raw), self._kinds)
            if better is not None:
                return self._shape.read_flat(better)
        except msgspec.ValidationError as still:
            error = still
        except _BROKEN:
            pass  # the error of the first attempt is reported
        raise refused(raw, error, self._kinds) from None

    def _read_extracted(self, raw: bytes) -> Any:
        """Read an event that the nested structs refused: find each field by its path, and read a flat event."""
        try:
            found = self._shape.extracted(raw)
        except msgspec.ValidationError as error:
            raise refused(raw, error, self._kinds) from None  # the event is not an object
        except _BROKEN as error:
            raise not_json(raw, error) from None
        try:
            return self._shape.read_flat(mended(found, self._kinds) or as_object(found))
        except msgspec.ValidationError as error:
            envelope = envelope_of(members(raw), self._shape.tops)
            refusal = refused(as_object(found), error, self._kinds, envelope=envelope)
            raise with_path(refusal, self._steps.get(refusal.field or "")) from None
        except _BROKEN as error:
            raise not_json(raw, error) from None

    def _cut(self, raw: bytes, event: Any) -> Any:
        """Return the event with times that are truncated to microseconds, where msgspec may have rounded one up."""
        # A time that was rounded up into another millisecond has 0 microseconds within it. Rounding within a
        # millisecond only matters to an exact decoder.
        for name in self._timestamps:
            moment = self._value(event, name)
            if moment.__class__ is dt.datetime and (self._exact or moment.microsecond % 1000 == 0):
                if not may_be_rounded(raw):
                    return event
                better = mended(self._shape.extracted(raw), self._kinds)
                return event if better is None else self._shape.read_flat(better)
        return event

    def _check_nul(self, event: Any) -> None:
        texts = [(name, [self._value(event, name)]) for name in self._strings]
        texts += [(name, self._value(event, name) or []) for name in self._lists]
        for name, found in texts:
            if any("\0" in (text or "") for text in found):
                raise InvalidEvent(Reason.BAD_STRING, name, "holds a NUL character, which Postgres cannot store")

    def _check_keys(self, event: Any) -> None:
        for name in self._group_strings:
            length = len((self._value(event, name) or "").encode())
            if length > MAX_KEY_BYTES:
                raise InvalidEvent(
                    Reason.KEY_TOO_LONG, name, f"{length} bytes; a group column can hold at most {MAX_KEY_BYTES}"
                )
