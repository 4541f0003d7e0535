"""Reads Protobuf records with the message types of the writer's schema."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

from tidemill_contract.events.decoder import DecodedBatch, EventDecoder
from tidemill_contract.events.event_errors import wrong_path
from tidemill_contract.events.formats.changes import WRITES
from tidemill_contract.events.formats.framing import FRAME_BYTES
from tidemill_contract.events.formats.typed import TypedDecoder
from tidemill_contract.events.invalid_events import InvalidEvent, Reason
from tidemill_contract.resource.source import FieldSpec
from tidemill_processor.formats.protobuf_types import (
    TIMESTAMP,
    ProtobufSchema,
    find_unread,
    indexes_of,
    is_absent,
    is_map,
    json_value,
    member,
    value_of,
)
from tidemill_processor.formats.registry import Schema
from tidemill_processor.formats.schema_reader import DecodingPlan, SchemaReader, with_changed
from tidemill_processor.formats.timestamp_fields import with_time_format

_INTEGERS = {
    FieldDescriptor.TYPE_INT32, FieldDescriptor.TYPE_INT64, FieldDescriptor.TYPE_SINT32, FieldDescriptor.TYPE_SINT64,
    FieldDescriptor.TYPE_SFIXED32, FieldDescriptor.TYPE_SFIXED64, FieldDescriptor.TYPE_UINT32,
    FieldDescriptor.TYPE_FIXED32,
}  # fmt: skip
_FLOATS = {FieldDescriptor.TYPE_DOUBLE, FieldDescriptor.TYPE_FLOAT}
_READABLE_TYPES: Mapping[str, set[int]] = {
    "string": {FieldDescriptor.TYPE_STRING, FieldDescriptor.TYPE_ENUM},
    "integer": _INTEGERS,
    "number": _INTEGERS | _FLOATS,
    "boolean": {FieldDescriptor.TYPE_BOOL},
    "timestamp": _INTEGERS | {FieldDescriptor.TYPE_STRING, FieldDescriptor.TYPE_MESSAGE},
}
"""The Protobuf types that can be read in columns, for each field type of the spec."""

_encode = msgspec.json.Encoder().encode


class ProtobufReader(SchemaReader):
    """Reads Protobuf records that start with a schema id, as written by a registry's serializers."""

    def plan(self, schema: Schema, schema_id: int) -> DecodingPlan:
        """Return the decoding plan for a Protobuf schema.

        Raises:
            ValueError: the schema is not a Protobuf schema, or cannot be loaded.
        """
        if schema.kind != "PROTOBUF":
            raise ValueError(f"the type is {schema.kind}, not PROTOBUF")
        return _ProtobufPlan(self, ProtobufSchema(schema), schema_id)


class _ProtobufPlan(DecodingPlan):
    """Decodes the records of one .proto file."""

    def __init__(self, reader: SchemaReader, schema: ProtobufSchema, schema_id: int) -> None:
        self._reader, self._schema, self._schema_id = reader, schema, schema_id
        self._messages: dict[bytes, _MessagePlan] = {}

    def decode_many(self, raws: Sequence[bytes], now_ms: int) -> DecodedBatch | None:
        # A zero byte stands for the first message of the .proto file.
        heads = {raw[FRAME_BYTES : FRAME_BYTES + 1] for raw in raws}
        if heads != {b"\0"}:
            return None
        try:
            return self._message_plan(b"\0", raws[0]).decode_many(raws, FRAME_BYTES + 1, now_ms)
        except Exception:  # Invalid bytes can cause any error. After an error, the records are validated one by one.
            return None

    def _message_plan(self, head: bytes, raw: bytes) -> _MessagePlan:
        plan = self._messages.get(head)
        if plan is None:
            indexes, _ = indexes_of(raw, FRAME_BYTES)
            plan = self._messages[head] = _MessagePlan(self._reader, self._schema.message(indexes), self._schema_id)
        return plan

    def _find_plan(self, raw: bytes) -> tuple[_MessagePlan, int]:
        try:
            _, start = indexes_of(raw, FRAME_BYTES)
            return self._message_plan(raw[FRAME_BYTES:start], raw), start
        except (IndexError, ValueError) as error:
            detail = f"the record's message is not in schema {self._schema_id} ({error}); use the schema's serializer"
            raise InvalidEvent(Reason.UNREADABLE, None, detail) from None

    def decode_one(self, raw: bytes, now_ms: int) -> DecodedBatch | None:
        plan, start = self._find_plan(raw)
        document = plan.document(raw, start)
        return None if document is None else plan.json_decoder.decode_all([document], now_ms)

    def document(self, raw: bytes) -> bytes | None:
        plan, start = self._find_plan(raw)
        return plan.document(raw, start)


class _MessagePlan:
    def __init__(self, reader: SchemaReader, message: type[Message], schema_id: int) -> None:
        self._reader, self._message, self._schema_id = reader, message, schema_id
        self._descriptor: Descriptor = message.DESCRIPTOR
        self._members = {name: member(self._descriptor, path) for name, path in reader.paths.items()}
        self._refused = self._undeclared_member() if reader.strict else None
        timestamps = [name for name, descriptor in self._members.items() if _is_timestamp(descriptor)]
        json_fields = {
            f.name: with_time_format(f, None) for f in reader.flat_spec.source.fields if f.name in timestamps
        }
        self.json_decoder = EventDecoder(with_changed(reader.flat_spec, json_fields), exact=reader.exact)
        self._typed: TypedDecoder | None = None
        if self._refused is None and self._is_readable():
            typed_fields = {
                f.name: with_time_format(f, "us") for f in reader.flat_spec.source.fields if f.name in timestamps
            }
            self._typed = TypedDecoder(
                with_changed(reader.flat_spec, typed_fields), exact=reader.exact, read_names=reader.needed
            )

    def _undeclared_member(self) -> InvalidEvent | None:
        at_row = self._reader.row_path
        row = member(self._descriptor, at_row) if at_row else None
        descriptor = self._descriptor if row is None else row.message_type
        return self._reader.refusal(find_unread(descriptor, list(self._reader.paths.values()), at_row))

    def _is_readable(self) -> bool:
        return all(self._is_field_readable(field) for field in self._reader.fields)

    def _is_field_readable(self, field: FieldSpec) -> bool:
        descriptor = self._members[field.name]
        if descriptor is None:
            return is_absent(self._descriptor, self._reader.paths[field.name])
        if descriptor.is_repeated or descriptor.type not in _READABLE_TYPES.get(field.type, ()):
            return False
        return descriptor.type != FieldDescriptor.TYPE_MESSAGE or _is_timestamp(descriptor)

    def decode_many(self, raws: Sequence[bytes], start: int, now_ms: int) -> DecodedBatch | None:
        typed = self._typed
        if typed is None:
            return None
        read = self._message.FromString
        messages = [read(raw[start:]) for raw in raws]
        if self._reader.reads_changes:
            op = self._descriptor.fields_by_name["op"]
            row = self._descriptor.fields_by_name["after"]
            if not set(_column(messages, op, "string")) <= WRITES or None in _column(messages, row, ""):
                return None
        nothing: list[Any] = [None] * len(messages)
        columns = []
        for name in typed.columns:
            descriptor = self._members.get(name)
            if descriptor is None or name not in self._reader.needed:
                columns.append(nothing)
                continue
            inner: list[Any] = messages
            for step in self._reader.paths[name][:-1]:
                descriptor_of_step = inner[0].DESCRIPTOR.fields_by_name[step] if inner[0] is not None else None
                if descriptor_of_step is None:
                    return None
                inner = [None if each is None else value_of(each, descriptor_of_step) for each in inner]
            columns.append(_column(inner, descriptor, self._kind(name)))
        return typed.validate(list(map(typed.event_class, *columns)), now_ms)

    def _kind(self, name: str) -> str:
        return next(field.type for field in self._reader.fields if field.name == name)

    def document(self, raw: bytes, start: int) -> bytes | None:
        if self._refused is not None:
            raise self._refused
        try:
            message = self._message.FromString(raw[start:])
        except Exception as error:  # Invalid bytes can cause any error, mostly a DecodeError.
            name = self._descriptor.full_name
            detail = f"the bytes do not match the schema {self._schema_id} ({name}): {str(error)[:120]}"
            remedy = "start the record with the id of the writer's schema"
            raise InvalidEvent(Reason.UNREADABLE, None, f"{detail}; {remedy}") from None
        row: Any = message
        if self._reader.reads_changes:
            fields = self._descriptor.fields
            change = {field.name: value_of(message, field) for field in fields}
            row = self._reader.row(change)
            if row is None:
                return None
        event = {}
        for field in self._reader.fields:
            member_value = _value_at(message if field.origin == "envelope" else row, field)
            if isinstance(member_value, float) and not math.isfinite(member_value):
                detail = f"{field.name}: {member_value} is not a finite number; send null, or a number"
                raise InvalidEvent(Reason.OUT_OF_RANGE, field.name, detail)
            if member_value is not None:
                event[field.name] = member_value
        return _encode(event)


def _is_timestamp(descriptor: FieldDescriptor | None) -> bool:
    return (
        descriptor is not None
        and descriptor.message_type is not None
        and descriptor.message_type.full_name == TIMESTAMP
    )


def _column(messages: Sequence[Any], descriptor: FieldDescriptor, kind: str) -> list[Any]:
    name = descriptor.name
    if descriptor.has_presence or None in messages:
        values = [None if each is None else value_of(each, descriptor) for each in messages]
    else:
        values = [getattr(each, name) for each in messages]
    if descriptor.enum_type is not None:
        names = {number: named.name for number, named in descriptor.enum_type.values_by_number.items()}
        return [names.get(value, value) for value in values]
    if _is_timestamp(descriptor):
        return [None if each is None else each.seconds * 10**6 + each.nanos // 1000 for each in values]
    if kind == "number" and descriptor.type in _INTEGERS:
        return [None if each is None else float(each) for each in values]
    return values


def _value_at(message: Any, field: FieldSpec) -> Any:
    value, descriptor, single = message, None, False
    for depth, step in enumerate(field.member_path):
        if value is None:
            return None
        if isinstance(value, Message) and isinstance(step, str):
            descriptor = value.DESCRIPTOR.fields_by_name.get(step)
            value, single = None if descriptor is None else value_of(value, descriptor), False
            continue
        if descriptor is not None and is_map(descriptor) and not single and isinstance(step, str):
            descriptor, single = descriptor.message_type.fields_by_name["value"], True
            value = value.get(step) if step in value else None
        elif descriptor is not None and descriptor.is_repeated and not single and isinstance(step, int):
            value, single = (value[step] if step < len(value) else None), True
        elif field.type == "json":
            return None
        else:
            shown = _encode(None if descriptor is None else json_value(value, descriptor, single=single))
            raise wrong_path(field.name, field.member_path[:depth], shown, array=isinstance(step, int))
    if value is None or descriptor is None:
        return None
    try:
        return json_value(value, descriptor, single=single)
    except ValueError as error:  # a nested message may contain a Duration that is out of range
        detail = f"{field.name}: cannot be converted to JSON ({str(error)[:120]}); send a value within its limits"
        raise InvalidEvent(Reason.OUT_OF_RANGE, field.name, detail) from None
