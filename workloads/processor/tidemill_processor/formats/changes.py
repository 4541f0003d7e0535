"""Finds the row in a change event of Debezium that was read from Avro or Protobuf."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tidemill_contract.events.details import shown
from tidemill_contract.events.formats.opening import Deletes
from tidemill_contract.events.verdicts import InvalidEvent, Reason


def row_of(change: Mapping[str, Any], deletes: Deletes) -> Any:
    """Return the row that is the event of a change, or None if the policy for deletes leaves the change out.

    Raises:
        InvalidEvent: the record becomes a dead letter.
    """
    op = change.get("op")
    match op:
        case "c" | "r" | "u":
            row = change.get("after")
            if row is None:
                detail = f"the change event of op {op} has no row in after; see how its source is set up"
                raise InvalidEvent(Reason.NOT_AN_ENVELOPE, None, detail)
            return row
        case "d":
            before = change.get("before")
            known = deletes.row("the change event deletes a row (op d)", b"" if before is None else b"{}")
            return before if known is not None else None
        case "t":
            return deletes.row("the change event truncates the table (op t)")
        case None:
            found = shown(", ".join(list(change)[:6]).encode())
            remedy = "correct source.format.envelope (none: each record is an event), or send records in that envelope"
            detail = f"expected a Debezium change event (op, before, after), got the members {found}; {remedy}"
            raise InvalidEvent(Reason.NOT_AN_ENVELOPE, None, detail)
    detail = f"a change event of op {shown(str(op).encode())} has no row; take such change events out of the topic"
    raise InvalidEvent(Reason.NOT_AN_ENVELOPE, None, detail)
