"""The rules of `spec.source.fields`: where values come from, their formats and their defaults."""

from __future__ import annotations

from collections.abc import Iterator

from tidemill_contract.decimals import DECIMAL
from tidemill_contract.events.fields import MAX_KEY_BYTES
from tidemill_contract.events.invalid_events import DETAIL_HEADER, FIELD_HEADER, REASON_HEADER
from tidemill_contract.events.json_fields import JSON
from tidemill_contract.events.timestamps import UNITS, check_format, check_zone
from tidemill_contract.events.types import check_default
from tidemill_contract.functions.base import STRINGS
from tidemill_contract.resource.faults import ABSENT, Fault
from tidemill_contract.resource.parts import Parts
from tidemill_contract.resource.paths import EACH_ELEMENT, Step, Steps, show_path
from tidemill_contract.resource.source import FieldSpec

RESERVED_HEADERS = (REASON_HEADER, FIELD_HEADER, DETAIL_HEADER)
"""The record headers in which ingest says why an event was refused."""
_SHARED_SETTINGS = ("type", "format", "zone", "precision", "scale", "default")
"""If two fields read the same member, these settings must be equal."""
MEMBER_ORIGINS = ("value", "envelope")
"""If `from` is one of these values, `path` names members or a column."""
_ORIGIN_TYPES = {"timestamp": "timestamp", "partition": "integer", "offset": "integer"}


def field_faults(parts: Parts, _columns: object, _limits: object) -> Iterator[Fault]:
    """Yield a fault for each broken rule about fields."""
    event_time = parts.event_time.field if parts.event_time else None
    groups = {name for aggregation in parts.aggregations for _, name in aggregation.group_by}
    groups |= {name for rule in parts.anomalies if rule.model is not None for name in rule.model.group_by}
    arrays: dict[Steps, str] = {}
    fields_by_path: dict[str, dict[Steps, FieldSpec]] = {origin: {} for origin in MEMBER_ORIGINS}
    for part in parts.fields:
        if part.model is None:
            continue
        yield from _array_faults(part.model, part.path, parts, arrays)
        if part.model.type == JSON:
            yield from _json_faults(part.model, part.path, parts)
            continue
        if part.model.type == STRINGS:
            yield from _strings_faults(part.model, part.path, parts)
        origin_faults = list(_origin_faults(part.model, part.path, parts))
        yield from origin_faults
        if not origin_faults and part.model.origin in MEMBER_ORIGINS:
            yield from _path_faults(part.model, part.path, fields_by_path[part.model.origin])
        if part.model.origin not in _ORIGIN_TYPES:
            yield from _format_faults(part.model, part.path)
        yield from _digits_faults(part.model, part.path)
        yield from _default_faults(part.model, part.path, event_time)
        if part.model.name in groups:
            yield from _group_default_faults(part.model, part.path)


def _json_faults(field: FieldSpec, path: str, parts: Parts) -> Iterator[Fault]:
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


def _array_faults(field: FieldSpec, path: str, parts: Parts, arrays: dict[Steps, str]) -> Iterator[Fault]:
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


def _strings_faults(field: FieldSpec, path: str, parts: Parts) -> Iterator[Fault]:
    if field.name == parts.key:
        yield Fault("spec.source.key", field.name, "is of type strings", "use a field with a single value")
    if field.origin not in MEMBER_ORIGINS:
        message, remedy = f"{field.place} is one text", "write type: string, or remove the member 'from'"
        yield Fault(f"{path}.type", field.type, message, remedy)


def _origin_faults(field: FieldSpec, path: str, parts: Parts) -> Iterator[Fault]:
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
    elif field.path is not None and field.origin not in MEMBER_ORIGINS:
        yield Fault(f"{path}.path", field.path, f"{field.place} has no members", "remove path")
    if field.origin not in _ORIGIN_TYPES:
        return
    if field.type != _ORIGIN_TYPES[field.origin]:
        remedy = f"write type: {_ORIGIN_TYPES[field.origin]}"
        yield Fault(f"{path}.type", field.type, f"{field.place} is of type {_ORIGIN_TYPES[field.origin]}", remedy)
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


def _path_faults(field: FieldSpec, path: str, fields_by_path: dict[Steps, FieldSpec]) -> Iterator[Fault]:
    steps, where = field.member_path, f"{path}.path" if field.path is not None else f"{path}.name"
    value = field.path if field.path is not None else field.name
    for other, earlier in fields_by_path.items():
        name = earlier.name
        short, long = sorted((steps, other), key=len)
        if name == field.name and field.path is None:
            continue  # another rule reports repeated field names
        if short == long:
            differing = [s for s in _SHARED_SETTINGS if getattr(field, s) != getattr(earlier, s)]
            if differing:
                message = f"{field.name} and {name} are both read from {show_path(other)}, but differ in "
                remedy = "use the same settings in both fields, or derive one field from the other"
                yield Fault(where, value, message + " and ".join(differing), remedy)
        elif long[: len(short)] == short:
            reader = name if other == short else field.name
            message = (
                f"field {reader} reads the whole value of {show_path(short)}, so no other field can read a part of it"
            )
            yield Fault(where, value, message, "remove one of these fields")
        elif (at := _first_difference(steps, other)) is not None:
            here, there = _container_kind(steps[at]), _container_kind(other[at])
            if "object" in (here, there) and here != there:
                message = (
                    f"{show_path(steps[:at])} is an array in one path and an object in another: see the path of {name}"
                )
                yield Fault(where, value, message, "correct one of these paths")
            elif here != there:
                message = f"{show_path(steps[:at])} has [] in one path and an index in another: see the path of {name}"
                yield Fault(where, value, message, "write [] in both paths, or an index in both paths")
    fields_by_path.setdefault(steps, field)


def _first_difference(steps: Steps, other: Steps) -> int | None:
    """Return the first index at which two paths differ, or None."""
    return next((at for at, pair in enumerate(zip(steps, other, strict=False)) if pair[0] != pair[1]), None)


def _container_kind(step: Step) -> str:
    return "object" if isinstance(step, str) else "exploded" if step == EACH_ELEMENT else "array"


def value_format_faults(field: FieldSpec, path: str) -> Iterator[Fault]:
    """Yield a fault for each wrong `format`, `zone`, `precision` or `scale` of a field."""
    yield from _format_faults(field, path)
    yield from _digits_faults(field, path)


def _format_faults(field: FieldSpec, path: str) -> Iterator[Fault]:
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


def _digits_faults(field: FieldSpec, path: str) -> Iterator[Fault]:
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


def _has_valid_format(field: FieldSpec) -> bool:
    return not list(_format_faults(field, "")) and not list(_digits_faults(field, ""))


def _default_faults(field: FieldSpec, path: str, event_time: str | None) -> Iterator[Fault]:
    if field.default is None or field.origin in _ORIGIN_TYPES:
        return
    where = f"{path}.default"
    if field.name == event_time:
        remedy = "remove the default, or remove eventTime.field to use the record's timestamp"
        yield Fault(where, field.default, "the event time cannot have a default", remedy)
    elif field.required:
        remedy = "remove required or default"
        yield Fault(where, field.default, "a required field cannot have a default", remedy)
    elif _has_valid_format(field):
        try:
            check_default(field)
        except ValueError as error:
            message, _, remedy = str(error).partition(": ")
            yield Fault(where, field.default, message, remedy)


def _group_default_faults(field: FieldSpec, path: str) -> Iterator[Fault]:
    length = len(field.default.encode()) if isinstance(field.default, str) else 0
    if length > MAX_KEY_BYTES:
        message = f"has {length} bytes, and a group column can hold at most {MAX_KEY_BYTES}"
        yield Fault(f"{path}.default", field.default, message, "write a shorter default, or remove the default")
