"""Read records that have an envelope or framing, and records in CSV."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Protocol

from tidemill_contract.events.decoder import Decoded, EventDecoder
from tidemill_contract.events.details import with_place
from tidemill_contract.events.fields import with_fields
from tidemill_contract.events.formats.opening import Opened, Opener
from tidemill_contract.events.kept_json import JSON
from tidemill_contract.events.shapes import Leaf
from tidemill_contract.events.verdicts import InvalidEvent
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
        self._keeps_json = any(field.type == JSON for field in spec.source.fields)
        envelope = with_fields(spec, members, strict=False, format=None)
        self._around = EventDecoder(envelope, exact=exact, part=True) if members else None

    def read(self, raws: Sequence[bytes], now_ms: int, tombstones: Collection[int]) -> Decoded:
        """Extract and decode the events in the records."""
        opened = self._opener.open(raws, tombstones)
        decoded = self._events.decode_all(opened.documents, now_ms)
        if self._around is not None:
            decoded_envelopes = self._around.decode_all(opened.envelopes, now_ms)
            at = range(len(opened.at))
            decoded = joined(decoded, at, decoded_envelopes, by=self._around, into=self._events, fields=self._fields)
        return decoded if len(opened.at) == len(raws) else _spread(decoded, opened, len(raws))

    def values(self, events: Sequence[Any], name: str) -> list[Any]:
        """Return the field's values."""
        return self._events.values(events, name)

    def put(self, events: Sequence[Any], name: str, values: Sequence[Any]) -> None:
        """Set the field's values."""
        self._events.put(events, name, values)

    def as_json(self, events: Sequence[Any], raws: Sequence[bytes]) -> list[str]:
        """Return the events as JSON."""
        if self._keeps_json:
            raws = self._opener.open(raws).documents
        return self._events.as_json(events, raws)

    def document(self, raw: bytes) -> bytes:
        """Return the record's event."""
        return self._opener.open([raw]).documents[0]


class _Fields(Protocol):
    def put(self, events: Sequence[Any], name: str, values: Sequence[Any]) -> None: ...


def joined(
    decoded: Decoded,
    at: Sequence[int],
    other: Decoded,
    *,
    by: EventDecoder,
    into: _Fields,
    fields: Mapping[str, FieldSpec],
) -> Decoded:
    """Add fields and errors from another decoder (`by`) to decoded events.

    Item `i` of `other` has the fields or the error of the event at index `at[i]`.
    """
    events, invalid, micros = list(decoded.events), dict(decoded.invalid), decoded.micros
    for place, refusal in other.invalid.items():
        invalid.setdefault(at[place], _located(refusal, fields))
    if other.micros is not None and by.event_time_field is not None:
        micros = [0] * len(events)
        for index, each in zip(at, other.micros, strict=True):
            micros[index] = each
    right = [(events[index], each) for index, each in zip(at, other.events, strict=True) if index not in invalid]
    for name in by.names:
        into.put([event for event, _ in right], name, by.values([each for _, each in right], name))
    events = [None if index in invalid else event for index, event in enumerate(events)]
    return Decoded(events, invalid, micros, decoded.ignored)


def _located(verdict: InvalidEvent, fields: Mapping[str, FieldSpec]) -> InvalidEvent:
    field = fields.get(verdict.field or "")
    if field is None:
        return verdict
    return with_place(verdict, field.member, field.place)


def _spread(decoded: Decoded, opened: Opened, records: int) -> Decoded:
    events: list[Any] = [None] * records
    micros = None if decoded.micros is None else [0] * records
    for place, index in enumerate(opened.at):
        events[index] = decoded.events[place]
        if micros is not None and decoded.micros is not None:
            micros[index] = decoded.micros[place]
    invalid = {opened.at[place]: verdict for place, verdict in decoded.invalid.items()} | opened.invalid
    return Decoded(events, dict(sorted(invalid.items())), micros, opened.ignored)
