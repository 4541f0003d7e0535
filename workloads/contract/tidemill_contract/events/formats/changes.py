"""Finds the row that is the event of a change of Debezium, whichever format the change is written in."""

from __future__ import annotations

from typing import TypeVar

from tidemill_contract.events.details import shown
from tidemill_contract.events.formats.opening import Deletes
from tidemill_contract.events.verdicts import InvalidEvent, Reason

T = TypeVar("T")

WRITES = frozenset(("c", "r", "u"))
"""The ops of changes that insert or update a row."""
EXPECTED = "Debezium change event (op, before, after)"


def row_of(op: object, before: T | None, after: T | None, deletes: Deletes) -> T | None:
    """Return the row that is the event of a change, or None if the policy for deletes leaves the change out.

    Args:
        op: the kind of the change, which is not null.
        before: the row before the change, or None if the change does not contain it.
        after: the row after the change, or None if the change does not contain it.
        deletes: the policy for deletes.

    Raises:
        InvalidEvent: the record becomes a dead letter.
    """
    match op:  # which may be of any type, if a schema says so
        case "c" | "r" | "u":
            if after is None:
                detail = f"the change event of op {op} has no row in after; see how its source is set up"
                raise InvalidEvent(Reason.NOT_AN_ENVELOPE, None, detail)
            return after
        case "d":
            return deletes.row("the change event deletes a row (op d)", before)
        case "t":
            return deletes.row("the change event truncates the table (op t)", before=None)
    detail = f"a change event of op {shown(str(op).encode())} has no row; take such change events out of the topic"
    raise InvalidEvent(Reason.NOT_AN_ENVELOPE, None, detail)
