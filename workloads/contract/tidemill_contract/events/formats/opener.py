"""Remove the envelope or framing around an event, and return the event as JSON."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, TypeVar

from tidemill_contract.events.event_errors import TOMBSTONE_MESSAGE, decoder_failure
from tidemill_contract.events.invalid_events import InvalidEvent, Reason

T = TypeVar("T")

NO_EVENT = (b"", b"null")
"""If the event's JSON text is in this tuple, the record contains no event."""


@dataclass(frozen=True)
class OpenedRecords:
    """The events in many records, and the errors of the records that cannot be read.

    Attributes:
        indexes: the indexes of the records that have an event.
        invalid: the errors of records that cannot be read, by index.
        ignored: the indexes of the records that `source.format.deletes` ignores.
    """

    indexes: Sequence[int]
    documents: list[bytes]
    envelopes: Sequence[bytes]
    invalid: dict[int, InvalidEvent] = field(default_factory=dict)
    ignored: frozenset[int] = frozenset()


class Content(NamedTuple):
    """An event, and the envelope around it."""

    document: bytes
    envelope: bytes


class DeletePolicy:
    """Applies the setting `source.format.deletes` to tombstones, and to records that report a delete."""

    def __init__(self, policy: str) -> None:
        self._policy = policy

    def deleted_row(self, what: str, before: T | None) -> T | None:
        """Return the row that the source deleted, or None if the policy ignores deletes.

        Raises:
            InvalidEvent: the policy is `deadLetter`. Or the policy is `event`, and the record lacks the deleted row.
        """
        if self._policy == "ignore":
            return None
        if self._policy == "deadLetter":
            remedy = "set source.format.deletes to ignore (skip deletes) or event (read the deleted row as an event)"
            raise InvalidEvent(Reason.DELETED, None, f"{what}; {remedy}")
        if before is None:
            remedy = (
                "let the source send the row (Postgres: REPLICA IDENTITY FULL), or set source.format.deletes: ignore"
            )
            detail = f"{what}, but the record does not contain the deleted row"
            raise InvalidEvent(Reason.DELETED, None, f"{detail}; {remedy}")
        return before

    def check_tombstone(self) -> None:
        """Raise InvalidEvent for a tombstone (a record without a value) if the policy is `deadLetter`.

        With the policy `event`, tombstones are ignored, because the record before a tombstone contains the deleted row.
        """
        if self._policy == "deadLetter":
            raise InvalidEvent(Reason.DELETED, None, f"{TOMBSTONE_MESSAGE}, or set source.format.deletes: ignore")


class Opener(ABC):
    """Extracts the JSON events from one pipeline's records."""

    def __init__(self, deletes: DeletePolicy) -> None:
        self.deletes = deletes

    def open(self, raws: Sequence[bytes], tombstones: Collection[int] = ()) -> OpenedRecords:
        """Return the events in records. `tombstones` are the indexes of records without a value."""
        if not tombstones:
            try:
                documents, envelopes = self.open_together(raws)
            except Exception:  # after any error, the events are read one by one
                documents = []
            if documents and not any(text in documents for text in NO_EVENT):
                return OpenedRecords(range(len(raws)), documents, envelopes)
        contents: dict[int, Content] = {}
        invalid: dict[int, InvalidEvent] = {}
        ignored = []
        for index, raw in enumerate(raws):
            try:
                if index in tombstones:
                    self.deletes.check_tombstone()
                    content = None
                else:
                    content = self.open_one(raw)
            except InvalidEvent as error:
                invalid[index] = error
                continue
            except Exception as error:
                invalid[index] = decoder_failure(error)
                continue
            if content is None:
                ignored.append(index)
            else:
                contents[index] = content
        documents, envelopes = [c.document for c in contents.values()], [c.envelope for c in contents.values()]
        return OpenedRecords(list(contents), documents, envelopes, invalid, frozenset(ignored))

    @abstractmethod
    def open_together(self, raws: Sequence[bytes]) -> tuple[list[bytes], Sequence[bytes]]:
        """Return the events and the envelopes of many records.

        This method may raise an error or find no event in a record. Then `open` reads the records one by one.

        Raises:
            Exception: at least one record cannot be read.
        """

    @abstractmethod
    def open_one(self, raw: bytes) -> Content | None:
        """Return the event and the envelope of a record, or None for an ignored delete.

        Raises:
            InvalidEvent: the record cannot be read.
        """


class PlainOpener(Opener):
    """Leaves records without an envelope unchanged."""

    def open_together(self, raws: Sequence[bytes]) -> tuple[list[bytes], Sequence[bytes]]:
        """Return all records."""
        return list(raws), raws

    def open_one(self, raw: bytes) -> Content | None:
        """Return the record."""
        return Content(raw, raw)
