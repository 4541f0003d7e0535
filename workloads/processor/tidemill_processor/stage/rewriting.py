"""Turns a record of the source topic into records of the stage topic."""

from __future__ import annotations

from typing import NamedTuple

from tidemill_contract.events import quarantine
from tidemill_contract.events.fields import MAX_EVENT_BYTES, MAX_RECORD_BYTES
from tidemill_contract.events.invalid_events import QUARANTINE_PREFIX, InvalidEvent, Reason
from tidemill_contract.stage_records import ORIGIN_HEADER, Headers, Origin
from tidemill_processor.stage.function import UserFunction

KEPT_BYTES = 64 * 1024
"""If an event is too large, its dead letter contains only the first bytes, up to this size."""
_ROOM_BYTES = 4 * 1024


class StageRecord(NamedTuple):
    """A record for the stage topic."""

    value: bytes | None
    key: bytes | None
    headers: list[tuple[str, bytes | None]]


class RewriteResult(NamedTuple):
    """The result for one record of the source topic.

    Attributes:
        records: the records for the stage topic, or an empty list for a dropped event.
        outcome: staged, dropped, failed, or unread for a record without an event.
    """

    records: list[StageRecord]
    outcome: str


class Rewriter:
    """Calls the user's function with the events of records."""

    def __init__(self, function: UserFunction) -> None:
        self._function = function

    def rewrite(self, value: bytes | None, key: bytes | None, headers: Headers | None, origin: Origin) -> RewriteResult:
        """Return the records for the stage topic that replace one record of the source topic.

        Records without a value are copied. Events that ingest has refused are copied too. A record that Python
        cannot parse as JSON becomes a refused event.
        """
        all_headers = list(headers or ())
        if value is None or value.startswith(QUARANTINE_PREFIX):
            return RewriteResult([_record(value, key, all_headers, origin)], "unread")
        try:
            values = self._function.results(value)
        except InvalidEvent as invalid:
            if invalid.reason == Reason.TRANSFORM_FAILED:
                return RewriteResult([_refused(value, key, all_headers, origin, invalid)], "failed")
            if len(value) > MAX_EVENT_BYTES:
                detail = f"has {len(value):,} bytes, and {MAX_EVENT_BYTES:,} are allowed; send smaller events"
                invalid = InvalidEvent(Reason.TOO_LARGE, None, detail)
            return RewriteResult([_refused(value, key, all_headers, origin, invalid)], "unread")
        if not values:
            return RewriteResult([], "dropped")
        return RewriteResult([_record(each, key, all_headers, origin) for each in values], "staged")

    def refuse(
        self, value: bytes | None, key: bytes | None, headers: Headers | None, origin: Origin, *, why: str
    ) -> RewriteResult:
        """Replace a record with a refused event, because calls of the user's function did not return."""
        invalid = InvalidEvent(Reason.TRANSFORM_FAILED, None, why)
        return RewriteResult([_refused(value or b"", key, list(headers or ()), origin, invalid)], "failed")


def _record(
    value: bytes | None, key: bytes | None, headers: list[tuple[str, bytes | None]], origin: Origin
) -> StageRecord:
    size = len(value or b"") + len(key or b"") + sum(len(name) + len(text or b"") for name, text in headers)
    if size > MAX_RECORD_BYTES - _ROOM_BYTES:
        # Kafka would refuse a larger record, and the stage would retry forever.
        detail = f"the record with its key and headers has {size:,} bytes; send smaller records"
        return _refused(value or b"", None, [], origin, InvalidEvent(Reason.TRANSFORM_FAILED, None, detail))
    return StageRecord(value, key, [*headers, (ORIGIN_HEADER, origin.encode())])


def _refused(
    value: bytes,
    key: bytes | None,
    headers: list[tuple[str, bytes | None]],
    origin: Origin,
    invalid: InvalidEvent,
) -> StageRecord:
    stored_value = value if len(value) <= MAX_EVENT_BYTES else value[:KEPT_BYTES]
    return _record(QUARANTINE_PREFIX + stored_value, key, [*headers, *quarantine.headers(invalid)], origin)
