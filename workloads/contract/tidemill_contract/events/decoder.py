"""Decode and validate events for ingest and processor."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from itertools import chain
from typing import Any

import msgspec

from tidemill_contract.events.fields import MAX_EVENT_BYTES, MAX_KEY_BYTES, EventFields
from tidemill_contract.events.invalid_events import FIELD_HEADER, QUARANTINE_PREFIX, REASON_HEADER, InvalidEvent, Reason
from tidemill_contract.events.members import is_utf8, may_be_rounded
from tidemill_contract.events.shapes import Leaf
from tidemill_contract.events.timestamps import may_be_lenient
from tidemill_contract.events.types import all_epoch_ms, micros_of
from tidemill_contract.events.validator import EventValidator
from tidemill_contract.resource.spec import PipelineSpec

__all__ = [
    "FIELD_HEADER",
    "QUARANTINE_PREFIX",
    "REASON_HEADER",
    "DecodedBatch",
    "EventDecoder",
    "InvalidEvent",
    "Reason",
]

_JOINED_EVENTS, _GROUP_SIZE = 512, 64


@dataclass(frozen=True)
class DecodedBatch:
    """A decoded batch of events.

    Attributes:
        events: the events in the order of the records, with None for an invalid event.
        invalid: the errors of invalid events, by index.
        micros: the microseconds (0 to 999) of each event time after the milliseconds, or None if all are 0.
        ignored: the indexes of the records that `source.format.deletes` ignores.
    """

    events: list[Any]
    invalid: dict[int, InvalidEvent]
    micros: list[int] | None = None
    ignored: frozenset[int] = frozenset()


class EventDecoder:
    """Decodes and validates one pipeline's events.

    A decoded event contains timestamps as epoch milliseconds, and decimals as scaled integers.
    """

    def __init__(
        self, spec: PipelineSpec, *, exact: bool = False, array: Leaf | None = None, is_part: bool = False
    ) -> None:
        self._fields = fields = EventFields(spec, exact=exact, array=array, is_part=is_part)
        self._validator = EventValidator(fields)
        self.names, self.event_time_field, self.times = fields.names, fields.event_time, fields.times
        self.type = fields.shape.type
        self._decode = fields.decode

    def values(self, events: Sequence[Any], name: str) -> list[Any]:
        """Return a field's value in each event."""
        return self._fields.shape.values(events, name)

    def put(self, events: Sequence[Any], name: str, values: Sequence[Any]) -> None:
        """Set the values of a field from outside the events, such as from a header."""
        self._fields.shape.put(events, name, values)

    def as_json(self, events: Sequence[Any], raws: Sequence[bytes]) -> list[str]:
        """Return each event as a JSON object, in which each field is a member.

        Fields of type `json` are copied from the events' bytes `raws`.
        """
        texts = map(msgspec.json.encode, self._fields.shape.flatten(events, self._fields.decimals.formatters))
        if self._fields.json_fields is not None:
            texts = map(self._fields.json_fields.add_to, texts, raws)
        return [text.decode() for text in texts]

    def decode(self, raw: bytes, now_ms: int) -> Any:
        """Decode the event in `raw`, or raise InvalidEvent. `now_ms` is the current time."""
        return self._validator.decode_event(raw, now_ms)[0]

    def refusal(self, raw: bytes, now_ms: int) -> InvalidEvent | None:
        """Return why the event in `raw` is invalid, or None if the event is valid."""
        try:
            self._validator.decode_event(raw, now_ms)
        except InvalidEvent as error:
            return error
        return None

    def decode_batch(
        self, raws: Sequence[bytes], now_ms: int, *, largest: int | None = None
    ) -> tuple[list[Any], dict[int, InvalidEvent]]:
        """Decode a batch of events, and return the events and the errors of invalid events by index."""
        decoded = self.decode_all(raws, now_ms, largest=largest)
        return decoded.events, decoded.invalid

    def decode_all(self, raws: Sequence[bytes], now_ms: int, *, largest: int | None = None) -> DecodedBatch:
        """Decode a batch of events, and validate each event as `decode` does.

        Args:
            raws: the records' bytes.
            now_ms: wall time, epoch milliseconds.
            largest: the size of the largest record in bytes, or None to compute it.
        """
        largest = max(map(len, raws), default=0) if largest is None else largest
        decoded = self.decode_together(raws, now_ms, largest)
        if decoded is not None:
            return decoded
        events: list[Any] = []
        invalid: dict[int, InvalidEvent] = {}
        micros: list[int] = []
        for start in range(0, len(raws), _GROUP_SIZE):
            group = raws[start : start + _GROUP_SIZE]
            decoded = self.decode_together(group, now_ms, max(map(len, group))) if len(raws) > _GROUP_SIZE else None
            if decoded is not None:
                events += decoded.events
                micros += decoded.micros or [0] * len(group)
                continue
            for index, raw in enumerate(group, start):
                event, micro = None, 0
                try:
                    event, micro = self._validator.decode_event(raw, now_ms)
                except InvalidEvent as error:
                    invalid[index] = error
                events.append(event)
                micros.append(micro)
        return DecodedBatch(events, invalid, micros if self._fields.exact else None)

    def decode_together(self, raws: Sequence[bytes], now_ms: int, largest: int) -> DecodedBatch | None:
        """Decode a batch and check its events together. If the events must be checked one by one, return None."""
        if not 0 < largest <= MAX_EVENT_BYTES:
            return None
        decode = self._decode
        try:
            events = [decode(raw) for raw in raws]
        except Exception:  # after any error, the events are read one by one
            return None
        return self.validate_together(events, raws, now_ms, largest, whole=True)

    def validate_together(
        self, events: list[Any], raws: Sequence[bytes], now_ms: int, largest: int, *, whole: bool
    ) -> DecodedBatch | None:
        """Check decoded events together, or return None if the events must be checked one by one.

        Args:
            events: the events that the JSON reader returned for `raws`.
            raws: the bytes of the records.
            now_ms: wall time, epoch milliseconds.
            largest: the size of the largest record in bytes.
            whole: whether each record is one event.
        """
        micros, rounded = None, None
        shape, times, truncate = self._fields.shape, self._fields.times, self._validator.truncate_times
        try:
            # A few events are joined at a time. Their bytes fit into the CPU cache, so the searches below are faster.
            parts = [b"\n".join(raws[i : i + _JOINED_EVENTS]) for i in range(0, len(raws), _JOINED_EVENTS)]
            if self._needs_single_checks(events, parts, largest):
                return None
            for name in self._fields.timestamps:
                values = shape.values(events, name)
                is_event_time = name == self._fields.event_time
                if name in self._fields.formats:
                    all_micros = self._fields.formats[name].all_micros(values)
                    values = [None if each is None else each // 1000 for each in all_micros]
                    if is_event_time and self._fields.exact:
                        micros = [(each or 0) % 1000 for each in all_micros]
                    shape.put(events, name, values)
                    non_null = [value for value in values if value is not None]
                    if non_null and not times.are_all_valid(non_null, is_event_time=is_event_time, now_ms=now_ms):
                        return None
                    continue
                value_types = set(map(type, values))
                if value_types != {int}:
                    if rounded is None and dt.datetime in value_types:
                        # `truncate_times` may decode an event again, which discards converted times. Therefore, run it
                        # before the first conversion. Only fields without a format need it. `timestamps` lists these
                        # fields first.
                        rounded = any(map(may_be_rounded, parts))
                        if rounded and not whole:
                            return None
                        if rounded:
                            events = [truncate(raw, event) for raw, event in zip(raws, events, strict=True)]
                            values = shape.values(events, name)
                    if is_event_time and self._fields.exact:
                        micros = list(map(micros_of, values))
                    values = all_epoch_ms(values, value_types)
                    shape.put(events, name, values)
                    if type(None) in value_types:
                        values = [value for value in values if value is not None]
                if values and not times.are_all_valid(values, is_event_time=is_event_time, now_ms=now_ms):
                    return None
            self._fields.decimals.scale_all(shape, events)
        except Exception:  # as in `decode_together`
            return None
        return DecodedBatch(events, {}, micros)

    def _needs_single_checks(self, events: list[Any], parts: list[bytes], largest: int) -> bool:
        # Search for the backslash alone first, because this search is faster, and most events have no backslash.
        if any(b"\\" in part and b"\\u0000" in part for part in parts):
            return True
        # The JSON reader does not check UTF-8 in members that it skips, so UTF-8 is checked here.
        if not all(part.isascii() or is_utf8(part) for part in parts):
            return True
        if self._fields.accepts_envelopes and any(b'"payload"' in part or b'"op"' in part for part in parts):
            return True
        if any(map(self._fields.decimals.may_be_lenient, parts)):
            return True
        for name in self._fields.numeric_timestamps:
            value_types = set(map(type, self._fields.shape.values(events, name)))
            if Decimal in value_types and any(map(may_be_lenient, parts)):
                return True
        if largest <= MAX_KEY_BYTES:
            return False
        keys = chain.from_iterable(self._fields.shape.values(events, name) for name in self._fields.group_strings)
        return any(len(key) > MAX_KEY_BYTES // 4 for key in keys if key is not None)
