"""Envelopes around events: JSON of Debezium, of Kafka Connect with schemas, and CloudEvents; and records that delete.

An envelope is opened into the bytes of its event, which are judged like an event that came alone. What is around them
is kept as bytes too, for fields that are read `from: envelope`.
"""

from __future__ import annotations

import binascii
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, TypeVar

import msgspec

from tidemill_contract.events.details import TOMBSTONE, not_json, refused, shown
from tidemill_contract.events.members import members
from tidemill_contract.events.verdicts import InvalidEvent, Reason
from tidemill_contract.resource.spec import FormatSpec

T = TypeVar("T")

_BROKEN = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
_NOTHING = (b"", b"null")
_SHOWN = 6


@dataclass(frozen=True)
class Opened:
    """The events of some records.

    Attributes:
        at: the places of the records that have one.
        documents: their events, as JSON.
        envelopes: what is around each, as JSON.
        invalid: the verdicts on records that cannot be opened, by place.
        ignored: the places of records that are left out by policy.
    """

    at: Sequence[int]
    documents: list[bytes]
    envelopes: Sequence[bytes]
    invalid: dict[int, InvalidEvent] = field(default_factory=dict)
    ignored: frozenset[int] = frozenset()


class _Content(NamedTuple):
    """An event, and the envelope around it."""

    document: bytes
    envelope: bytes


class Deletes:
    """What becomes of records that delete: the policy `source.format.deletes`."""

    def __init__(self, policy: str) -> None:
        """Prepare; `policy` as in the spec."""
        self._policy = policy

    def row(self, what: str, row: bytes = b"") -> bytes | None:
        """The event of a delete, which is the row before it; None: it is left out.

        Args:
            what: what deletes, for messages.
            row: the row before, as JSON; empty or null if the record does not have it.

        Raises:
            InvalidEvent: it is a dead letter.
        """
        if self._policy == "ignore":
            return None
        if self._policy == "deadLetter":
            remedy = "set source.format.deletes: ignore to leave deletes out, or event to count the row before"
            raise InvalidEvent(Reason.DELETED, None, f"{what}; {remedy}")
        if row in _NOTHING:
            remedy = "let the source send it (Postgres: REPLICA IDENTITY FULL), or set source.format.deletes: ignore"
            raise InvalidEvent(Reason.DELETED, None, f"{what}, and the record has no row before; {remedy}")
        return row

    def check_tombstone(self) -> None:
        """Judge a record without a value. The delete before it has the row, so a tombstone is never an event.

        Raises:
            InvalidEvent: it is a dead letter.
        """
        if self._policy == "deadLetter":
            raise InvalidEvent(Reason.DELETED, None, f"{TOMBSTONE}, or set source.format.deletes: ignore")


class Envelope(ABC):
    """Opens the records of one pipeline."""

    def __init__(self, deletes: Deletes) -> None:
        """Prepare; `deletes`: what becomes of records that delete."""
        self._deletes = deletes

    def open(self, raws: Sequence[bytes], tombstones: Collection[int] = ()) -> Opened:
        """Return the events in records; `tombstones` are the places of those without a value."""
        if not tombstones:
            try:
                documents, envelopes = self._together(raws)
            except _BROKEN:
                documents = []
            if documents and not any(nothing in documents for nothing in _NOTHING):
                return Opened(range(len(raws)), documents, envelopes)
        found: dict[int, _Content] = {}
        invalid: dict[int, InvalidEvent] = {}
        ignored = []
        for index, raw in enumerate(raws):
            try:
                if index in tombstones:
                    self._deletes.check_tombstone()
                    content = None
                else:
                    content = self._single(raw)
            except InvalidEvent as verdict:
                invalid[index] = verdict
                continue
            if content is None:
                ignored.append(index)
            else:
                found[index] = content
        documents, envelopes = [c.document for c in found.values()], [c.envelope for c in found.values()]
        return Opened(list(found), documents, envelopes, invalid, frozenset(ignored))

    @abstractmethod
    def _together(self, raws: Sequence[bytes]) -> tuple[list[bytes], Sequence[bytes]]:
        """The events and envelopes of many records; no events, or nothing in one's place: they are opened singly.

        Raises:
            msgspec.MsgspecError, UnicodeDecodeError, RecursionError: one at least cannot be read.
        """

    @abstractmethod
    def _single(self, raw: bytes) -> _Content | None:
        """The event and the envelope of a record; None: it is left out by policy.

        Raises:
            InvalidEvent: it cannot be opened.
        """


class _Plain(Envelope):
    """No envelope; only tombstones differ from events."""

    def _together(self, raws: Sequence[bytes]) -> tuple[list[bytes], Sequence[bytes]]:
        return list(raws), raws

    def _single(self, raw: bytes) -> _Content | None:
        return _Content(raw, raw)


class _Change(msgspec.Struct, gc=False):
    """A change event; with schemas, it is the payload."""

    op: str | None = None
    before: msgspec.Raw = msgspec.Raw()
    after: msgspec.Raw = msgspec.Raw()
    payload: msgspec.Raw = msgspec.Raw()


_change = msgspec.json.Decoder(_Change).decode
_WRITES = {"c", "r", "u"}


class _Debezium(Envelope):
    """Change events: an insert, an update and a row of a snapshot are events of the row after."""

    def _together(self, raws: Sequence[bytes]) -> tuple[list[bytes], Sequence[bytes]]:
        changes = list(map(_change, raws))
        if None in {change.op for change in changes}:
            raws = [bytes(change.payload) for change in changes]
            changes = list(map(_change, raws))
        if not {change.op for change in changes} <= _WRITES:
            return [], []
        return [bytes(change.after) for change in changes], raws

    def _single(self, raw: bytes) -> _Content | None:
        envelope, change = raw, _read(_change, raw)
        if change.op is None and bytes(change.payload) not in _NOTHING:
            envelope = bytes(change.payload)
            change = _read(_change, envelope)
        match change.op:
            case "c" | "r" | "u":
                row: bytes | None = bytes(change.after)
                if row in _NOTHING:
                    detail = f"the change event of op {change.op} has no row in after; see how its source is set up"
                    raise InvalidEvent(Reason.NOT_AN_ENVELOPE, None, detail)
            case "d":
                row = self._deletes.row("the change event deletes a row (op d)", bytes(change.before))
            case "t":
                row = self._deletes.row("the change event truncates the table (op t)")
            case None:
                raise _no_envelope(raw, "Debezium change event (op, before, after)")
            case other:
                detail = f"a change event of op {shown(other.encode())} has no row; take such out of the topic"
                raise InvalidEvent(Reason.NOT_AN_ENVELOPE, None, detail)
        return None if row is None else _Content(row, envelope)


class _Schemaed(msgspec.Struct, gc=False):
    """What Kafka Connect's JsonConverter writes with `schemas.enable`."""

    payload: msgspec.Raw = msgspec.Raw()


_schemaed = msgspec.json.Decoder(_Schemaed).decode


class _Connect(Envelope):
    """Kafka Connect's schema and payload: the payload is the event."""

    def _together(self, raws: Sequence[bytes]) -> tuple[list[bytes], Sequence[bytes]]:
        return [bytes(each.payload) for each in map(_schemaed, raws)], raws

    def _single(self, raw: bytes) -> _Content | None:
        payload = bytes(_read(_schemaed, raw).payload)
        if payload == b"":
            raise _no_envelope(raw, "Kafka Connect envelope (schema, payload)")
        row = self._deletes.row("the payload is null, which deletes a key") if payload == b"null" else payload
        return None if row is None else _Content(row, raw)


class _CloudEvent(msgspec.Struct, gc=False):
    """A CloudEvent in structured mode."""

    specversion: str | None = None
    data: msgspec.Raw = msgspec.Raw()
    data_base64: str | None = None


_cloud_event = msgspec.json.Decoder(_CloudEvent).decode


class _CloudEvents(Envelope):
    """CloudEvents in structured mode: the data is the event; an event without data has its attributes only."""

    def _together(self, raws: Sequence[bytes]) -> tuple[list[bytes], Sequence[bytes]]:
        events = list(map(_cloud_event, raws))
        if any(event.specversion is None or event.data_base64 is not None for event in events):
            return [], []
        return [bytes(event.data) for event in events], raws

    def _single(self, raw: bytes) -> _Content | None:
        event = _read(_cloud_event, raw)
        if event.specversion is None:
            raise _no_envelope(raw, "CloudEvent (specversion, type, source, data)")
        data = bytes(event.data)
        if event.data_base64 is not None and data in _NOTHING:
            try:
                data = binascii.a2b_base64(event.data_base64, strict_mode=True)
            except ValueError as error:
                detail = f"data_base64 is not base64 ({error}); send JSON in data"
                raise InvalidEvent(Reason.NOT_AN_ENVELOPE, None, detail) from None
        return _Content(b"{}" if data in _NOTHING else data, raw)


_KINDS: dict[str, type[Envelope]] = {
    "none": _Plain,
    "cloudevents": _CloudEvents,
    "connect": _Connect,
    "debezium": _Debezium,
}


def envelope_for(written: FormatSpec) -> Envelope | None:
    """What opens records of this format; None: each record is an event."""
    if written.envelope == "none" and written.deletes == "deadLetter":
        return None
    return _KINDS[written.envelope](Deletes(written.deletes))


def _read(decode: Callable[[bytes], T], raw: bytes) -> T:
    """Read an envelope.

    Raises:
        InvalidEvent: it is not JSON, or has a member of another type.
    """
    try:
        return decode(raw)
    except msgspec.ValidationError as error:
        raise refused(raw, error, {name: "string" for name in ("op", "specversion", "data_base64")}) from None
    except _BROKEN as error:
        raise not_json(raw, error) from None


def _no_envelope(raw: bytes, expected: str) -> InvalidEvent:
    found = list(members(raw))
    shown_names = ", ".join(found[:_SHOWN]) + (", …" if len(found) > _SHOWN else "")
    came = f"the members {shown(shown_names.encode())}" if found else "an empty object"
    remedy = "correct source.format.envelope (none: each record is an event), or what is sent"
    return InvalidEvent(Reason.NOT_AN_ENVELOPE, None, f"expected a {expected}, got {came}; {remedy}")
