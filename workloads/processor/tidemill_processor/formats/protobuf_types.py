"""Protobuf schemas: creates messages from a registry's descriptors, and reads the values of their members."""

from __future__ import annotations

import base64
import binascii
import datetime as dt
from collections.abc import Sequence
from typing import Any

from google.protobuf import (
    any_pb2,
    descriptor_pool,
    duration_pb2,
    empty_pb2,
    field_mask_pb2,
    json_format,
    message_factory,
    struct_pb2,
    timestamp_pb2,
    wrappers_pb2,
)
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from google.protobuf.message import Message

from tidemill_contract.resource.paths import Steps
from tidemill_processor.formats.registry import Schema

_EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
TIMESTAMP = "google.protobuf.Timestamp"
_WRAPPERS = {f"google.protobuf.{name}Value" for name in (
    "Double", "Float", "Int64", "UInt64", "Int32", "UInt32", "Bool", "String", "Bytes",
)}  # fmt: skip
_TEXT_TYPES = {TIMESTAMP, "google.protobuf.Duration", "google.protobuf.FieldMask"}
_STANDARD_FILES = (
    any_pb2, duration_pb2, empty_pb2, field_mask_pb2, struct_pb2, timestamp_pb2, wrappers_pb2,
)  # fmt: skip
"""Standard .proto files. Serializers do not register these files in the schema registry."""


class ProtobufSchema:
    """The messages of a writer's .proto file."""

    def __init__(self, schema: Schema) -> None:
        """Load the file and the files that it imports.

        Raises:
            ValueError: a file is not a descriptor, or is missing.
        """
        pool = descriptor_pool.DescriptorPool()
        for module in _STANDARD_FILES:
            pool.AddSerializedFile(module.DESCRIPTOR.serialized_pb)
        try:
            for name, text in zip(schema.names, schema.references, strict=True):
                pool.Add(_file(text, name))
            file = _file(schema.text, "")
            pool.Add(file)
            self._file = pool.FindFileByName(file.name)
        except Exception as error:
            raise ValueError(f"{type(error).__name__}: {error}") from None

    def message(self, indexes: Sequence[int]) -> type[Message]:
        """Return the message with these indexes.

        The first index selects a message of the file. Each further index selects a message nested in the previous one.

        Raises:
            IndexError: no message has these indexes.
        """
        descriptor = list(self._file.message_types_by_name.values())[indexes[0]]
        for index in indexes[1:]:
            descriptor = descriptor.nested_types[index]
        message_class: type[Message] = message_factory.GetMessageClass(descriptor)
        return message_class


def _file(text: str, name: str) -> FileDescriptorProto:
    try:
        file = FileDescriptorProto.FromString(base64.b64decode(text, validate=True))
    except (binascii.Error, ValueError):
        # Some registries ignore the parameter `format=serialized`.
        remedy = "use a registry that supports format=serialized, or let writers register descriptors"
        raise ValueError(f"the registry gives the text of the .proto file, not its descriptor: {remedy}") from None
    if name:
        file.name = name
    return file


def indexes_of(raw: bytes, start: int) -> tuple[tuple[int, ...], int]:
    """Return the indexes that identify a record's message, and the position of the message's first byte.

    Raises:
        IndexError: the record ends before the message begins.
        ValueError: the bytes are not message indexes.
    """
    count, position = _varint(raw, start)
    if count == 0:
        return (0,), position
    if not 0 < count <= 32:
        raise ValueError(f"{count} message indexes")
    indexes = []
    for _ in range(count):
        index, position = _varint(raw, position)
        if index < 0:
            raise ValueError("a negative message index")
        indexes.append(index)
    return tuple(indexes), position


def _varint(raw: bytes, position: int) -> tuple[int, int]:
    number, shift = 0, 0
    while True:
        byte = raw[position]
        position += 1
        number |= (byte & 127) << shift
        if byte < 128:
            return (number >> 1) ^ -(number & 1), position
        shift += 7
        if shift > 63:
            raise ValueError("a message index beyond 64 bits")


def is_map(field: FieldDescriptor) -> bool:
    """Return whether a member is a map."""
    inner = field.message_type
    return bool(field.is_repeated and inner is not None and inner.GetOptions().map_entry)


def member(descriptor: Descriptor, steps: Steps) -> FieldDescriptor | None:
    """Return the member at a path, or None if the member does not exist."""
    field: FieldDescriptor | None = None
    inner: Descriptor | None = descriptor
    for step in steps:
        field = inner.fields_by_name.get(str(step)) if inner is not None and isinstance(step, str) else None
        if field is None:
            return None
        inner = None if field.is_repeated else field.message_type
    return field


def is_absent(descriptor: Descriptor, steps: Steps) -> bool:
    """Return whether no message of this type can have a value at this path."""
    inner: Descriptor | None = descriptor
    for step in steps:
        if inner is None or not isinstance(step, str):
            return False
        field = inner.fields_by_name.get(step)
        if field is None:
            return True
        inner = None if field.is_repeated else field.message_type
    return False


def find_unread(descriptor: Descriptor, paths: Sequence[Steps], parent: Steps = ()) -> Steps | None:
    """Return the path of a member outside of `paths`, or None if `paths` covers all members."""
    for field in descriptor.fields:
        steps = (*parent, field.name)
        if steps in paths:
            continue
        if not any(path[: len(steps)] == steps for path in paths):
            return steps
        if field.message_type is not None and not field.is_repeated:
            nested = find_unread(field.message_type, paths, steps)
            if nested is not None:
                return nested
    return None


def value_of(message: Message, field: FieldDescriptor) -> Any:
    """Return the value of a member, or None if an optional member is unset."""
    if field.has_presence and not message.HasField(field.name):
        return None
    return getattr(message, field.name)


def json_value(value: Any, field: FieldDescriptor, *, single: bool = False) -> Any:
    """Return a member's value as in JSON. If `single` is true, the value is one item of a repeated member."""
    if value is None:
        return None
    if is_map(field) and not single:
        entry = field.message_type.fields_by_name["value"]
        return {str(key): json_value(value[key], entry) for key in value}
    if field.is_repeated and not single:
        return [json_value(item, field, single=True) for item in value]
    if field.message_type is not None:
        return _message_json(value)
    if field.enum_type is not None:
        named = field.enum_type.values_by_number.get(value)
        return value if named is None else named.name
    return value


def _timestamp_json(message: Any) -> str | int:
    """Return an out-of-range Timestamp as RFC 3339 text if possible, or else as epoch milliseconds."""
    micros = message.seconds * 10**6 + message.nanos // 1000
    try:
        return (_EPOCH + dt.timedelta(microseconds=micros)).isoformat()
    except OverflowError:
        return int(micros // 1000)


def _message_json(message: Message) -> Any:
    name = message.DESCRIPTOR.full_name
    if name in _TEXT_TYPES:
        try:
            return message.ToJsonString()
        except ValueError:
            if name != TIMESTAMP:
                raise
            return _timestamp_json(message)
    if name in _WRAPPERS:
        return message.value
    return json_format.MessageToDict(message, preserving_proto_field_name=True)
