"""Decodes and validates events. Ingest and processor use the same decoder, so they always agree.

Postgres can store every value of a valid event, so no later step refuses the event. An invalid event gets a verdict
with a reason, the field and a detail. msgspec reads every event: a vectorised reader would read some malformed values
differently. The events of a batch are checked together. If this check finds anything unusual, each event is checked by
itself (`judge`).
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from itertools import chain
from typing import Any

import msgspec

from tidemill_contract.events.fields import MAX_EVENT_BYTES, MAX_KEY_BYTES, EventFields
from tidemill_contract.events.judge import EventJudge
from tidemill_contract.events.members import is_utf8, may_be_rounded
from tidemill_contract.events.shapes import Leaf
from tidemill_contract.events.timestamps import may_be_lenient
from tidemill_contract.events.types import all_epoch_ms, micros_of
from tidemill_contract.events.verdicts import FIELD_HEADER, QUARANTINE_PREFIX, REASON_HEADER, InvalidEvent, Reason
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

_TOGETHER, _GROUP = 512, 64


@dataclass(frozen=True)
class Decoded:
    """A decoded batch of events.

    Attributes:
        events: the events in the order of the records; None for an invalid event.
        invalid: the verdicts on invalid events, by index.
        micros: for each event, the microseconds of its event time within the millisecond. None if all are 0, or if the
            decoder is not `exact`.
        ignored: the indexes of records that `source.format.deletes` ignores; their events are None.
    """

    events: list[Any]
    invalid: dict[int, InvalidEvent]
    micros: list[int] | None = None
    ignored: frozenset[int] = frozenset()


class EventDecoder:
    """Decodes and validates the events of one pipeline.

    An event is a msgspec Struct. `values` reads its fields. Without paths, each field is an attribute. Timestamps are
    epoch milliseconds, and decimals are scaled integers. An absent optional field has its default value, or None.
    """

    def __init__(
        self, spec: PipelineSpec, *, exact: bool = False, array: Leaf | None = None, part: bool = False
    ) -> None:
        """Create the decoder of a pipeline.

        Args:
            spec: the pipeline's spec.
            exact: whether to compute `Decoded.micros`.
            array: the exploded array, if the decoder reads the records that contain it.
            part: whether the events are parts of records, such as headers or elements of an exploded array. Parts are
                not checked for envelopes.
        """
        self._fields = fields = EventFields(spec, exact=exact, array=array, part=part)
        self._judge = EventJudge(fields)
        self.names, self.event_time_field, self.times = fields.names, fields.event_time, fields.times
        self.type = fields.shape.type
        self._decode = fields.decode

    def values(self, events: Sequence[Any], name: str) -> list[Any]:
        """Return a field's value in each event."""
        return self._fields.shape.values(events, name)

    def put(self, events: Sequence[Any], name: str, values: Sequence[Any]) -> None:
        """Set the values of a field that is not read from the events."""
        self._fields.shape.put(events, name, values)

    def as_json(self, events: Sequence[Any], raws: Sequence[bytes]) -> list[str]:
        """Return each event as a JSON object, in which the fields have their own names.

        `raws` are the bytes of the events. Decimals are written as JSON strings.
        """
        texts = map(msgspec.json.encode, self._fields.shape.flattened(events, self._fields.decimals.shown))
        if self._fields.kept is not None:
            texts = map(self._fields.kept.added, texts, raws)
        return [text.decode() for text in texts]

    def decode(self, raw: bytes, now_ms: int) -> Any:
        """Return the event in `raw`, validated at wall time `now_ms` (epoch milliseconds).

        Raises:
            InvalidEvent: the bytes are not a valid event.
        """
        return self._judge.judged(raw, now_ms)[0]

    def refusal(self, raw: bytes, now_ms: int) -> InvalidEvent | None:
        """Return the verdict on `raw` at wall time `now_ms` (epoch milliseconds), or None if the event is valid."""
        try:
            self._judge.judged(raw, now_ms)
        except InvalidEvent as verdict:
            return verdict
        return None

    def decode_batch(
        self, raws: Sequence[bytes], now_ms: int, *, largest: int | None = None
    ) -> tuple[list[Any], dict[int, InvalidEvent]]:
        """Return the events and the verdicts of `decode_all`."""
        decoded = self.decode_all(raws, now_ms, largest=largest)
        return decoded.events, decoded.invalid

    def decode_all(self, raws: Sequence[bytes], now_ms: int, *, largest: int | None = None) -> Decoded:
        """Decode a batch. The events and verdicts are the same as those of `decode`.

        First, the bytes of all events together are searched for anything unusual. If nothing is found, the checks of
        single events are skipped. If something is found, the search is repeated for small groups of events. Only the
        events of groups with something unusual are decoded one by one.

        Args:
            raws: the records' bytes.
            now_ms: wall time, epoch milliseconds.
            largest: the size of the largest record in bytes, or None to compute it.
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
                    event, micro = self._judge.judged(raw, now_ms)
                except InvalidEvent as verdict:
                    invalid[index] = verdict
                events.append(event)
                micros.append(micro)
        return Decoded(events, invalid, micros if self._fields.exact else None)

    def decode_plain(self, raws: Sequence[bytes], now_ms: int, largest: int) -> Decoded | None:
        """Decode a batch and check its events together. Return None if the events must be checked one by one."""
        if not 0 < largest <= MAX_EVENT_BYTES:
            return None
        decode = self._decode
        try:
            events = [decode(raw) for raw in raws]
        except Exception:  # whatever the error is, the check of single events finds the event that causes it
            return None
        return self.plain(events, raws, now_ms, largest, whole=True)

    def plain(
        self, events: list[Any], raws: Sequence[bytes], now_ms: int, largest: int, *, whole: bool
    ) -> Decoded | None:
        """Check events together. Return them if all are valid, or None if they must be checked one by one.

        Args:
            events: the events that the JSON reader returned for `raws`.
            raws: the bytes of the records.
            now_ms: wall time, epoch milliseconds.
            largest: the size of the largest record in bytes.
            whole: whether each record is one event.
        """
        micros, rounded = None, None
        try:
            # Events are joined in small parts, because these fit into the CPU's cache and need no new memory.
            parts = [b"\n".join(raws[i : i + _TOGETHER]) for i in range(0, len(raws), _TOGETHER)]
            if self._unusual(events, parts, largest):
                return None
            for name in self._fields.timestamps:
                values = self._fields.shape.values(events, name)
                own = name == self._fields.event_time
                if name in self._fields.formats:
                    exact = self._fields.formats[name].all_micros(values)
                    values = [None if each is None else each // 1000 for each in exact]
                    if own and self._fields.exact:
                        micros = [(each or 0) % 1000 for each in exact]
                    self._fields.shape.put(events, name, values)
                    known = [value for value in values if value is not None]
                    if known and not self._fields.times.surely(known, own=own, now_ms=now_ms):
                        return None
                    continue
                kinds = set(map(type, values))
                if kinds != {int}:
                    if rounded is None and dt.datetime in kinds:
                        # It is safe to read the events again: no field with a format has been converted yet (see
                        # `EventFields.timestamps`).
                        rounded = any(map(may_be_rounded, parts))
                        if rounded and not whole:
                            return None
                        if rounded:
                            events = [self._judge.cut(raw, event) for raw, event in zip(raws, events, strict=True)]
                            values = self._fields.shape.values(events, name)
                    if own and self._fields.exact:
                        micros = list(map(micros_of, values))
                    values = all_epoch_ms(values, kinds)
                    self._fields.shape.put(events, name, values)
                    if type(None) in kinds:
                        values = [value for value in values if value is not None]
                if values and not self._fields.times.surely(values, own=own, now_ms=now_ms):
                    return None
            self._fields.decimals.scale_all(self._fields.shape, events)
        except Exception:  # as in `decode_plain`
            return None
        return Decoded(events, {}, micros)

    def _unusual(self, events: list[Any], parts: list[bytes], largest: int) -> bool:
        """Return whether an event may be an envelope, or contain a value that `EventJudge` refuses."""
        # The search for a single backslash comes first, because it is much faster than the search for an escape of six
        # bytes, and most events have no backslash.
        if any(b"\\" in part and b"\\u0000" in part for part in parts):
            return True
        # The JSON reader accepts any bytes in members that it skips.
        if not all(part.isascii() or is_utf8(part) for part in parts):
            return True
        if self._fields.takes_any and any(b'"payload"' in part or b'"op"' in part for part in parts):
            return True
        for name in self._fields.counts:
            kinds = set(map(type, self._fields.shape.values(events, name)))
            if Decimal in kinds and any(map(may_be_lenient, parts)):
                return True
        if largest <= MAX_KEY_BYTES:
            return False
        keys = chain.from_iterable(self._fields.shape.values(events, name) for name in self._fields.group_strings)
        return any(len(key) > MAX_KEY_BYTES // 4 for key in keys if key is not None)
