"""The rules of `spec.source.fields`: where values are read from, and their defaults."""

from __future__ import annotations

from collections.abc import Iterator

from tidemill_contract.events.types import default_of
from tidemill_contract.resource.faults import Fault
from tidemill_contract.resource.parts import Parts
from tidemill_contract.resource.paths import Steps, show_path
from tidemill_contract.resource.spec import FieldSpec


def field_faults(parts: Parts, _columns: object, _limits: object) -> Iterator[Fault]:
    """Faults of fields beyond their names and types."""
    needed = parts.event_time.field if parts.event_time else None
    read: dict[Steps, str] = {}
    for part in parts.fields:
        if part.model is None:
            continue
        yield from _path(part.model, part.path, read)
        yield from _default(part.model, part.path, needed)


def _path(field: FieldSpec, path: str, read: dict[Steps, str]) -> Iterator[Fault]:
    """Faults of a path; `read`: the fields before by where they are, which takes this one too."""
    steps, where = field.steps, f"{path}.path" if field.path is not None else f"{path}.name"
    written = field.path if field.path is not None else field.name
    for other, name in read.items():
        short, long = sorted((steps, other), key=len)
        if name == field.name and field.path is None:
            continue  # a name that is there twice is told as that
        if short == long:
            remedy = "take one of them out; a derive can give it another name or type"
            yield Fault(where, written, f"field {name} is read from {show_path(other)} already", remedy)
        elif long[: len(short)] == short:
            outer = f"{show_path(short)} is a value of field {name if other == short else field.name}"
            yield Fault(where, written, f"{outer}, so nothing is in it", "take one of both fields out")
        elif (at := _parting(steps, other)) is not None and isinstance(steps[at], int) != isinstance(other[at], int):
            there = show_path(steps[:at])
            message = f"{there} would be an array, and an object too, as in the path of {name}"
            yield Fault(where, written, message, "correct one of both paths")
    read.setdefault(steps, field.name)


def _parting(steps: Steps, other: Steps) -> int | None:
    """Where two paths part; None: one begins with the other."""
    return next((at for at, pair in enumerate(zip(steps, other, strict=False)) if pair[0] != pair[1]), None)


def _default(field: FieldSpec, path: str, event_time: str | None) -> Iterator[Fault]:
    if field.default is None:
        return
    where = f"{path}.default"
    if field.name == event_time:
        remedy = "take it out; without eventTime.field the time of the Kafka record counts"
        yield Fault(where, field.default, "the event time has no default", remedy)
    elif field.required:
        remedy = "take out required, or default"
        yield Fault(where, field.default, "a required field is never absent", remedy)
    else:
        try:
            default_of(field)
        except ValueError as error:
            message, _, remedy = str(error).partition(": ")
            yield Fault(where, field.default, message, remedy)
