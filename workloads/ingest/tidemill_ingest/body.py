"""Splits request bodies (NDJSON, JSON arrays, objects or CloudEvents) into raw events."""

from __future__ import annotations

import binascii
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

import msgspec
import zstandard

from tidemill_chassis.web.problems import Problem

MAX_BODY_BYTES = 10 * 1024 * 1024
MAX_EVENTS = 10_000

NDJSON = frozenset({"application/x-ndjson", "application/ndjson", "application/jsonl", "application/jsonlines"})
JSON = frozenset({"application/json", "text/json"})
CLOUD_EVENT, CLOUD_EVENTS = "application/cloudevents+json", "application/cloudevents-batch+json"
_SUPPORTED = f"application/x-ndjson, application/json, {CLOUD_EVENT}, {CLOUD_EVENTS}"

# Input is unpacked in small steps, because deflate can expand one byte to 1032 bytes.
_GZIP_STEP_BYTES, _ZSTD_STEP_BYTES = 8 * 1024, 512
_ZSTD_WINDOW_BYTES = 8 * 1024 * 1024
"""The largest zstd window that RFC 9659 allows."""
_MAX_FRAMES = 1000
_MAX_LINES = 4 * MAX_EVENTS
_MAX_COMMAS = 2_000_000
_BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class Events:
    """The raw events of a body. `ids` are the ids of CloudEvents, or None for other formats."""

    values: list[bytes]
    ids: list[str | None] | None = None


class _CloudEvent(msgspec.Struct):
    specversion: str
    id: str
    source: str
    type: str
    datacontenttype: str | None = None
    data: msgspec.Raw = msgspec.Raw(b"null")
    data_base64: str | None = None


_array_decoder = msgspec.json.Decoder(list[msgspec.Raw])
_cloud_event_decoder = msgspec.json.Decoder(_CloudEvent)
_cloud_event_batch_decoder = msgspec.json.Decoder(list[_CloudEvent])


def decompress(body: bytes, encoding: str) -> bytes:
    """Return the decompressed body.

    Raises:
        Problem: the encoding is unknown (415), the data is damaged (400), or the data is larger than 10 MiB (413).
    """
    match encoding.strip().lower():
        case "" | "identity":
            plain = body
        case "gzip" | "x-gzip":
            plain = _unpack(body, lambda: zlib.decompressobj(wbits=31), _GZIP_STEP_BYTES, "gzip")
        case "zstd":
            reader = zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW_BYTES)
            plain = _unpack(body, reader.decompressobj, _ZSTD_STEP_BYTES, "zstd")
        case other:
            raise Problem(415, "unsupported_encoding", f"Content-Encoding {other!r}; use gzip, zstd or none")
    if len(plain) > MAX_BODY_BYTES:
        raise too_large()
    return plain


def too_large() -> Problem:
    """Return the problem (413) for a body that is too large."""
    return Problem(413, "body_too_large", f"the body is more than {MAX_BODY_BYTES} bytes; send smaller batches")


def _unpack(body: bytes, new_decompressor: Callable[[], Any], step_bytes: int, name: str) -> bytes:
    plain = bytearray()
    decompressor, frames = new_decompressor(), 1
    try:
        for start in range(0, len(body), step_bytes):
            rest = body[start : start + step_bytes]
            while rest:
                if decompressor.eof:
                    decompressor, frames = new_decompressor(), frames + 1
                    if frames > _MAX_FRAMES:
                        raise Problem(400, "damaged_body", f"{name}: more than {_MAX_FRAMES} frames; send fewer")
                plain += decompressor.decompress(rest)
                if len(plain) > MAX_BODY_BYTES:
                    return bytes(plain)
                rest = decompressor.unused_data if decompressor.eof else b""
    except (zlib.error, zstandard.ZstdError) as error:
        raise Problem(400, "damaged_body", f"{name}: {error}") from None
    if body and not decompressor.eof:
        raise Problem(400, "damaged_body", f"the {name} data is truncated")
    return bytes(plain)


def split_events(body: bytes, headers: Mapping[str, str], *, keep_attributes: bool = False) -> Events:
    """Return the events of a decompressed body, by its Content-Type and its ce-… headers.

    Args:
        body: the decompressed body.
        headers: the headers of the request.
        keep_attributes: whether to keep the attributes of structured CloudEvents, or only their `data`.

    Raises:
        Problem: the type is unknown (415), the body is unreadable or empty (400), or there are too many events (413).
    """
    mime, _, parameters = headers.get("content-type", "").partition(";")
    mime = mime.strip().lower()
    if "charset" in parameters.lower() and "utf-8" not in parameters.lower().replace("utf8", "utf-8"):
        raise Problem(415, "unsupported_charset", f"Content-Type parameters {parameters.strip()!r}; send UTF-8")
    try:
        events = _split(body.removeprefix(_BOM), mime, headers, keep_attributes=keep_attributes)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise Problem(400, "malformed_body", f"the body does not match its Content-Type {mime}: {error}") from None
    if len(events.values) > MAX_EVENTS:
        raise _too_many(f"{len(events.values)} events")
    if not events.values:
        raise Problem(400, "no_events", "the body holds no event; send one or more")
    return events


def _split(body: bytes, mime: str, headers: Mapping[str, str], *, keep_attributes: bool) -> Events:
    if mime == CLOUD_EVENT:
        events = _from_cloud_events([_cloud_event_decoder.decode(body)])
        return Events([body], events.ids) if keep_attributes else events
    if mime == CLOUD_EVENTS:
        events = _from_cloud_events(_cloud_event_batch_decoder.decode(body))
        return Events([bytes(raw) for raw in _array_decoder.decode(body)], events.ids) if keep_attributes else events
    if "ce-specversion" in headers:
        events = _from_binary_mode(body, mime, headers)
        return Events([_to_structured_mode(body, headers)], events.ids) if keep_attributes else events
    if mime in NDJSON:
        if body.count(b"\n") > _MAX_LINES:
            raise _too_many(f"{body.count(10)} lines")
        return Events([line for raw in body.split(b"\n") if (line := raw.strip(b" \t\r"))])
    if mime in JSON:
        stripped = body.strip(b" \t\r\n")
        if stripped.startswith(b"["):
            if body.count(b",") > _MAX_COMMAS:
                raise _too_many("far too many values")
            return Events([bytes(raw) for raw in _array_decoder.decode(body)])
        return Events([stripped] if stripped else [])
    shown = f"Content-Type {mime!r}" if mime else "no Content-Type"
    raise Problem(415, "unsupported_media_type", f"{shown}; send one of {_SUPPORTED}")


def _too_many(what: str) -> Problem:
    return Problem(413, "too_many_events", f"{what}; at most {MAX_EVENTS} events per request, send smaller batches")


def _from_binary_mode(body: bytes, mime: str, headers: Mapping[str, str]) -> Events:
    if mime and not _is_json(mime):
        raise Problem(415, "unsupported_media_type", f"the data of a CloudEvent must be application/json, not {mime!r}")
    missing = [name for name in ("ce-id", "ce-source", "ce-type") if not headers.get(name)]
    if missing:
        raise Problem(400, "malformed_body", f"a CloudEvent in binary mode needs the header {missing[0]}")
    _check_version(headers["ce-specversion"])
    return Events([body], [headers["ce-id"]])


def _to_structured_mode(body: bytes, headers: Mapping[str, str]) -> bytes:
    attributes = {name[3:]: unquote(text) for name, text in headers.items() if name.startswith("ce-")}
    return msgspec.json.encode({**attributes, "data": msgspec.Raw(body.strip() or b"null")})


def _from_cloud_events(events: list[_CloudEvent]) -> Events:
    return Events([_event_data(event) for event in events], [event.id for event in events])


def _event_data(event: _CloudEvent) -> bytes:
    _check_version(event.specversion)
    mime = (event.datacontenttype or "application/json").partition(";")[0].strip().lower()
    if not _is_json(mime):
        raise Problem(415, "unsupported_media_type", f"the datacontenttype of a CloudEvent must be JSON, not {mime!r}")
    if event.data_base64 is not None:
        return binascii.a2b_base64(event.data_base64, strict_mode=True)
    return bytes(event.data)


def _is_json(mime: str) -> bool:
    return mime in JSON or mime.endswith("+json")


def _check_version(version: str) -> None:
    if version != "1.0":
        raise Problem(400, "unsupported_specversion", f"CloudEvents specversion {version!r}; send 1.0")
