"""The rules of `spec.source.format`: which members go together, and which fields they allow."""

from __future__ import annotations

from collections.abc import Iterator

from tidemill_contract.resource.faults import Fault
from tidemill_contract.resource.parts import Parts

_PATH = "spec.source.format"


def format_faults(parts: Parts, _columns: object, _limits: object) -> Iterator[Fault]:
    """Faults of the format beyond its members' own values."""
    written = parts.format
    if written is None:
        return
    if written.deletes == "event" and written.envelope != "debezium":
        message = "only Debezium's deletes have the row before"
        yield Fault(f"{_PATH}.deletes", "event", message, "write ignore or deadLetter, or set envelope: debezium")
    if written.envelope != "none":
        return
    for part in parts.fields:
        if part.model is not None and part.model.origin == "envelope":
            message, remedy = "records have no envelope", f"set {_PATH}.envelope, or take from out"
            yield Fault(f"{part.path}.from", "envelope", message, remedy)
