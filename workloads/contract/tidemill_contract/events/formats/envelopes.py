"""Unwrap JSON events from the envelopes of Debezium, Kafka Connect (with schemas) and CloudEvents."""

from __future__ import annotations

import binascii
from collections.abc import Callable, Sequence
from typing import TypeVar

import msgspec

from tidemill_contract.events.details import not_json, refused, shown
from tidemill_contract.events.formats.changes import EXPECTED, WRITES, row_of
from tidemill_contract.events.formats.opening import NOTHING, Content, Deletes, Opener, Plain
from tidemill_contract.events.members import BROKEN, members
from tidemill_contract.events.verdicts import InvalidEvent, Reason
from tidemill_contract.resource.kinds.formats import FormatSpec

T = TypeVar("T")

_SHOWN = 6


class _Change(msgspec.Struct, gc=False):
    op: str | None = None
    before: msgspec.Raw = msgspec.Raw()
    after: msgspec.Raw = msgspec.Raw()
    payload: msgspec.Raw = msgspec.Raw()


_change = msgspec.json.Decoder(_Change).decode


class _Debezium(Opener):
    def together(self, raws: Sequence[bytes]) -> tuple[list[bytes], Sequence[bytes]]:
        changes = list(map(_change, raws))
        if None in {change.op for change in changes}:
            raws = [bytes(change.payload) for change in changes]
            changes = list(map(_change, raws))
        if not {change.op for change in changes} <= WRITES:
            return [], []
        return [bytes(change.after) for change in changes], raws

    def single(self, raw: bytes) -> Content | None:
        envelope, change = raw, _read(_change, raw)
        if change.op is None and bytes(change.payload) not in NOTHING:
            envelope = bytes(change.payload)
            change = _read(_change, envelope)
        if change.op is None and bytes(change.payload) == b"null":
            self.deletes.check_tombstone()
            return None
        if change.op is None:
            raise no_envelope(list(members(raw)), EXPECTED)
        row = row_of(change.op, _row(change.before), _row(change.after), self.deletes)
        return None if row is None else Content(row, envelope)


class _Schemaed(msgspec.Struct, gc=False):
    payload: msgspec.Raw = msgspec.Raw()


_schemaed = msgspec.json.Decoder(_Schemaed).decode


class _Connect(Opener):
    def together(self, raws: Sequence[bytes]) -> tuple[list[bytes], Sequence[bytes]]:
        return [bytes(each.payload) for each in map(_schemaed, raws)], raws

    def single(self, raw: bytes) -> Content | None:
        payload = bytes(_read(_schemaed, raw).payload)
        if payload == b"":
            raise no_envelope(list(members(raw)), "Kafka Connect envelope (schema, payload)")
        row: bytes | None = payload
        if payload == b"null":
            row = self.deletes.row("the payload is null, which deletes a key", before=None)
        return None if row is None else Content(row, raw)


class _CloudEvent(msgspec.Struct, gc=False):
    specversion: str | None = None
    data: msgspec.Raw = msgspec.Raw()
    data_base64: str | None = None


_cloud_event = msgspec.json.Decoder(_CloudEvent).decode


class _CloudEvents(Opener):
    def together(self, raws: Sequence[bytes]) -> tuple[list[bytes], Sequence[bytes]]:
        events = list(map(_cloud_event, raws))
        if any(event.specversion is None or event.data_base64 is not None for event in events):
            return [], []
        return [bytes(event.data) for event in events], raws

    def single(self, raw: bytes) -> Content | None:
        event = _read(_cloud_event, raw)
        if event.specversion is None:
            raise no_envelope(list(members(raw)), "CloudEvent (specversion, type, source, data)")
        data = bytes(event.data)
        if event.data_base64 is not None and data in NOTHING:
            try:
                data = binascii.a2b_base64(event.data_base64, strict_mode=True)
            except ValueError as error:
                detail = f"data_base64 is not base64 ({error}); send JSON in data"
                raise InvalidEvent(Reason.NOT_AN_ENVELOPE, None, detail) from None
        return Content(b"{}" if data in NOTHING else data, raw)


_KINDS: dict[str, type[Opener]] = {
    "none": Plain,
    "cloudevents": _CloudEvents,
    "connect": _Connect,
    "debezium": _Debezium,
}


def envelope_for(written: FormatSpec) -> Opener:
    """Return the `Opener` for the envelope that the spec names."""
    return _KINDS[written.envelope](Deletes(written.deletes))


def _read(decode: Callable[[bytes], T], raw: bytes) -> T:
    try:
        return decode(raw)
    except msgspec.ValidationError as error:
        raise refused(raw, error, {name: "string" for name in ("op", "specversion", "data_base64")}) from None
    except BROKEN as error:
        raise not_json(raw, error) from None


def _row(written: msgspec.Raw) -> bytes | None:
    return None if bytes(written) in NOTHING else bytes(written)


def no_envelope(member_names: Sequence[str], expected: str) -> InvalidEvent:
    """Return an InvalidEvent for a record that is not the expected envelope.

    `member_names` has the names of the record's members.
    """
    shown_names = ", ".join(member_names[:_SHOWN]) + (", …" if len(member_names) > _SHOWN else "")
    came = f"the members {shown(shown_names.encode())}" if member_names else "an empty object"
    remedy = "change source.format.envelope (`none` if records have no envelope), or send records in that envelope"
    return InvalidEvent(Reason.NOT_AN_ENVELOPE, None, f"expected a {expected}, got {came}; {remedy}")
