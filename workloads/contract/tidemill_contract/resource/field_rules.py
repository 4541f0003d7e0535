"""The rules of `spec.source.fields`: where values come from, their formats and their defaults."""

from __future__ import annotations

from collections.abc import Iterator

from tidemill_contract.decimals import DECIMAL
from tidemill_contract.events.fields import MAX_KEY_BYTES
from tidemill_contract.events.kept_json import JSON
from tidemill_contract.events.timestamps import UNITS, check_format, check_zone
from tidemill_contract.events.types import check_default
from tidemill_contract.events.verdicts import DETAIL_HEADER, FIELD_HEADER, REASON_HEADER
from tidemill_contract.functions.base import STRINGS
from tidemill_contract.resource.faults import ABSENT, Fault
from tidemill_contract.resource.parts import Parts
from tidemill_contract.resource.paths import EACH, Step, Steps, show_path
from tidemill_contract.resource.source import FieldSpec

RESERVED_HEADERS = (REASON_HEADER, FIELD_HEADER, DETAIL_HEADER)
"""The record headers in which ingest says why an event was refused."""
_ONE_FOR_ALL = ("type", "format", "zone", "precision", "scale", "default")
"""If two fields read the same member, these settings must be equal."""
MEMBERS = ("value", "envelope")
"""If `from` is one of these values, `path` names members or a column."""
_OWN_TYPES = {"timestamp": "timestamp", "partition": "integer", "offset": "integer"}


def field_faults(parts: Parts, _columns: object, _limits: object) -> Iterator[Fault]:
    """Yield a fault for each broken rule about fields."""
    needed = parts.event_time.field if parts.event_time else None
    groups = {name for aggregation in parts.aggregations for _, name in aggregation.group_by}
    groups |= {name for rule in parts.anomalies if rule.model is not None for name in rule.model.group_by}
    arrays: dict[Steps, str] = {}
    read: dict[str, dict[Steps, FieldSpec]] = {origin: {} for origin in MEMBERS}
    for part in parts.fields:
        if part.model is None:
            continue
        yield from _exploded(part.model, part.path, parts, arrays)
        if part.model.type == JSON:
            yield from _kept(part.model, part.path, parts)
            continue
        if part.model.type == STRINGS:
            yield from _strings(part.model, part.path, parts)
        origin = list(_origin(part.model, part.path, parts))
        yield from origin
        if not origin and part.model.origin in MEMBERS:
            yield from _path(part.model, part.path, read[part.model.origin])
        if part.model.origin not in _OWN_TYPES:
            yield from _format(part.model, part.path)
        yield from _digits(part.model, part.path)
        yield from _default(part.model, part.path, needed)
        if part.model.name in groups:
            yield from _default_group(part.model, part.path)


def _kept(field: FieldSpec, path: str, parts: Parts) -> Iterator[Fault]:
    if parts.events is not None and not parts.events.store:
        message, remedy = (
            "a field of type json is stored only if raw events are stored",
            "set spec.events.store: true, or remove the field",
        )
        yield Fault(f"{path}.type", JSON, message, remedy)
    if field.name == parts.key:
        yield Fault("spec.source.key", field.name, "is of type json", "use a field with a single value")
    given = ("default", field.default), ("format", field.format), ("zone", field.zone)
    for member, value in (*given, ("required", field.required or None), ("from", field.taken_from)):
        if value is not None:
            yield Fault(f"{path}.{member}", value, f"a field of type json cannot have {member}", f"remove {member}")


def _exploded(field: FieldSpec, path: str, parts: Parts, arrays: dict[Steps, str]) -> Iterator[Fault]:
    array = field.array
    if array is None:
        return
    if field.name == parts.key:
        message = f"is read from the elements of {show_path(array)}, but a record has only one key"
        yield Fault("spec.source.key", field.name, message, "use a field outside the exploded array")
    other = next((steps for steps in arrays if steps != array), None)
    if other is not None:
        message = f"field {arrays[other]} already explodes {show_path(other)}, and only one array can be exploded"
        remedy = f"read one element, such as {show_path((*array, 0))}, or explode this array in another pipeline"
        yield Fault(f"{path}.path", field.path, message, remedy)
    arrays.setdefault(array, field.name)


def _strings(field: FieldSpec, path: str, parts: Parts) -> Iterator[Fault]:
    if field.name == parts.key:
        yield Fault("spec.source.key", field.name, "is of type strings", "use a field with a single value")
    if field.origin not in MEMBERS:
        message, remedy = f"{field.place} is one text", "write type: string, or remove the member 'from'"
        yield Fault(f"{path}.type", field.type, message, remedy)


def _origin(field: FieldSpec, path: str, parts: Parts) -> Iterator[Fault]:
    if field.origin == "value":
        return
    if field.name == parts.key:
        message = f"is read from {field.place}, but the key must be a field of the event"
        yield Fault("spec.source.key", field.name, message, "use a field of the event")
    if field.origin == "header":
        if field.path is not None and not isinstance(field.path, str):
            yield Fault(f"{path}.path", field.path, "is not the name of a header", "write the header's name as a text")
        elif field.header in RESERVED_HEADERS:
            yield Fault(f"{path}.path", field.header, "this header is reserved for ingest", "use another header")
    elif field.path is not None and field.origin not in MEMBERS:
        yield Fault(f"{path}.path", field.path, f"{field.place} has no members", "remove path")
    if field.origin not in _OWN_TYPES:
        return
    if field.type != _OWN_TYPES[field.origin]:
        remedy = f"write type: {_OWN_TYPES[field.origin]}"
        yield Fault(f"{path}.type", field.type, f"{field.place} is of type {_OWN_TYPES[field.origin]}", remedy)
    for member, value in (("default", field.default), ("format", field.format), ("zone", field.zone)):
        if value is not None:
            yield Fault(
                f"{path}.{member}", value, f"a field with from: {field.origin} cannot have {member}", f"remove {member}"
            )
    if parts.event_time is not None and parts.event_time.field == field.name:
        message, remedy = (
            "is the record's timestamp",
            "remove eventTime.field: the record's timestamp is the default event time",
        )
        yield Fault("spec.source.eventTime.field", field.name, message, remedy)


def _path(field: FieldSpec, path: str, read: dict[Steps, FieldSpec]) -> Iterator[Fault]:
    steps, where = field.member, f"{path}.path" if field.path is not None else f"{path}.name"
    written = field.path if field.path is not None else field.name
    for other, earlier in read.items():
        name = earlier.name
        short, long = sorted((steps, other), key=len)
        if name == field.name and field.path is None:
            continue  # another rule reports repeated field names
        if short == long:
            if differing := [member for member in _ONE_FOR_ALL if getattr(field, member) != getattr(earlier, member)]:
                message = f"{field.name} and {name} are both read from {show_path(other)}, but differ in "
                remedy = "use the same settings in both fields, or derive one field from the other"
                yield Fault(where, written, message + " and ".join(differing), remedy)
        elif long[: len(short)] == short:
            reader = name if other == short else field.name
            message = (
                f"field {reader} reads the whole value of {show_path(short)}, so no other field can read a part of it"
            )
            yield Fault(where, written, message, "remove one of these fields")
        elif (at := _parting(steps, other)) is not None:
            here, there = _kind(steps[at]), _kind(other[at])
            if "object" in (here, there) and here != there:
                message = (
                    f"{show_path(steps[:at])} is an array in one path and an object in another: see the path of {name}"
                )
                yield Fault(where, written, message, "correct one of these paths")
            elif here != there:
                message = f"{show_path(steps[:at])} has [] in one path and an index in another: see the path of {name}"
                yield Fault(where, written, message, "write [] in both paths, or an index in both paths")
    read.setdefault(steps, field)


def _parting(steps: Steps, other: Steps) -> int | None:
    """Return the first index at which two paths differ, or None."""
    return next((at for at, pair in enumerate(zip(steps, other, strict=False)) if pair[0] != pair[1]), None)


def _kind(step: Step) -> str:
    return "object" if isinstance(step, str) else "exploded" if step == EACH else "array"


def written_faults(field: FieldSpec, path: str) -> Iterator[Fault]:
    """Yield a fault for each wrong `format`, `zone`, `precision` or `scale` of a field."""
    yield from _format(field, path)
    yield from _digits(field, path)


def _format(field: FieldSpec, path: str) -> Iterator[Fault]:
    for member, value, check in (("format", field.format, check_format), ("zone", field.zone, check_zone)):
        if value is None:
            continue
        if field.type != "timestamp":
            remedy = f"remove {member}, or declare {field.name} with type: timestamp"
            yield Fault(f"{path}.{member}", value, f"only timestamps have a {member}", remedy)
            continue
        try:
            check(value)
        except ValueError as error:
            message, _, remedy = str(error).partition(": ")
            yield Fault(f"{path}.{member}", value, message, remedy)
    if field.type == "timestamp" and field.zone is not None and field.format in UNITS:
        message, remedy = f"a timestamp in the unit {field.format} has no zone", "remove zone"
        yield Fault(f"{path}.zone", field.zone, message, remedy)


def _digits(field: FieldSpec, path: str) -> Iterator[Fault]:
    if field.type != DECIMAL:
        for member, value in (("precision", field.precision), ("scale", field.scale)):
            if value is not None:
                remedy = f"remove {member}, or declare {field.name} with type: decimal"
                yield Fault(f"{path}.{member}", value, f"only decimals have a {member}", remedy)
    elif field.scale is None:
        message, remedy = "a decimal needs the number of digits after the point", "add a scale, such as scale: 2"
        yield Fault(f"{path}.scale", ABSENT, message, remedy)
    elif field.precision is not None and field.scale > field.precision:
        message = f"is more than precision {field.precision}"
        yield Fault(f"{path}.scale", field.scale, message, f"write at most {field.precision}, or raise precision")


def _readable(field: FieldSpec) -> bool:
    return not list(_format(field, "")) and not list(_digits(field, ""))


def _default(field: FieldSpec, path: str, event_time: str | None) -> Iterator[Fault]:
    if field.default is None or field.origin in _OWN_TYPES:
        return
    where = f"{path}.default"
    if field.name == event_time:
        remedy = "remove the default, or remove eventTime.field to use the record's timestamp"
        yield Fault(where, field.default, "the event time cannot have a default", remedy)
    elif field.required:
        remedy = "remove required or default"
        yield Fault(where, field.default, "a required field cannot have a default", remedy)
    elif _readable(field):
        try:
            check_default(field)
        except ValueError as error:
            message, _, remedy = str(error).partition(": ")
            yield Fault(where, field.default, message, remedy)


def _default_group(field: FieldSpec, path: str) -> Iterator[Fault]:
    length = len(field.default.encode()) if isinstance(field.default, str) else 0
    if length > MAX_KEY_BYTES:
        message = f"has {length} bytes, and a group column can hold at most {MAX_KEY_BYTES}"
        yield Fault(f"{path}.default", field.default, message, "write a shorter default, or remove the default")
