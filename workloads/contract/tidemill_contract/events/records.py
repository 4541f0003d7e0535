"""Decode whole records: the event, the envelope, and the record's key, headers, timestamp and offset."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any, Protocol

import msgspec

from tidemill_contract.events.decoder import DecodedBatch, EventDecoder
from tidemill_contract.events.elements import ELEMENTS_ATTRIBUTE, ElementDecoder, ExplodedArray
from tidemill_contract.events.event_errors import decoder_failure, time_out_of_range
from tidemill_contract.events.event_times import MAX_TIMESTAMP_MS
from tidemill_contract.events.fields import with_fields
from tidemill_contract.events.formats.opened_reader import join_fields
from tidemill_contract.events.formats.readers import Reader, reader_for
from tidemill_contract.events.formats.texts import as_json
from tidemill_contract.events.invalid_events import InvalidEvent
from tidemill_contract.resource.spec import PipelineSpec

_TEXT_ORIGINS = ("key", "header")
_MAX_CACHED_TEXTS, _MAX_CACHED_BYTES = 4_096, 1_024
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
        has_outside_fields: whether any field is read from outside the record's value, such as from a header.
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
        self._read_metadata = _metadata_in_topic if spec.source.is_multi_topic else _metadata
        self._metadata_fields = [field for field in fields if field.origin in ("timestamp", "partition", "offset")]
        self._texts = {field.name: field for field in fields if field.origin in _TEXT_ORIGINS}
        self._text_headers = tuple(field.header if field.origin == "header" else None for field in self._texts.values())
        self._document_cache: dict[tuple[bytes | None, ...], bytes] = {}
        self.headers = tuple(field.header for field in self._texts.values() if field.origin == "header")
        texts = [field.model_copy(update={"taken_from": None, "path": None}) for field in self._texts.values()]
        text_spec = with_fields(spec, texts, strict=False, format=None)
        self._text_decoder = EventDecoder(text_spec, exact=exact, is_part=True) if texts else None
        self.has_outside_fields = bool(self._metadata_fields or self._texts)

    @cached_property
    def elements(self) -> ElementDecoder:
        """The decoder for the elements of the exploded array."""
        return ElementDecoder(self._spec, exact=self._exact)

    @cached_property
    def _element_decoder(self) -> EventDecoder | None:
        kind = self.elements.kind
        if self._array is None or kind is None or not isinstance(self._events, EventDecoder):
            return None
        return EventDecoder(self._array.record, exact=self._exact, array=replace(self._array.leaf, kind=kind))

    def decode_all(
        self, raws: Sequence[bytes], now_ms: int, *, largest: int | None = None, records: Sequence[Record] = ()
    ) -> DecodedBatch:
        """Decode events as in `EventDecoder.decode_all`.

        If `records` is empty, fields from outside the event (such as headers) are null.
        """
        if isinstance(self._events, EventDecoder):
            decoded = self._events.decode_all(raws, now_ms, largest=largest)
        else:
            decoded = self._events.read(raws, now_ms, _tombstones(raws, records))
        if self._array is not None:
            valid = [event for event in decoded.events if event is not None]
            decoded = self._array.validate(decoded, self.values(valid, ELEMENTS_ATTRIBUTE), raws, self.document)
        return self.add_outside_fields(decoded, records, now_ms) if records and self.has_outside_fields else decoded

    def decode_with_elements(
        self, raws: Sequence[bytes], now_ms: int, *, largest: int, records: Sequence[Record]
    ) -> DecodedBatch | None:
        """Decode records and array elements in one pass. If the records must be decoded separately, return None."""
        if self._array is None or self._element_decoder is None:
            return None
        decoded = self._element_decoder.decode_together(raws, now_ms, largest)
        if decoded is None or not self._array.are_all_valid(self.values(decoded.events, ELEMENTS_ATTRIBUTE), largest):
            return None
        return self.add_outside_fields(decoded, records, now_ms)

    def add_outside_fields(self, decoded: DecodedBatch, records: Sequence[Record], now_ms: int) -> DecodedBatch:
        """Set and validate fields that are not read from the events, but for example from headers."""
        if not self.has_outside_fields:
            return decoded
        indexes = [index for index, event in enumerate(decoded.events) if event is not None]
        if self._text_decoder is not None:
            invalid: dict[int, InvalidEvent] = {}
            decoded_texts = self._read_texts(indexes, invalid, records, now_ms)
            decoded = replace(decoded, invalid=decoded.invalid | invalid)
            decoded = join_fields(
                decoded, indexes, decoded_texts, decoder=self._text_decoder, target=self._events, fields=self._texts
            )
            indexes = [index for index in indexes if index not in decoded.invalid]
        for field in self._metadata_fields:
            values = [self._read_metadata(records[index], field.origin) for index in indexes]
            if field.origin == "timestamp":
                decoded, indexes, values = _without_far_times(decoded, indexes, values, field.name)
            self._events.put([decoded.events[index] for index in indexes], field.name, values)
        return decoded

    def _read_texts(
        self, indexes: Sequence[int], invalid: dict[int, InvalidEvent], records: Sequence[Record], now_ms: int
    ) -> DecodedBatch:
        assert self._text_decoder is not None  # noqa: S101 - checked by the caller
        documents = []
        for index in indexes:
            try:
                documents.append(self._text_document(records[index]))
            except InvalidEvent as error:
                invalid[index] = error
                documents.append(b"")
            except Exception as error:
                invalid[index] = decoder_failure(error)
                documents.append(b"")
        return self._text_decoder.decode_all(documents, now_ms)

    def _text_document(self, record: Record) -> bytes:
        # If several headers have the same name, the last header counts, as in Kafka's clients.
        values: dict[str | None, bytes | None] = dict(record.headers() or ())
        values[None] = record.key()
        texts = tuple(map(values.get, self._text_headers))
        document = self._document_cache.get(texts)
        if document is None:
            document = self._encode_texts(texts)
            if len(document) <= _MAX_CACHED_BYTES:
                if len(self._document_cache) >= _MAX_CACHED_TEXTS:
                    self._document_cache.clear()
                self._document_cache[texts] = document
        return document

    def _encode_texts(self, texts: Sequence[bytes | None]) -> bytes:
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
    decoded: DecodedBatch, indexes: Sequence[int], times: Sequence[int | None], name: str
) -> tuple[DecodedBatch, list[int], list[int | None]]:
    pairs = list(zip(indexes, times, strict=True))
    far = {index for index, time in pairs if time is not None and time > MAX_TIMESTAMP_MS}
    if not far:
        return decoded, list(indexes), list(times)
    valid = [(index, time) for index, time in pairs if index not in far]
    errors = {index: time_out_of_range(name, time) for index, time in pairs if index in far}
    events = [None if index in far else event for index, event in enumerate(decoded.events)]
    invalid = dict(sorted((decoded.invalid | errors).items()))
    return replace(decoded, events=events, invalid=invalid), [i for i, _ in valid], [time for _, time in valid]


def _metadata_in_topic(record: Record, origin: str) -> int | None:
    if origin != "partition":
        return _metadata(record, origin)
    in_topic: int | None = getattr(record, "topic_partition", record.partition)()
    return in_topic


def _metadata(record: Record, origin: str) -> int | None:
    match origin:
        case "partition":
            return record.partition()
        case "offset":
            return record.offset()
    time = record.timestamp()[1]
    return time if time is not None and time >= 0 else None  # a negative value means that the record has no timestamp
