"""Turns a record of the source topic into records of the stage topic."""

from __future__ import annotations

from typing import NamedTuple

from tidemill_contract.events import quarantine
from tidemill_contract.events.fields import MAX_EVENT_BYTES, MAX_RECORD_BYTES
from tidemill_contract.events.verdicts import QUARANTINE_PREFIX, InvalidEvent, Reason
from tidemill_contract.staged import ORIGIN_HEADER, Headers, Origin
from tidemill_processor.stage.function import UserFunction

KEPT_BYTES = 64 * 1024
"""If an event is too large, its dead letter contains only the first bytes, up to this size."""
_ROOM_BYTES = 4 * 1024


class Written(NamedTuple):
    """A record for the stage topic."""

    value: bytes | None
    key: bytes | None
    headers: list[tuple[str, bytes | None]]


class Rewritten(NamedTuple):
    """The result for one record of the source topic.

    Attributes:
        records: the records for the stage topic, or an empty list for a dropped event.
        outcome: staged, dropped, failed, or unread for a record without an event.
    """

    records: list[Written]
    outcome: str


class Rewriter:
    """Calls the user's function with the events of records."""

    def __init__(self, function: UserFunction) -> None:
        self._function = function

    def rewrite(self, value: bytes | None, key: bytes | None, headers: Headers | None, origin: Origin) -> Rewritten:
        """Return the records for the stage topic that replace one record of the source topic.

        Records without a value are copied. Events that ingest has refused are copied too. A record that Python
        cannot parse as JSON becomes a refused event.
        """
        kept = list(headers or ())
        if value is None or value.startswith(QUARANTINE_PREFIX):
            return Rewritten([_record(value, key, kept, origin)], "unread")
        try:
            values = self._function.results(value)
        except InvalidEvent as verdict:
            if verdict.reason == Reason.TRANSFORM_FAILED:
                return Rewritten([_refused(value, key, kept, origin, verdict)], "failed")
            if len(value) > MAX_EVENT_BYTES:
                detail = f"has {len(value):,} bytes, and {MAX_EVENT_BYTES:,} are allowed; send smaller events"
                verdict = InvalidEvent(Reason.TOO_LARGE, None, detail)
            return Rewritten([_refused(value, key, kept, origin, verdict)], "unread")
        if not values:
            return Rewritten([], "dropped")
        return Rewritten([_record(each, key, kept, origin) for each in values], "staged")

    def refuse(
        self, value: bytes | None, key: bytes | None, headers: Headers | None, origin: Origin, *, why: str
    ) -> Rewritten:
        """Replace a record with a refused event, because calls of the user's function did not return."""
        verdict = InvalidEvent(Reason.TRANSFORM_FAILED, None, why)
        return Rewritten([_refused(value or b"", key, list(headers or ()), origin, verdict)], "failed")


def _record(value: bytes | None, key: bytes | None, headers: list[tuple[str, bytes | None]], origin: Origin) -> Written:
    size = len(value or b"") + len(key or b"") + sum(len(name) + len(text or b"") for name, text in headers)
    if size > MAX_RECORD_BYTES - _ROOM_BYTES:
        # Kafka would refuse a larger record, and the stage would retry forever.
        detail = f"the record with its key and headers has {size:,} bytes; send smaller records"
        return _refused(value or b"", None, [], origin, InvalidEvent(Reason.TRANSFORM_FAILED, None, detail))
    return Written(value, key, [*headers, (ORIGIN_HEADER, origin.encode())])


def _refused(
    value: bytes,
    key: bytes | None,
    headers: list[tuple[str, bytes | None]],
    origin: Origin,
    verdict: InvalidEvent,
) -> Written:
    kept = value if len(value) <= MAX_EVENT_BYTES else value[:KEPT_BYTES]
    return _record(QUARANTINE_PREFIX + kept, key, [*headers, *quarantine.headers(verdict)], origin)
