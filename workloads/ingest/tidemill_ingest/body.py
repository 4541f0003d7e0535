"""Request bodies to raw events: NDJSON, JSON arrays and objects, CloudEvents; gzip and zstd; bounded on every side.

Nothing is judged here: an event leaves as the bytes that its sender wrote.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass

import msgspec
import zstandard

MAX_BODY_BYTES = 10 * 1024 * 1024
MAX_EVENTS = 10_000

NDJSON = frozenset({"application/x-ndjson", "application/ndjson", "application/jsonl", "application/jsonlines"})
JSON = frozenset({"application/json", "text/json"})
CLOUD_EVENT, CLOUD_EVENTS = "application/cloudevents+json", "application/cloudevents-batch+json"
_SUPPORTED = "application/x-ndjson, application/json, application/cloudevents+json, application/cloudevents-batch+json"


class BodyError(Exception):
    """A body cannot be read; becomes a problem."""

    def __init__(self, status: int, code: str, detail: str) -> None:
        super().__init__(detail)
        self.status, self.code, self.detail = status, code, detail


@dataclass(frozen=True)
class RawEvent:
    """One event as it came; `id` is the sender's (CloudEvents)."""

    value: bytes
    id: str | None = None


class _CloudEvent(msgspec.Struct):
    specversion: str
    id: str
    source: str
    type: str
    data: msgspec.Raw | None = None


_raws = msgspec.json.Decoder(list[msgspec.Raw])
_cloud_event = msgspec.json.Decoder(_CloudEvent)
_cloud_events = msgspec.json.Decoder(list[_CloudEvent])


def decompress(body: bytes, encoding: str) -> bytes:
    """The body as it was before Content-Encoding; never more than the limit is unpacked.

    Raises:
        BodyError: an unknown encoding (415), damaged data (400), or more than 10 MiB (413).
    """
    match encoding.strip().lower():
        case "" | "identity":
            plain = body
        case "gzip" | "x-gzip":
            plain = _gunzip(body)
        case "zstd":
            plain = _unzstd(body)
        case other:
            raise BodyError(415, "unsupported_encoding", f"Content-Encoding '{other}'; use gzip, zstd or none")
    if len(plain) > MAX_BODY_BYTES:
        raise BodyError(413, "body_too_large", f"more than {MAX_BODY_BYTES} bytes decompressed; send smaller batches")
    return plain


def _gunzip(body: bytes) -> bytes:
    plain = bytearray()
    try:
        while body:
            unpacker = zlib.decompressobj(wbits=31)
            plain += unpacker.decompress(body, MAX_BODY_BYTES + 1 - len(plain))
            if len(plain) > MAX_BODY_BYTES:
                break
            if not unpacker.eof:
                raise BodyError(400, "damaged_body", "the gzip data ends too early")
            body = unpacker.unused_data
    except zlib.error as error:
        raise BodyError(400, "damaged_body", f"gzip: {error}") from None
    return bytes(plain)


def _unzstd(body: bytes) -> bytes:
    try:
        with zstandard.ZstdDecompressor(max_window_size=2**27).stream_reader(body, read_across_frames=True) as reader:
            return reader.read(MAX_BODY_BYTES + 1)
    except zstandard.ZstdError as error:
        raise BodyError(400, "damaged_body", f"zstd: {error}") from None


def split(body: bytes, headers: Mapping[str, str]) -> list[RawEvent]:
    """The events of a decompressed body, by its Content-Type (and ce-… headers).

    Raises:
        BodyError: unknown type (415), a frame that cannot be read (400), too many events (413).
    """
    kind, _, parameters = headers.get("content-type", "").partition(";")
    kind = kind.strip().lower()
    if "charset" in parameters.lower() and "utf-8" not in parameters.lower().replace("utf8", "utf-8"):
        raise BodyError(415, "unsupported_charset", "send UTF-8")
    if "ce-specversion" in headers:
        return [RawEvent(body, headers.get("ce-id"))]
    try:
        events = _split(body, kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise BodyError(400, "malformed_body", f"the body is not what its Content-Type {kind} says: {error}") from None
    if len(events) > MAX_EVENTS:
        raise BodyError(413, "too_many_events", f"{len(events)} events; at most {MAX_EVENTS} a request")
    return events


def _split(body: bytes, kind: str) -> list[RawEvent]:
    if kind in NDJSON:
        return [RawEvent(line) for line in (raw.strip(b" \t\r") for raw in body.split(b"\n")) if line]
    if kind in JSON:
        start = body.lstrip()
        if start.startswith(b"["):
            return [RawEvent(bytes(raw)) for raw in _raws.decode(body)]
        return [RawEvent(start.rstrip())] if start else []
    if kind == CLOUD_EVENT:
        return [_of(_cloud_event.decode(body))]
    if kind == CLOUD_EVENTS:
        return [_of(event) for event in _cloud_events.decode(body)]
    raise BodyError(415, "unsupported_media_type", f"Content-Type '{kind}'; send one of {_SUPPORTED}")


def _of(event: _CloudEvent) -> RawEvent:
    return RawEvent(bytes(event.data) if event.data is not None else b"null", event.id)
