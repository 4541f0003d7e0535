"""Reading of records' values: JSON as it is, JSON that has to be opened first, and formats that others bring along.

Plain JSON needs none of this; `RecordDecoder` decodes it by itself.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Protocol

from tidemill_contract.events.decoder import Decoded, EventDecoder
from tidemill_contract.events.event_times import EventTimes
from tidemill_contract.events.formats.csv_lines import CsvLines, flat
from tidemill_contract.events.formats.envelopes import envelope_for
from tidemill_contract.events.formats.framing import Framed
from tidemill_contract.events.formats.opening import Opened, Opener
from tidemill_contract.events.kept_json import JSON
from tidemill_contract.events.shapes import Leaf
from tidemill_contract.events.verdicts import InvalidEvent
from tidemill_contract.resource.source import FieldSpec
from tidemill_contract.resource.spec import PipelineSpec


class Reader(Protocol):
    """Decodes and judges the values of one pipeline's records.

    Attributes:
        times: which event times are valid.
    """

    times: EventTimes

    def read(self, raws: Sequence[bytes], now_ms: int, tombstones: Collection[int]) -> Decoded:
        """Decode the values of records at wall time `now_ms`; `tombstones` are the places of those without a value."""

    def values(self, events: Sequence[Any], name: str) -> list[Any]:
        """A field's value in each event."""

    def put(self, events: Sequence[Any], name: str, values: Sequence[Any]) -> None:
        """Set a field that is no member of the events."""

    def as_json(self, events: Sequence[Any], raws: Sequence[bytes]) -> list[str]:
        """The fields of each event as a JSON object; `raws` are the records' values."""

    def document(self, raw: bytes) -> bytes:
        """Return the event of a valid record as JSON."""


class OpenedReader:
    """Reads records that are opened into JSON.

    Attributes:
        times: which event times are valid.
    """

    def __init__(self, spec: PipelineSpec, opener: Opener, *, exact: bool, array: Leaf | None = None) -> None:
        """Prepare.

        Args:
            spec: the pipeline's, with paths as they are in the documents of the opener.
            opener: opens the records.
            exact: as of `EventDecoder`.
            array: as of `EventDecoder`.
        """
        self._opener = opener
        self._events = EventDecoder(spec, exact=exact, array=array)
        self.times = self._events.times
        self._fields = {field.name: field for field in spec.source.fields if field.origin == "envelope"}
        members = [field.model_copy(update={"taken_from": None}) for field in self._fields.values()]
        self._keeps_json = any(field.type == JSON for field in spec.source.fields)
        self._around = EventDecoder(only(spec, members), exact=exact) if members else None

    def read(self, raws: Sequence[bytes], now_ms: int, tombstones: Collection[int]) -> Decoded:
        """Decode the values of records, see `Reader`."""
        opened = self._opener.open(raws, tombstones)
        decoded = self._events.decode_all(opened.documents, now_ms)
        if self._around is not None:
            found = self._around.decode_all(opened.envelopes, now_ms)
            at = range(len(opened.at))
            decoded = joined(decoded, at, found, by=self._around, into=self._events, fields=self._fields)
        return decoded if len(opened.at) == len(raws) else _spread(decoded, opened, len(raws))

    def values(self, events: Sequence[Any], name: str) -> list[Any]:
        """A field's value in each event."""
        return self._events.values(events, name)

    def put(self, events: Sequence[Any], name: str, values: Sequence[Any]) -> None:
        """Set a field that is no member of the events."""
        self._events.put(events, name, values)

    def as_json(self, events: Sequence[Any], raws: Sequence[bytes]) -> list[str]:
        """The fields of each event as a JSON object, see `Reader`."""
        if self._keeps_json:
            raws = self._opener.open(raws).documents
        return self._events.as_json(events, raws)

    def document(self, raw: bytes) -> bytes:
        """Return the event of a valid record as JSON, see `Reader`."""
        return self._opener.open([raw]).documents[0]


def reader_for(spec: PipelineSpec, *, exact: bool, array: Leaf | None = None) -> Reader | None:
    """What reads the values of a pipeline's records; None: they are plain JSON. Arguments as of `EventDecoder`.

    Raises:
        ValueError: the format needs a reader from outside.
    """
    written = spec.source.written
    match written.type:
        case "json":
            if written.envelope == "none" and written.deletes == "deadLetter":
                return None
            return OpenedReader(spec, envelope_for(written), exact=exact, array=array)
        case "jsonSchema":
            return OpenedReader(spec, Framed(envelope_for(written)), exact=exact, array=array)
        case "csv":
            return OpenedReader(flat(spec), CsvLines(spec), exact=exact)
    raise ValueError(f"{written.type} is read by processors only")


def only(spec: PipelineSpec, fields: Sequence[FieldSpec]) -> PipelineSpec:
    """The pipeline as if only these fields were its events."""
    time = spec.source.event_time
    if time.field not in {field.name for field in fields}:
        time = time.model_copy(update={"field": None})
    update = {"fields": list(fields), "strict": False, "event_time": time, "format": None}
    return spec.model_copy(update={"source": spec.source.model_copy(update=update)})


class _Fields(Protocol):
    def put(self, events: Sequence[Any], name: str, values: Sequence[Any]) -> None: ...


def joined(
    decoded: Decoded,
    at: Sequence[int],
    found: Decoded,
    *,
    by: EventDecoder,
    into: _Fields,
    fields: Mapping[str, FieldSpec],
) -> Decoded:
    """Put the fields that another decoder has read into events.

    Args:
        decoded: the events.
        at: the places of those that are meant.
        found: what the other decoder has read for each of them.
        by: the other decoder.
        into: sets fields of the events.
        fields: those that the other decoder reads, by name.
    """
    events, invalid, micros = list(decoded.events), dict(decoded.invalid), decoded.micros
    for place, refusal in found.invalid.items():
        invalid.setdefault(at[place], _located(refusal, fields))
    if found.micros is not None and by.event_time_field is not None:
        micros = [0] * len(events)
        for index, each in zip(at, found.micros, strict=True):
            micros[index] = each
    right = [(events[index], each) for index, each in zip(at, found.events, strict=True) if index not in invalid]
    for name in by.names:
        into.put([event for event, _ in right], name, by.values([each for _, each in right], name))
    events = [None if index in invalid else event for index, event in enumerate(events)]
    return Decoded(events, invalid, micros, decoded.ignored)


def _located(verdict: InvalidEvent, fields: Mapping[str, FieldSpec]) -> InvalidEvent:
    field = fields.get(verdict.field or "")
    if field is None:
        return verdict
    return InvalidEvent(verdict.reason, verdict.field, f"{verdict.detail}; it is read from {field.place}")


def _spread(decoded: Decoded, opened: Opened, records: int) -> Decoded:
    """What was decoded of records that have an event, by the places of all records."""
    events: list[Any] = [None] * records
    micros = None if decoded.micros is None else [0] * records
    for place, index in enumerate(opened.at):
        events[index] = decoded.events[place]
        if micros is not None and decoded.micros is not None:
            micros[index] = decoded.micros[place]
    invalid = {opened.at[place]: verdict for place, verdict in decoded.invalid.items()} | opened.invalid
    return Decoded(events, dict(sorted(invalid.items())), micros, opened.ignored)
