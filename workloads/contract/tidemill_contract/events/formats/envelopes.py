"""Unwrap JSON events from the envelopes of Debezium, Kafka Connect (with schemas) and CloudEvents."""

from __future__ import annotations

import binascii
from collections.abc import Callable, Sequence
from typing import TypeVar

import msgspec

from tidemill_contract.events.event_errors import decoder_refusal, not_json, show_bytes
from tidemill_contract.events.formats.changes import EXPECTED_ENVELOPE, WRITES, row_of
from tidemill_contract.events.formats.opener import NO_EVENT, Content, DeletePolicy, Opener, PlainOpener
from tidemill_contract.events.invalid_events import InvalidEvent, Reason
from tidemill_contract.events.members import JSON_ERRORS, members
from tidemill_contract.resource.kinds.formats import FormatSpec

T = TypeVar("T")

_MAX_NAMES = 6


class _Change(msgspec.Struct, gc=False):
    op: str | None = None
    before: msgspec.Raw = msgspec.Raw()
    after: msgspec.Raw = msgspec.Raw()
    payload: msgspec.Raw = msgspec.Raw()


_decode_change = msgspec.json.Decoder(_Change).decode


class _DebeziumOpener(Opener):
    def open_together(self, raws: Sequence[bytes]) -> tuple[list[bytes], Sequence[bytes]]:
        changes = list(map(_decode_change, raws))
        if None in {change.op for change in changes}:
            raws = [bytes(change.payload) for change in changes]
            changes = list(map(_decode_change, raws))
        if not {change.op for change in changes} <= WRITES:
            return [], []
        return [bytes(change.after) for change in changes], raws

    def open_one(self, raw: bytes) -> Content | None:
        envelope, change = raw, _read(_decode_change, raw)
        if change.op is None and bytes(change.payload) not in NO_EVENT:
            envelope = bytes(change.payload)
            change = _read(_decode_change, envelope)
        if change.op is None and bytes(change.payload) == b"null":
            self.deletes.check_tombstone()
            return None
        if change.op is None:
            raise wrong_envelope(list(members(raw)), EXPECTED_ENVELOPE)
        row = row_of(change.op, _row_or_none(change.before), _row_or_none(change.after), self.deletes)
        return None if row is None else Content(row, envelope)


class _SchemaEnvelope(msgspec.Struct, gc=False):
    payload: msgspec.Raw = msgspec.Raw()


_decode_schema_envelope = msgspec.json.Decoder(_SchemaEnvelope).decode


class _ConnectOpener(Opener):
    def open_together(self, raws: Sequence[bytes]) -> tuple[list[bytes], Sequence[bytes]]:
        return [bytes(each.payload) for each in map(_decode_schema_envelope, raws)], raws

    def open_one(self, raw: bytes) -> Content | None:
        payload = bytes(_read(_decode_schema_envelope, raw).payload)
        if payload == b"":
            raise wrong_envelope(list(members(raw)), "Kafka Connect envelope (schema, payload)")
        row: bytes | None = payload
        if payload == b"null":
            row = self.deletes.deleted_row("the payload is null, which deletes a key", before=None)
        return None if row is None else Content(row, raw)


class _CloudEvent(msgspec.Struct, gc=False):
    specversion: str | None = None
    data: msgspec.Raw = msgspec.Raw()
    data_base64: str | None = None


_decode_cloud_event = msgspec.json.Decoder(_CloudEvent).decode


class _CloudEventsOpener(Opener):
    def open_together(self, raws: Sequence[bytes]) -> tuple[list[bytes], Sequence[bytes]]:
        events = list(map(_decode_cloud_event, raws))
        if any(event.specversion is None or event.data_base64 is not None for event in events):
            return [], []
        return [bytes(event.data) for event in events], raws

    def open_one(self, raw: bytes) -> Content | None:
        event = _read(_decode_cloud_event, raw)
        if event.specversion is None:
            raise wrong_envelope(list(members(raw)), "CloudEvent (specversion, type, source, data)")
        data = bytes(event.data)
        if event.data_base64 is not None and data in NO_EVENT:
            try:
                data = binascii.a2b_base64(event.data_base64, strict_mode=True)
            except ValueError as error:
                detail = f"data_base64 is not base64 ({error}); send JSON in data"
                raise InvalidEvent(Reason.NOT_AN_ENVELOPE, None, detail) from None
        return Content(b"{}" if data in NO_EVENT else data, raw)


_OPENERS: dict[str, type[Opener]] = {
    "none": PlainOpener,
    "cloudevents": _CloudEventsOpener,
    "connect": _ConnectOpener,
    "debezium": _DebeziumOpener,
}


def opener_for(record_format: FormatSpec) -> Opener:
    """Return the `Opener` for the envelope that the spec names."""
    return _OPENERS[record_format.envelope](DeletePolicy(record_format.deletes))


def _read(decode: Callable[[bytes], T], raw: bytes) -> T:
    try:
        return decode(raw)
    except msgspec.ValidationError as error:
        raise decoder_refusal(raw, error, {name: "string" for name in ("op", "specversion", "data_base64")}) from None
    except JSON_ERRORS as error:
        raise not_json(raw, error) from None


def _row_or_none(raw: msgspec.Raw) -> bytes | None:
    return None if bytes(raw) in NO_EVENT else bytes(raw)


def wrong_envelope(member_names: Sequence[str], expected: str) -> InvalidEvent:
    """Return an InvalidEvent for a record that is not the expected envelope.

    `member_names` has the names of the record's members.
    """
    shown_names = ", ".join(member_names[:_MAX_NAMES]) + (", …" if len(member_names) > _MAX_NAMES else "")
    received = f"the members {show_bytes(shown_names.encode())}" if member_names else "an empty object"
    remedy = "change source.format.envelope (`none` if records have no envelope), or send records in that envelope"
    return InvalidEvent(Reason.NOT_AN_ENVELOPE, None, f"expected a {expected}, got {received}; {remedy}")
