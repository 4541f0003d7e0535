"""Find the row in a Debezium change event."""

from __future__ import annotations

from typing import TypeVar

from tidemill_contract.events.event_errors import show_bytes
from tidemill_contract.events.formats.opener import DeletePolicy
from tidemill_contract.events.invalid_events import InvalidEvent, Reason

T = TypeVar("T")

WRITES = frozenset(("c", "r", "u"))
"""The values of `op` for changes that insert or update a row."""
EXPECTED_ENVELOPE = "Debezium change event (op, before, after)"


def row_of(op: object, before: T | None, after: T | None, deletes: DeletePolicy) -> T | None:
    """Return the row of a change, or None for a delete that the policy `deletes` ignores.

    Raises:
        InvalidEvent: the change has no row, its kind is unknown, or the policy refuses deletes.
    """
    match op:  # the record's schema defines the type of `op`
        case "c" | "r" | "u":
            if after is None:
                detail = f"the change event with op {op} has no row in after; check the configuration of the source"
                raise InvalidEvent(Reason.NOT_AN_ENVELOPE, None, detail)
            return after
        case "d":
            return deletes.deleted_row("the change event reports a deleted row (op d)", before)
        case "t":
            return deletes.deleted_row("the change event reports a truncated table (op t)", before=None)
    detail = (
        f"a change event with op {show_bytes(str(op).encode())} has no row; keep such change events out of the topic"
    )
    raise InvalidEvent(Reason.NOT_AN_ENVELOPE, None, detail)
