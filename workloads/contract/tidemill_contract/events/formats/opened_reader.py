"""Read records that have an envelope or framing, and records in CSV."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Protocol

from tidemill_contract.events.decoder import DecodedBatch, EventDecoder
from tidemill_contract.events.event_errors import with_place
from tidemill_contract.events.fields import with_fields
from tidemill_contract.events.formats.opener import OpenedRecords, Opener
from tidemill_contract.events.invalid_events import InvalidEvent
from tidemill_contract.events.json_fields import JSON
from tidemill_contract.events.shapes import Leaf
from tidemill_contract.resource.source import FieldSpec
from tidemill_contract.resource.spec import PipelineSpec


class OpenedReader:
    """Reads records that an `Opener` converts to JSON events."""

    def __init__(self, spec: PipelineSpec, opener: Opener, *, exact: bool, array: Leaf | None = None) -> None:
        self._opener = opener
        self._events = EventDecoder(spec, exact=exact, array=array)
        self.times = self._events.times
        self._fields = {field.name: field for field in spec.source.fields if field.origin == "envelope"}
        members = [field.model_copy(update={"taken_from": None}) for field in self._fields.values()]
        self._has_json_fields = any(field.type == JSON for field in spec.source.fields)
        envelope = with_fields(spec, members, strict=False, format=None)
        self._envelope_decoder = EventDecoder(envelope, exact=exact, is_part=True) if members else None

    def read(self, raws: Sequence[bytes], now_ms: int, tombstones: Collection[int]) -> DecodedBatch:
        """Extract and decode the events in the records."""
        opened = self._opener.open(raws, tombstones)
        decoded = self._events.decode_all(opened.documents, now_ms)
        if self._envelope_decoder is not None:
            decoded_envelopes = self._envelope_decoder.decode_all(opened.envelopes, now_ms)
            indexes = range(len(opened.indexes))
            decoded = join_fields(
                decoded,
                indexes,
                decoded_envelopes,
                decoder=self._envelope_decoder,
                target=self._events,
                fields=self._fields,
            )
        return decoded if len(opened.indexes) == len(raws) else _align_to_records(decoded, opened, len(raws))

    def values(self, events: Sequence[Any], name: str) -> list[Any]:
        """Return the field's values."""
        return self._events.values(events, name)

    def put(self, events: Sequence[Any], name: str, values: Sequence[Any]) -> None:
        """Set the field's values."""
        self._events.put(events, name, values)

    def as_json(self, events: Sequence[Any], raws: Sequence[bytes]) -> list[str]:
        """Return the events as JSON."""
        if self._has_json_fields:
            raws = self._opener.open(raws).documents
        return self._events.as_json(events, raws)

    def document(self, raw: bytes) -> bytes:
        """Return the record's event."""
        return self._opener.open([raw]).documents[0]


class _FieldWriter(Protocol):
    def put(self, events: Sequence[Any], name: str, values: Sequence[Any]) -> None: ...


def join_fields(
    decoded: DecodedBatch,
    indexes: Sequence[int],
    other: DecodedBatch,
    *,
    decoder: EventDecoder,
    target: _FieldWriter,
    fields: Mapping[str, FieldSpec],
) -> DecodedBatch:
    """Add fields and errors from another decoder to decoded events.

    Item `i` of `other` has the fields or the error of the event at index `indexes[i]`.
    """
    events, invalid, micros = list(decoded.events), dict(decoded.invalid), decoded.micros
    for position, error in other.invalid.items():
        invalid.setdefault(indexes[position], _with_place_of_field(error, fields))
    if other.micros is not None and decoder.event_time_field is not None:
        micros = [0] * len(events)
        for index, each in zip(indexes, other.micros, strict=True):
            micros[index] = each
    pairs = [(events[index], each) for index, each in zip(indexes, other.events, strict=True) if index not in invalid]
    for name in decoder.names:
        target.put([event for event, _ in pairs], name, decoder.values([each for _, each in pairs], name))
    events = [None if index in invalid else event for index, event in enumerate(events)]
    return DecodedBatch(events, invalid, micros, decoded.ignored)


def _with_place_of_field(error: InvalidEvent, fields: Mapping[str, FieldSpec]) -> InvalidEvent:
    field = fields.get(error.field or "")
    if field is None:
        return error
    return with_place(error, field.member_path, field.place)


def _align_to_records(decoded: DecodedBatch, opened: OpenedRecords, records: int) -> DecodedBatch:
    events: list[Any] = [None] * records
    micros = None if decoded.micros is None else [0] * records
    for position, index in enumerate(opened.indexes):
        events[index] = decoded.events[position]
        if micros is not None and decoded.micros is not None:
            micros[index] = decoded.micros[position]
    invalid = {opened.indexes[position]: error for position, error in decoded.invalid.items()} | opened.invalid
    return DecodedBatch(events, dict(sorted(invalid.items())), micros, opened.ignored)
