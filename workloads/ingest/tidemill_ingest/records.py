"""Converts raw events to Kafka records: validates events, adds record keys and marks invalid events.

Invalid events are also sent to the events topic, with a prefix byte. The record headers contain the reason. The
processor writes the dead letters of invalid events.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tidemill_contract.decimals import scale_of, scaled_text
from tidemill_contract.events import quarantine
from tidemill_contract.events.decoder import QUARANTINE_PREFIX, InvalidEvent, Reason
from tidemill_contract.events.quarantine import Headers
from tidemill_contract.events.records import RecordDecoder
from tidemill_contract.runtime import PipelineConfig
from tidemill_contract.stage_records import ingest_spec

TRUNCATED_BYTES = 64 * 1024
"""An event that is too large is truncated to this many bytes."""


@dataclass(frozen=True)
class Records:
    """The records of a request in the order of its events.

    Attributes:
        values: the values of the records. The values of invalid events have the prefix QUARANTINE_PREFIX.
        keys: the record keys, or None if the pipeline has no record keys.
        headers: the record headers, by the event's index in the request.
        invalid: the reason why each invalid event is invalid, by the event's index in the request.
    """

    values: list[bytes]
    keys: list[bytes | None] | None
    headers: dict[int, Headers]
    invalid: dict[int, InvalidEvent]

    def key(self, index: int) -> bytes | None:
        """Return the record key of one record."""
        return self.keys[index] if self.keys is not None else None

    def single(self, index: int) -> Records:
        """Return the record at `index`."""
        headers = {0: self.headers[index]} if index in self.headers else {}
        return Records([self.values[index]], [self.key(index)], headers, {})

    def subset(self, indexes: Sequence[int]) -> Records:
        """Return the records with these indexes, in the same order."""
        return Records(
            [self.values[index] for index in indexes],
            [self.keys[index] for index in indexes] if self.keys is not None else None,
            {at: self.headers[index] for at, index in enumerate(indexes) if index in self.headers},
            {at: self.invalid[index] for at, index in enumerate(indexes) if index in self.invalid},
        )

    def truncated(self, index: int, invalid_event: InvalidEvent) -> Records:
        """Return the record at `index`, marked as an invalid event and with a truncated value."""
        value = self.values[index].removeprefix(QUARANTINE_PREFIX)[:TRUNCATED_BYTES]
        return Records([QUARANTINE_PREFIX + value], [None], {0: quarantine.headers(invalid_event)}, {0: invalid_event})


@dataclass(frozen=True)
class _RecordStub:
    own_key: bytes | None
    own_headers: Headers

    def value(self) -> None:
        return None

    def key(self) -> bytes | None:
        return self.own_key

    def headers(self) -> Headers:
        return self.own_headers

    def partition(self) -> None:
        return None

    def offset(self) -> None:
        return None

    def timestamp(self) -> tuple[int, None]:
        return 0, None


class RecordBuilder:
    """Validates the events of one pipeline and computes the record keys.

    Attributes:
        headers: the names of the request headers from which the pipeline reads fields.
        keep_attributes: whether CloudEvents are written to Kafka with their attributes.
    """

    def __init__(self, config: PipelineConfig) -> None:
        self._decoder = RecordDecoder(ingest_spec(config.spec))
        self.headers = self._decoder.headers
        self.keep_attributes = config.spec.source.record_format.envelope == "cloudevents"
        self._key = config.spec.source.key
        kinds = {field.name: field.kind for field in config.spec.source.fields}
        self._encode = _encoder(kinds.get(self._key or "", ""))

    def copied_headers(self, headers: Mapping[str, str]) -> Headers:
        """Return the headers of a request that are copied to records."""
        # Encode header values as Latin-1 again, because the HTTP server decoded the values as Latin-1.
        return [(name, headers[name].encode("latin-1")) for name in self.headers if name in headers]

    def build(self, values: Sequence[bytes], now_ms: int, copied_headers: Headers | None = None) -> Records:
        """Return the records of events that arrived at `now_ms` (epoch ms).

        Each record gets `copied_headers`.
        """
        decoded = self._decoder.decode_all(values, now_ms)
        keys = self._keys(self._key, decoded.events) if self._key is not None else None
        headers = copied_headers or []
        if self._decoder.has_outside_fields:
            stubs = [_RecordStub(keys[index] if keys is not None else None, headers) for index in range(len(values))]
            decoded = self._decoder.add_outside_fields(decoded, stubs, now_ms)
        invalid = decoded.invalid
        records = Records(list(values), keys, dict.fromkeys(range(len(values)), headers) if headers else {}, invalid)
        for index, invalid_event in invalid.items():
            value = values[index][:TRUNCATED_BYTES] if invalid_event.reason is Reason.TOO_LARGE else values[index]
            records.values[index] = QUARANTINE_PREFIX + value
            records.headers[index] = [*headers, *quarantine.headers(invalid_event)]
        return records

    def _keys(self, name: str, events: list[Any]) -> list[bytes | None]:
        encode = self._encode
        decoded = iter(self._decoder.values([event for event in events if event is not None], name))
        values = (next(decoded) if event is not None else None for event in events)
        return [encode(value) if value is not None else None for value in values]


def _encoder(kind: str) -> Callable[[Any], bytes]:
    scale = scale_of(kind)
    if scale is not None:
        return lambda scaled: scaled_text(scaled, scale).encode()
    return _ENCODERS.get(kind, _encode_number)


def _encode_number(value: float) -> bytes:
    return repr(value).encode()


def _encode_boolean(value: bool) -> bytes:
    return b"true" if value else b"false"


_ENCODERS: dict[str, Callable[[Any], bytes]] = {"string": str.encode, "boolean": _encode_boolean}
