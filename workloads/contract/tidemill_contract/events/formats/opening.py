"""Opening of records: what a record has around its event is taken off, which leaves the event as JSON.

The event is judged like one that came alone. What is around it stays as bytes too, for fields `from: envelope`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import msgspec

from tidemill_contract.events.details import TOMBSTONE
from tidemill_contract.events.verdicts import InvalidEvent, Reason

BROKEN = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
NOTHING = (b"", b"null")
"""What is there in place of an event that is not."""


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


class Content(NamedTuple):
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
        if row in NOTHING:
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


class Opener(ABC):
    """Opens the records of one pipeline.

    Attributes:
        deletes: what becomes of records that delete.
    """

    def __init__(self, deletes: Deletes) -> None:
        self.deletes = deletes

    def open(self, raws: Sequence[bytes], tombstones: Collection[int] = ()) -> Opened:
        """Return the events in records; `tombstones` are the places of those without a value."""
        if not tombstones:
            try:
                documents, envelopes = self.together(raws)
            except BROKEN:
                documents = []
            if documents and not any(nothing in documents for nothing in NOTHING):
                return Opened(range(len(raws)), documents, envelopes)
        found: dict[int, Content] = {}
        invalid: dict[int, InvalidEvent] = {}
        ignored = []
        for index, raw in enumerate(raws):
            try:
                if index in tombstones:
                    self.deletes.check_tombstone()
                    content = None
                else:
                    content = self.single(raw)
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
    def together(self, raws: Sequence[bytes]) -> tuple[list[bytes], Sequence[bytes]]:
        """The events and envelopes of many records; no events, or nothing in one's place: they are opened singly.

        Raises:
            msgspec.MsgspecError, UnicodeDecodeError, RecursionError: one at least cannot be read.
        """

    @abstractmethod
    def single(self, raw: bytes) -> Content | None:
        """The event and the envelope of a record; None: it is left out by policy.

        Raises:
            InvalidEvent: it cannot be opened.
        """


class Plain(Opener):
    """No envelope; only tombstones differ from events."""

    def together(self, raws: Sequence[bytes]) -> tuple[list[bytes], Sequence[bytes]]:
        """Each record is an event, see `Opener`."""
        return list(raws), raws

    def single(self, raw: bytes) -> Content | None:
        """The record is an event, see `Opener`."""
        return Content(raw, raw)
