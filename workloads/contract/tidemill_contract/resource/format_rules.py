"""The rules of `spec.source.format`: combinations of members, and the fields that each format allows."""

from __future__ import annotations

from collections.abc import Iterator
from urllib.parse import urlsplit

from tidemill_contract.resource.faults import ABSENT, Fault, did_you_mean
from tidemill_contract.resource.kinds.formats import WITH_SCHEMAS, FormatSpec
from tidemill_contract.resource.parts import Parts
from tidemill_contract.resource.paths import EACH_ELEMENT, exploded_array, show_path

_PATH = "spec.source.format"
_ENVELOPES = {"csv": ("none",), "avro": ("none", "debezium"), "protobuf": ("none", "debezium")}
"""The envelopes that csv, avro and protobuf allow. Other formats allow all envelopes."""


def format_faults(parts: Parts, _columns: object, _limits: object) -> Iterator[Fault]:
    """Yield a fault for each broken rule about the format."""
    record_format = parts.format
    if record_format is None:
        return
    allowed = _ENVELOPES.get(record_format.type)
    if allowed is not None and record_format.envelope not in allowed:
        message = f"{record_format.type} has no such envelope"
        yield Fault(f"{_PATH}.envelope", record_format.envelope, message, f"write {' or '.join(allowed)}")
    if record_format.deletes == "event" and record_format.envelope != "debezium":
        message = "only Debezium's envelope contains the deleted row"
        yield Fault(f"{_PATH}.deletes", "event", message, "write ignore or deadLetter, or set envelope: debezium")
    yield from _registry_faults(record_format)
    if record_format.type == "csv":
        yield from _csv_faults(record_format, parts)
    else:
        for member in record_format.model_fields_set & {"columns", "delimiter"}:
            message = f"{record_format.type} has no {member}"
            yield Fault(
                f"{_PATH}.{member}", getattr(record_format, member), message, f"remove {member}, or set type: csv"
            )
    yield from _array_faults(record_format, parts)
    if record_format.envelope != "none":
        return
    for part in parts.fields:
        if part.model is not None and part.model.origin == "envelope":
            message, remedy = "records have no envelope", f"set {_PATH}.envelope, or remove the member 'from'"
            yield Fault(f"{part.path}.from", "envelope", message, remedy)


def _array_faults(record_format: FormatSpec, parts: Parts) -> Iterator[Fault]:
    for part in parts.fields:
        field = part.model
        if field is None or exploded_array(field.member_path) is None:
            continue
        place = show_path(tuple(0 if step == EACH_ELEMENT else step for step in field.member_path))
        if field.origin == "envelope":
            message, remedy = "arrays in an envelope cannot be exploded", f"read one element, such as {place}"
            yield Fault(f"{part.path}.path", field.path, message, remedy)
        elif field.origin == "value" and record_format.type in WITH_SCHEMAS:
            message = f"arrays in records of type {record_format.type} cannot be exploded"
            remedy = f"read one element, such as {place}, or send JSON"
            yield Fault(f"{part.path}.path", field.path, message, remedy)


def _registry_faults(record_format: FormatSpec) -> Iterator[Fault]:
    registry, path = record_format.registry, f"{_PATH}.registry"
    if registry is None:
        if record_format.type in WITH_SCHEMAS:
            message = f"records of type {record_format.type} need a schema registry"
            yield Fault(path, ABSENT, message, "add registry: {url: …} with the schema registry that the writers use")
        return
    if record_format.type not in (*WITH_SCHEMAS, "jsonSchema"):
        yield Fault(
            path,
            registry.url,
            f"records of type {record_format.type} need no schema",
            "remove the registry, or set type: avro, protobuf or jsonSchema",
        )
        return
    for url in registry.url.split(","):
        try:
            parts = urlsplit(url.strip())
            wrong = parts.scheme not in ("http", "https") or not parts.hostname or parts.port == 0
        except ValueError:
            wrong = True
        if wrong:
            yield Fault(f"{path}.url", url, "is not an address", "write http://host:port or https://host:port")
        elif parts.username is not None or parts.password is not None:
            message, remedy = (
                "contains a password, which everybody could read",
                "put the password into a Secret, and set secretRef",
            )
            yield Fault(f"{path}.url", f"{parts.scheme}://…@{parts.hostname}", message, remedy)


def _csv_faults(record_format: FormatSpec, parts: Parts) -> Iterator[Fault]:
    if record_format.delimiter in '"\r\n\0':
        yield Fault(f"{_PATH}.delimiter", record_format.delimiter, "cannot separate cells", "write ',', ';' or \"\\t\"")
    columns = record_format.columns
    duplicate = next((name for at, name in enumerate(columns) if name in columns[:at]), None)
    if duplicate is not None:
        yield Fault(f"{_PATH}.columns", duplicate, "the column is listed twice", "give each column a different name")
    for part in parts.fields:
        field = part.model
        if field is None or field.origin != "value":
            continue
        if field.type in ("strings", "json"):
            message, remedy = f"a cell of CSV cannot have the type {field.type}", "write type: string"
            yield Fault(f"{part.path}.type", field.type, message, remedy)
        name = field.member_path[0] if len(field.member_path) == 1 else None
        where = f"{part.path}.path" if field.path is not None else f"{part.path}.name"
        if name is None or (field.path is not None and not record_format.columns):
            message = (
                "a cell of CSV has no members"
                if name is None
                else "path names a column, but the columns are not listed"
            )
            remedy = f"use a column's name, and list all columns in {_PATH}.columns"
            yield Fault(where, field.path, message, remedy)
        elif record_format.columns and name not in record_format.columns:
            message = f"{_PATH}.columns has no column of this name"
            yield Fault(where, name, message, did_you_mean(str(name), record_format.columns))
