"""Records: an event with what is around it and beside it, an envelope, the record's key, headers, time and place.

Texts of the key and of headers are written as the members of an event of their own, so that one decoder judges both
and gives the same reasons.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Protocol

import msgspec

from tidemill_contract.events.decoder import Decoded, EventDecoder
from tidemill_contract.events.envelopes import Opened, envelope_for
from tidemill_contract.events.verdicts import InvalidEvent, Reason
from tidemill_contract.resource.spec import FieldSpec, PipelineSpec

_TEXTS = ("key", "header")
_MOST_KNOWN, _KNOWN_BYTES = 4_096, 1_024
"""So many different texts are remembered as JSON, as headers repeat; none that are longer."""
_NUMBER = re.compile(rb"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?")


class Record(Protocol):
    """A record, as far as fields are read from it."""

    def value(self) -> bytes | None: ...  # noqa: D102
    def key(self) -> bytes | None: ...  # noqa: D102
    def headers(self) -> Sequence[tuple[str, bytes | None]] | None: ...  # noqa: D102
    def partition(self) -> int | None: ...  # noqa: D102
    def offset(self) -> int | None: ...  # noqa: D102
    def timestamp(self) -> tuple[int, int | None]: ...  # noqa: D102


class RecordDecoder:
    """Decodes and judges the records of one pipeline: `EventDecoder`, and the fields beside events.

    Attributes:
        event_time_field: the field that has the event's time; None: the record's own timestamp counts.
        headers: names of the headers that fields are read from.
        beside: whether there are fields beside events.
    """

    def __init__(self, spec: PipelineSpec, *, exact: bool = False) -> None:
        """Prepare; arguments as those of `EventDecoder`."""
        fields = spec.source.fields
        self._events = EventDecoder(spec, exact=exact)
        self.event_time_field = spec.source.event_time.field
        self._own = [field for field in fields if field.origin in ("timestamp", "partition", "offset")]
        self._texts = {field.name: field for field in fields if field.origin in _TEXTS}
        self._places = tuple(field.header if field.origin == "header" else None for field in self._texts.values())
        self._known: dict[tuple[bytes | None, ...], bytes] = {}
        self.headers = tuple(field.header for field in self._texts.values() if field.origin == "header")
        texts = [field.model_copy(update={"taken_from": None, "path": None}) for field in self._texts.values()]
        self._beside = EventDecoder(_only(spec, texts), exact=exact) if texts else None
        around = {field.name: field for field in fields if field.origin == "envelope"}
        members = [field.model_copy(update={"taken_from": None}) for field in around.values()]
        self._around = EventDecoder(_only(spec, members), exact=exact) if members else None
        self._elsewhere = self._texts | around
        self._envelope = envelope_for(spec.source.written)
        self.beside = bool(self._own or self._texts)

    def decode_all(
        self, raws: Sequence[bytes], now_ms: int, *, largest: int | None = None, records: Sequence[Record] = ()
    ) -> Decoded:
        """Decode many, see `EventDecoder.decode_all`; without records, fields beside events are null as yet."""
        if self._envelope is None:
            decoded = self._events.decode_all(raws, now_ms, largest=largest)
        else:
            decoded = self._decode_opened(self._envelope.open(raws, _tombstones(raws, records)), len(raws), now_ms)
        return self.complete(decoded, records, now_ms) if records and self.beside else decoded

    def _decode_opened(self, opened: Opened, records: int, now_ms: int) -> Decoded:
        """Decode the events of so many records, and the fields around them."""
        decoded = self._events.decode_all(opened.documents, now_ms)
        if self._around is not None:
            found = self._around.decode_all(opened.envelopes, now_ms)
            decoded = self._joined(decoded, range(len(opened.at)), found, self._around)
        return decoded if len(opened.at) == records else _spread(decoded, opened, records)

    def complete(self, decoded: Decoded, records: Sequence[Record], now_ms: int) -> Decoded:
        """Set and judge the fields beside events, of which there is one a record."""
        if not self.beside:
            return decoded
        at = [index for index, event in enumerate(decoded.events) if event is not None]
        if self._beside is not None:
            invalid: dict[int, InvalidEvent] = {}
            found = self._read_texts(at, invalid, records, now_ms)
            decoded = replace(decoded, invalid=decoded.invalid | invalid)
            decoded = self._joined(decoded, at, found, self._beside)
            at = [index for index in at if index not in decoded.invalid]
        for field in self._own:
            values = [_own(records[index], field.origin) for index in at]
            self._events.put([decoded.events[index] for index in at], field.name, values)
        return decoded

    def _joined(self, decoded: Decoded, at: Sequence[int], found: Decoded, reader: EventDecoder) -> Decoded:
        """Put the fields that another decoder has read into the events at these places."""
        events, invalid, micros = list(decoded.events), dict(decoded.invalid), decoded.micros
        for place, refusal in found.invalid.items():
            invalid.setdefault(at[place], self._located(refusal))
        if found.micros is not None and reader.event_time_field is not None:
            micros = [0] * len(events)
            for index, each in zip(at, found.micros, strict=True):
                micros[index] = each
        right = [(events[index], each) for index, each in zip(at, found.events, strict=True) if index not in invalid]
        for name in reader.names:
            self._events.put([event for event, _ in right], name, reader.values([each for _, each in right], name))
        events = [None if index in invalid else event for index, event in enumerate(events)]
        return Decoded(events, invalid, micros, decoded.ignored)

    def _read_texts(
        self, at: Sequence[int], invalid: dict[int, InvalidEvent], records: Sequence[Record], now_ms: int
    ) -> Decoded:
        """The texts of the records at these places as events; verdicts are added to `invalid`."""
        assert self._beside is not None  # noqa: S101 - asked by the caller
        documents = []
        for index in at:
            try:
                documents.append(self._document(records[index]))
            except InvalidEvent as verdict:
                invalid[index] = verdict
                documents.append(b"")  # is refused below as well, after this
        return self._beside.decode_all(documents, now_ms)

    def _document(self, record: Record) -> bytes:
        # Of several headers of one name the last counts, as for Kafka's clients. The key has no name.
        held: dict[str | None, bytes | None] = dict(record.headers() or ())
        held[None] = record.key()
        texts = tuple(map(held.get, self._places))
        document = self._known.get(texts)
        if document is None:
            document = self._written(texts)
            if len(document) <= _KNOWN_BYTES:
                if len(self._known) >= _MOST_KNOWN:
                    self._known.clear()
                self._known[texts] = document
        return document

    def _written(self, texts: Sequence[bytes | None]) -> bytes:
        found = zip(self._texts.items(), texts, strict=True)
        members = {name: msgspec.Raw(_as_json(text, field)) for (name, field), text in found if text is not None}
        return msgspec.json.encode(members)

    def _located(self, verdict: InvalidEvent) -> InvalidEvent:
        field = self._elsewhere.get(verdict.field or "")
        if field is None:
            return verdict
        return InvalidEvent(verdict.reason, verdict.field, f"{verdict.detail}; it is read from {field.place}")

    def refusal(self, raw: bytes, now_ms: int, record: Record | None = None) -> InvalidEvent | None:
        """The verdict on a record at wall time `now_ms` if it is not a valid event."""
        decoded = self.decode_all([raw], now_ms, records=[] if record is None else [record])
        return decoded.invalid.get(0)

    def values(self, events: Sequence[Any], name: str) -> list[Any]:
        """A field's value in each event."""
        return self._events.values(events, name)

    def as_json(self, events: Sequence[Any], raws: Sequence[bytes]) -> list[str]:
        """The fields of each event as a JSON object, see `EventDecoder.as_json`."""
        if self._envelope is not None and self._events.keeps_json:
            raws = self._envelope.open(raws).documents
        return self._events.as_json(events, raws)

    def check_record_time(self, record_time_ms: int, now_ms: int) -> None:
        """Judge a record's own time, see `EventTimes.check_record`."""
        self._events.times.check_record(record_time_ms, now_ms)


def _only(spec: PipelineSpec, fields: Sequence[FieldSpec]) -> PipelineSpec:
    """The pipeline as if only these fields were its events."""
    time = spec.source.event_time
    if time.field not in {field.name for field in fields}:
        time = time.model_copy(update={"field": None})
    update = {"fields": list(fields), "strict": False, "event_time": time, "format": None}
    return spec.model_copy(update={"source": spec.source.model_copy(update=update)})


def _tombstones(raws: Sequence[bytes], records: Sequence[Record]) -> list[int]:
    """The places of records without a value, of which the bytes are empty."""
    if b"" not in raws:
        return []
    return [index for index, record in enumerate(records) if not raws[index] and record.value() is None]


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


def _as_json(text: bytes, field: FieldSpec) -> bytes:
    """A text as JSON of the field's type; what is none is a string, which its decoder then refuses."""
    if field.type != "string" and (_NUMBER.fullmatch(text) or text in (b"true", b"false", b"null")):
        return text
    try:
        return msgspec.json.encode(text.decode())
    except UnicodeDecodeError:
        detail = f"{field.place} is not UTF-8; send text"
        raise InvalidEvent(Reason.MISTYPED, field.name, detail) from None


def _own(record: Record, origin: str) -> int | None:
    match origin:
        case "partition":
            return record.partition()
        case "offset":
            return record.offset()
    time = record.timestamp()[1]
    return time if time is not None and time >= 0 else None  # -1: the record has none
