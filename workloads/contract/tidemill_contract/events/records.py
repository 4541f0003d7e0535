"""Decode whole records: the event, the envelope, and the record's key, headers, timestamp and offset."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any, Protocol

import msgspec

from tidemill_contract.events.decoder import Decoded, EventDecoder
from tidemill_contract.events.details import beyond_years, failed
from tidemill_contract.events.elements import LIST, ElementDecoder, ExplodedArray
from tidemill_contract.events.event_times import MAX_TIMESTAMP_MS
from tidemill_contract.events.fields import with_fields
from tidemill_contract.events.formats.opened import joined
from tidemill_contract.events.formats.readers import Reader, reader_for
from tidemill_contract.events.formats.texts import as_json
from tidemill_contract.events.verdicts import InvalidEvent
from tidemill_contract.resource.spec import PipelineSpec

_TEXTS = ("key", "header")
_MOST_KNOWN, _KNOWN_BYTES = 4_096, 1_024
"""The maximum number of cached JSON texts (headers and keys), and the maximum size of one text in bytes."""


class Record(Protocol):
    """The parts of a Kafka record from which fields are read."""

    def value(self) -> bytes | None: ...  # noqa: D102
    def key(self) -> bytes | None: ...  # noqa: D102
    def headers(self) -> Sequence[tuple[str, bytes | None]] | None: ...  # noqa: D102
    def partition(self) -> int | None: ...  # noqa: D102
    def offset(self) -> int | None: ...  # noqa: D102
    def timestamp(self) -> tuple[int, int | None]: ...  # noqa: D102


class RecordDecoder:
    """Decodes and validates one pipeline's records: the event, and the fields from outside the event.

    Attributes:
        event_time_field: the field with the event time, or None if the record's timestamp is the event time.
        headers: the names of the headers from which fields are read.
        beside: whether any field is read from outside the record's value, such as from a header.
    """

    def __init__(self, spec: PipelineSpec, *, exact: bool = False, reader: Reader | None = None) -> None:
        self._spec, self._exact = spec, exact
        self._array, leaf = ExplodedArray.of(spec), None
        if self._array is not None:
            spec, leaf = self._array.record, self._array.leaf
        reader = reader_for(spec, exact=exact, array=leaf) if reader is None else reader
        self._events = EventDecoder(spec, exact=exact, array=leaf) if reader is None else reader
        fields = spec.source.fields
        self.event_time_field = spec.source.event_time.field
        self._own_value = _own_in_topic if spec.source.several else _own
        self._own = [field for field in fields if field.origin in ("timestamp", "partition", "offset")]
        self._texts = {field.name: field for field in fields if field.origin in _TEXTS}
        self._places = tuple(field.header if field.origin == "header" else None for field in self._texts.values())
        self._known: dict[tuple[bytes | None, ...], bytes] = {}
        self.headers = tuple(field.header for field in self._texts.values() if field.origin == "header")
        texts = [field.model_copy(update={"taken_from": None, "path": None}) for field in self._texts.values()]
        texts_alone = with_fields(spec, texts, strict=False, format=None)
        self._beside = EventDecoder(texts_alone, exact=exact, part=True) if texts else None
        self.beside = bool(self._own or self._texts)

    @cached_property
    def elements(self) -> ElementDecoder:
        """The decoder for the elements of the exploded array."""
        return ElementDecoder(self._spec, exact=self._exact)

    @cached_property
    def _whole(self) -> EventDecoder | None:
        kind = self.elements.kind
        if self._array is None or kind is None or not isinstance(self._events, EventDecoder):
            return None
        return EventDecoder(self._array.record, exact=self._exact, array=replace(self._array.leaf, kind=kind))

    def decode_all(
        self, raws: Sequence[bytes], now_ms: int, *, largest: int | None = None, records: Sequence[Record] = ()
    ) -> Decoded:
        """Decode events as in `EventDecoder.decode_all`.

        If `records` is empty, fields from outside the event (such as headers) are null.
        """
        if isinstance(self._events, EventDecoder):
            decoded = self._events.decode_all(raws, now_ms, largest=largest)
        else:
            decoded = self._events.read(raws, now_ms, _tombstones(raws, records))
        if self._array is not None:
            valid = [event for event in decoded.events if event is not None]
            decoded = self._array.judged(decoded, self.values(valid, LIST), raws, self.document)
        return self.complete(decoded, records, now_ms) if records and self.beside else decoded

    def decode_whole(
        self, raws: Sequence[bytes], now_ms: int, *, largest: int, records: Sequence[Record]
    ) -> Decoded | None:
        """Decode records and array elements in one pass. If the records must be decoded separately, return None."""
        if self._array is None or self._whole is None:
            return None
        decoded = self._whole.decode_plain(raws, now_ms, largest)
        if decoded is None or not self._array.fits(self.values(decoded.events, LIST), largest):
            return None
        return self.complete(decoded, records, now_ms)

    def complete(self, decoded: Decoded, records: Sequence[Record], now_ms: int) -> Decoded:
        """Set and validate fields that are not read from the events, but for example from headers."""
        if not self.beside:
            return decoded
        at = [index for index, event in enumerate(decoded.events) if event is not None]
        if self._beside is not None:
            invalid: dict[int, InvalidEvent] = {}
            decoded_texts = self._read_texts(at, invalid, records, now_ms)
            decoded = replace(decoded, invalid=decoded.invalid | invalid)
            decoded = joined(decoded, at, decoded_texts, by=self._beside, into=self._events, fields=self._texts)
            at = [index for index in at if index not in decoded.invalid]
        for field in self._own:
            values = [self._own_value(records[index], field.origin) for index in at]
            if field.origin == "timestamp":
                decoded, at, values = _without_far_times(decoded, at, values, field.name)
            self._events.put([decoded.events[index] for index in at], field.name, values)
        return decoded

    def _read_texts(
        self, at: Sequence[int], invalid: dict[int, InvalidEvent], records: Sequence[Record], now_ms: int
    ) -> Decoded:
        assert self._beside is not None  # noqa: S101 - checked by the caller
        documents = []
        for index in at:
            try:
                documents.append(self._document(records[index]))
            except InvalidEvent as verdict:
                invalid[index] = verdict
                documents.append(b"")
            except Exception as error:
                invalid[index] = failed(error)
                documents.append(b"")
        return self._beside.decode_all(documents, now_ms)

    def _document(self, record: Record) -> bytes:
        # If several headers have the same name, the last header counts, as in Kafka's clients.
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
        field_texts = zip(self._texts.items(), texts, strict=True)
        members = {name: msgspec.Raw(as_json(text, field)) for (name, field), text in field_texts if text is not None}
        return msgspec.json.encode(members)

    def refusal(self, raw: bytes, now_ms: int, record: Record | None = None) -> InvalidEvent | None:
        """Return why a record is invalid, or None if the record is valid."""
        decoded = self.decode_all([raw], now_ms, records=[] if record is None else [record])
        return decoded.invalid.get(0)

    def values(self, events: Sequence[Any], name: str) -> list[Any]:
        """Return the field's values."""
        return self._events.values(events, name)

    def as_json(self, events: Sequence[Any], raws: Sequence[bytes]) -> list[str]:
        """Return the events as JSON."""
        return self._events.as_json(events, raws)

    def document(self, raw: bytes) -> bytes:
        """Return the record's event."""
        return raw if isinstance(self._events, EventDecoder) else self._events.document(raw)

    def check_record_time(self, record_time_ms: int, now_ms: int) -> None:
        """Raise InvalidEvent if a record's timestamp is not a valid event time."""
        self._events.times.check_record(record_time_ms, now_ms)


def _tombstones(raws: Sequence[bytes], records: Sequence[Record]) -> list[int]:
    if b"" not in raws:
        return []
    return [index for index, record in enumerate(records) if not raws[index] and record.value() is None]


def _without_far_times(
    decoded: Decoded, at: Sequence[int], times: Sequence[int | None], name: str
) -> tuple[Decoded, list[int], list[int | None]]:
    far = {index for index, time in zip(at, times, strict=True) if time is not None and time > MAX_TIMESTAMP_MS}
    if not far:
        return decoded, list(at), list(times)
    kept = [(index, time) for index, time in zip(at, times, strict=True) if index not in far]
    refused = {index: beyond_years(name, time) for index, time in zip(at, times, strict=True) if index in far}
    events = [None if index in far else event for index, event in enumerate(decoded.events)]
    invalid = dict(sorted((decoded.invalid | refused).items()))
    return replace(decoded, events=events, invalid=invalid), [i for i, _ in kept], [time for _, time in kept]


def _own_in_topic(record: Record, origin: str) -> int | None:
    if origin != "partition":
        return _own(record, origin)
    in_topic: int | None = getattr(record, "topic_partition", record.partition)()
    return in_topic


def _own(record: Record, origin: str) -> int | None:
    match origin:
        case "partition":
            return record.partition()
        case "offset":
            return record.offset()
    time = record.timestamp()[1]
    return time if time is not None and time >= 0 else None  # a negative value means that the record has no timestamp
