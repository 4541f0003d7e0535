"""The reasons for dead letters, and the record headers that contain the reason."""

from __future__ import annotations

from enum import StrEnum

QUARANTINE_PREFIX = b"\x00"
"""Ingest and the Python stage write this byte before an event that they refuse. JSON never starts with a zero byte, so
a JSON decoder refuses the record."""
REASON_HEADER, FIELD_HEADER, DETAIL_HEADER = "reason", "field", "detail"


class Reason(StrEnum):
    """The reason why an event is a dead letter."""

    NOT_JSON = "not_json"
    NOT_AN_OBJECT = "not_an_object"
    UNREADABLE = "unreadable"
    UNKNOWN_SCHEMA = "unknown_schema"
    NOT_AN_ENVELOPE = "not_an_envelope"
    DELETED = "deleted"
    MISSING_FIELD = "missing_field"
    UNKNOWN_FIELD = "unknown_field"
    MISTYPED = "mistyped"
    OUT_OF_RANGE = "out_of_range"
    BAD_STRING = "bad_string"
    KEY_TOO_LONG = "key_too_long"
    TOO_LARGE = "too_large"
    TOO_OLD = "too_old"
    TOO_FAR_IN_THE_FUTURE = "too_far_in_the_future"
    TRANSFORM_FAILED = "transform_failed"
    EXPRESSION_FAILED = "expression_failed"
    REFUSED_BY_DATABASE = "refused_by_database"
    LATE = "late"


class InvalidEvent(Exception):
    """The error for an invalid event.

    Attributes:
        reason: the reason why the event is invalid.
        field: the invalid field, or None if the whole event is invalid.
        detail: the value received, the value expected, and the remedy.
    """

    def __init__(self, reason: Reason, field: str | None = None, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason, self.field, self.detail = reason, field, detail
