"""Opens records: removes the envelope or framing around an event, and returns the event as JSON.

The event is then validated like an event without an envelope. The envelope is also returned, because fields can be read
from it (`from: envelope`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, TypeVar

from tidemill_contract.events.details import TOMBSTONE, failed
from tidemill_contract.events.verdicts import InvalidEvent, Reason

T = TypeVar("T")

NOTHING = (b"", b"null")
"""The texts of an event that is absent: nothing, or JSON's null."""


@dataclass(frozen=True)
class Opened:
    """The events of many records, and the verdicts on records without an event.

    Attributes:
        at: the indexes of the records that have an event.
        documents: the events of these records, as JSON.
        envelopes: the envelope of each of these events, as JSON.
        invalid: the verdicts on records that cannot be opened, by index.
        ignored: the indexes of the records that `source.format.deletes` ignores.
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
    """Applies the policy `source.format.deletes` to records that delete a row or a key."""

    def __init__(self, policy: str) -> None:
        """Keep the policy: `ignore`, `deadLetter` or `event`."""
        self._policy = policy

    def row(self, what: str, before: T | None) -> T | None:
        """Return the row before a delete, which is its event, or None if the policy ignores deletes.

        Args:
            what: the description of the delete, for messages.
            before: the row before the delete, or None if the record does not contain it.

        Raises:
            InvalidEvent: the policy is `deadLetter`, or the record does not contain the row.
        """
        if self._policy == "ignore":
            return None
        if self._policy == "deadLetter":
            remedy = "set source.format.deletes: ignore to skip deletes, or event to count the row before the delete"
            raise InvalidEvent(Reason.DELETED, None, f"{what}; {remedy}")
        if before is None:
            remedy = "let the source send it (Postgres: REPLICA IDENTITY FULL), or set source.format.deletes: ignore"
            detail = f"{what}, and the record lacks the row before the delete"
            raise InvalidEvent(Reason.DELETED, None, f"{detail}; {remedy}")
        return before

    def check_tombstone(self) -> None:
        """Check that the policy ignores a tombstone, which is a record without a value.

        `event` ignores tombstones too: the row is in the delete that precedes the tombstone.

        Raises:
            InvalidEvent: the policy is `deadLetter`.
        """
        if self._policy == "deadLetter":
            raise InvalidEvent(Reason.DELETED, None, f"{TOMBSTONE}, or set source.format.deletes: ignore")


class Opener(ABC):
    """Opens the records of one pipeline.

    Attributes:
        deletes: the policy for records that delete.
    """

    def __init__(self, deletes: Deletes) -> None:
        self.deletes = deletes

    def open(self, raws: Sequence[bytes], tombstones: Collection[int] = ()) -> Opened:
        """Return the events in records. `tombstones` are the indexes of the records without a value."""
        if not tombstones:
            try:
                documents, envelopes = self.together(raws)
            except Exception:  # for example, the bytes are not JSON; the records are then opened one by one
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
            except Exception as error:
                invalid[index] = failed(error)
                continue
            if content is None:
                ignored.append(index)
            else:
                found[index] = content
        documents, envelopes = [c.document for c in found.values()], [c.envelope for c in found.values()]
        return Opened(list(found), documents, envelopes, invalid, frozenset(ignored))

    @abstractmethod
    def together(self, raws: Sequence[bytes]) -> tuple[list[bytes], Sequence[bytes]]:
        """Return the events and envelopes of many records.

        If the list of events is empty, or contains one of `NOTHING`, the caller opens the records one by one.

        Raises:
            Exception: at least one record cannot be read.
        """

    @abstractmethod
    def single(self, raw: bytes) -> Content | None:
        """Return the event and the envelope of a record, or None if `deletes` ignores the record.

        Raises:
            InvalidEvent: the record cannot be opened.
        """


class Plain(Opener):
    """Returns records unchanged, because they have no envelope. Every record except a tombstone is an event."""

    def together(self, raws: Sequence[bytes]) -> tuple[list[bytes], Sequence[bytes]]:
        """Return the records as the events, and also as the envelopes."""
        return list(raws), raws

    def single(self, raw: bytes) -> Content | None:
        """Return the record as the event, and also as the envelope."""
        return Content(raw, raw)
