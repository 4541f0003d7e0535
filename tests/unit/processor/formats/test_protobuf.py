"""Tests of Protobuf records that the official serializer writes with schemas of a real registry."""

from __future__ import annotations

import datetime as dt
import math
from collections.abc import Iterator
from typing import Any

import pytest
from confluent_kafka.schema_registry import SchemaRegistryClient
from confluent_kafka.schema_registry.protobuf import ProtobufSerializer
from confluent_kafka.serialization import MessageField, SerializationContext
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, timestamp_pb2, wrappers_pb2

from kafka_records import read_alike
from running.schema_registry import SchemaRegistry, running_registry
from tidemill_contract.events.records import RecordDecoder
from tidemill_contract.resource.kinds.formats import RegistrySpec
from tidemill_contract.resource.spec import PipelineSpec
from tidemill_processor.formats.protobuf import ProtobufReader
from tidemill_processor.formats.registry import Registry

AT = dt.datetime(2026, 11, 1, 10, 0, 0, 123456, tzinfo=dt.UTC)
AT_MS = 1_793_527_200_123
CONTEXT = SerializationContext("shop.orders", MessageField.VALUE)
KINDS = {
    "int64": 3, "uint64": 4, "int32": 5, "double": 1, "bool": 8, "string": 9, "bytes": 12, "enum": 14, "message": 11,
}  # fmt: skip


@pytest.fixture(scope="module")
def registry() -> Iterator[SchemaRegistry]:
    with running_registry() as server:
        yield server


def field(number: int, name: str, kind: str, *, of: str = "", label: str = "", optional: bool = False) -> Any:
    """Return the descriptor of a member."""
    descriptor = descriptor_pb2.FieldDescriptorProto(
        name=name, number=number, type=KINDS[kind], label=3 if label == "repeated" else 1, type_name=of or None
    )
    if optional:
        descriptor.proto3_optional = True
    return descriptor


def message(name: str, *members: Any) -> descriptor_pb2.DescriptorProto:
    descriptor = descriptor_pb2.DescriptorProto(name=name, field=members)
    for each in members:
        if each.proto3_optional:
            each.oneof_index = len(descriptor.oneof_decl)
            descriptor.oneof_decl.add(name=f"_{each.name}")
            next(own for own in descriptor.field if own.name == each.name).oneof_index = each.oneof_index
    return descriptor


class Writer:
    """The official serializer of a message of a file."""

    def __init__(self, registry: SchemaRegistry, name: str, *messages: Any, file: str = "order.proto") -> None:
        pool = descriptor_pool.DescriptorPool()
        for known in (timestamp_pb2, wrappers_pb2):
            pool.AddSerializedFile(known.DESCRIPTOR.serialized_pb)
        enum = descriptor_pb2.EnumDescriptorProto(name="Kind")
        for number, label in enumerate(("WEB", "APP")):
            enum.value.add(name=label, number=number)
        pool.Add(
            descriptor_pb2.FileDescriptorProto(
                name=file, package="shop", syntax="proto3", message_type=messages, enum_type=[enum],
                dependency=["google/protobuf/timestamp.proto", "google/protobuf/wrappers.proto"],
            )
        )  # fmt: skip
        self.type = message_factory.GetMessageClass(pool.FindMessageTypeByName(f"shop.{name}"))
        client = SchemaRegistryClient({"url": registry.url})
        self._serialize = ProtobufSerializer(self.type, client, {"use.deprecated.format": False})

    def __call__(self, **members: Any) -> bytes:
        raw = self._serialize(self.type(**members), CONTEXT)
        assert raw is not None
        return bytes(raw)


def decoder(
    registry: SchemaRegistry, fields: list[Any], *, time: str | None = None, strict: bool = False, **written: Any
) -> RecordDecoder:
    source = {
        "format": {"type": "protobuf", "registry": {"url": registry.url}, **written},
        "fields": fields,
        "strict": strict,
        "eventTime": {"field": time} if time else {},
    }
    aggregations = [
        {"name": "a", "window": {"type": "tumbling", "size": "1m"}, "metrics": [{"name": "n", "function": "count"}]}
    ]
    spec = PipelineSpec.model_validate({"source": source, "aggregations": aggregations})
    client = Registry(RegistrySpec(url=registry.url), form="serialized")
    return RecordDecoder(spec, exact=True, reader=ProtobufReader(spec, client, exact=True))


INNER = message("Inner", field(1, "code", "string"), field(2, "note", "string", optional=True))
ORDER = message(
    "Order",
    field(1, "id", "int64"), field(2, "shop", "string"), field(3, "paid", "bool"), field(4, "amount", "double"),
    field(5, "kind", "enum", of=".shop.Kind"), field(6, "at", "message", of=".google.protobuf.Timestamp"),
    field(7, "inner", "message", of=".shop.Inner"), field(8, "tags", "string", label="repeated"),
    field(9, "maybe", "int32", optional=True), field(10, "from", "string"), field(11, "millis", "int64"),
    field(12, "big", "uint64"), field(13, "blob", "bytes"),
    field(14, "wrapped", "message", of=".google.protobuf.DoubleValue"),
)  # fmt: skip
SIMPLE = [
    {"name": "id", "type": "integer"}, {"name": "shop", "type": "string"}, {"name": "paid", "type": "boolean"},
    {"name": "amount", "type": "number"}, {"name": "kind", "type": "string"}, {"name": "at", "type": "timestamp"},
    {"name": "code", "type": "string", "path": "inner.code"}, {"name": "note", "type": "string", "path": "inner.note"},
    {"name": "maybe", "type": "number", "default": 7}, {"name": "origin", "type": "string", "path": "from"},
    {"name": "millis", "type": "timestamp"}, {"name": "none", "type": "string", "path": "other.code"},
]  # fmt: skip
UNSET = {
    "id": 0, "shop": "", "paid": False, "amount": 0.0, "kind": "WEB", "at": None, "code": None, "note": None,
    "maybe": 7.0, "origin": "", "millis": 0, "none": None,
}  # fmt: skip


def test_members_of_every_type_become_values_of_fields(registry: SchemaRegistry) -> None:
    write = Writer(registry, "Order", ORDER, INNER)
    raw = write(
        id=2**62, shop="a", paid=True, amount=0.5, kind=1, at=AT, inner={"code": "x", "note": ""}, tags=["s", "t"],
        maybe=0, millis=AT_MS, big=2**64 - 1, blob=b"\xff", wrapped={"value": 1.5}, **{"from": "eu"},
    )  # fmt: skip
    expected = {
        "id": 2**62, "shop": "a", "paid": True, "amount": 0.5, "kind": "APP", "at": AT_MS, "code": "x", "note": "",
        "maybe": 0.0, "origin": "eu", "millis": AT_MS, "none": None, "us": 456,
    }  # fmt: skip
    of = decoder(registry, SIMPLE, time="at")
    assert read_alike(of, raw, raw) == [expected, expected]
    without_time = decoder(registry, SIMPLE)
    assert read_alike(without_time, write(), raw) == [
        UNSET, {name: value for name, value in expected.items() if name != "us"},
    ]  # fmt: skip
    further = [
        {"name": "tags", "type": "strings"}, {"name": "blob", "type": "string"}, {"name": "wrapped", "type": "number"},
    ]  # fmt: skip
    assert read_alike(decoder(registry, further), raw) == [{"tags": ["s", "t"], "blob": "/w==", "wrapped": 1.5}]
    assert read_alike(decoder(registry, [{"name": "t", "type": "string", "path": "tags[1]"}]), raw, write()) == [
        {"t": "t"}, {"t": None},
    ]  # fmt: skip
    odd = write(at={"seconds": AT_MS // 1_000, "nanos": -5_000_000}), write(at={"seconds": 2**60})
    before, beyond = read_alike(decoder(registry, [{"name": "at", "type": "timestamp"}]), *odd)
    assert before == {"at": AT_MS // 1_000 * 1_000 - 5}
    assert (str(beyond.reason), beyond.field) == ("out_of_range", "at")
    (verdict,) = read_alike(decoder(registry, [{"name": "big", "type": "integer"}]), raw)
    assert (str(verdict.reason), verdict.field) == ("out_of_range", "big")


def test_a_field_is_read_by_the_schema_that_its_record_was_written_with(registry: SchemaRegistry) -> None:
    old = Writer(registry, "Order", message("Order", field(1, "id", "int32")), file="evolving.proto")
    new = Writer(
        registry, "Order",
        message("Before", field(1, "x", "int32")),
        message("Order", field(2, "shop", "string"), field(5, "id", "int64")), file="evolving.proto",
    )  # fmt: skip
    fields = [{"name": "id", "type": "integer"}, {"name": "shop", "type": "string", "default": "none"}]
    before, after = old(id=1), new(id=2, shop="a")
    assert after[5:7] == b"\x02\x02"  # The path of the message is a list with the element 1, in zigzag form.
    assert read_alike(decoder(registry, fields), before, after, before) == [
        {"id": 1, "shop": "none"}, {"id": 2, "shop": "a"}, {"id": 1, "shop": "none"},
    ]  # fmt: skip


def test_a_record_that_cannot_be_read_is_refused_with_its_reason(registry: SchemaRegistry) -> None:
    write = Writer(registry, "Order", ORDER, INNER)
    good = write(id=1, amount=1.5)
    number = int.from_bytes(good[1:5])
    avro = registry.register("avro-value", {"schema": '{"type": "string"}'})
    text = registry.register("text-value", {"schema": 'syntax = "proto3"; message M {}', "schemaType": "PROTOBUF"})
    of = decoder(registry, [{"name": "id", "type": "integer"}, {"name": "amount", "type": "number"}])
    broken = {
        good[:-1]: ("unreadable", f"the bytes do not match the schema {number} (shop.Order): "),
        good[:5] + b"\x02\x14" + good[6:]: ("unreadable", f"the record's message is not in schema {number}"),
        good[:5] + b"\x80": ("unreadable", "the record's message is not in schema"),
        b"\0\0\0\x7f\xff" + good[5:]: ("unknown_schema", "has no schema 32767"),
        b"\0" + avro.to_bytes(4) + b"\0": ("unknown_schema", f"schema {avro} cannot be used: the type is AVRO"),
        b"\0" + text.to_bytes(4) + b"\0": ("unknown_schema", "the registry gives the text of the .proto file"),
        write(amount=math.inf): ("out_of_range", "amount: inf is not a finite number"),
    }
    results = read_alike(of, good, *broken, good)
    assert (results[0], results[-1]) == ({"id": 1, "amount": 1.5}, {"id": 1, "amount": 1.5})
    for verdict, (reason, detail) in zip(results[1:-1], broken.values(), strict=True):
        assert (str(verdict.reason), detail in verdict.detail) == (reason, True), verdict.detail
    (verdict,) = read_alike(decoder(registry, [{"name": "w", "type": "string", "path": "shop.w"}]), good)
    assert verdict.detail.startswith('shop: expected object, got string ""; the path of w leads through it')
    (verdict,) = read_alike(decoder(registry, [{"name": "id", "type": "integer"}], strict=True), good)
    assert verdict.detail == "shop is not declared; fields are read from id"


@pytest.mark.parametrize("policy", ["ignore", "event"])
def test_a_change_of_debezium_is_an_event_of_its_row(registry: SchemaRegistry, policy: str) -> None:
    row = message("Value", field(1, "id", "int32"), field(2, "amount", "double", optional=True))
    write = Writer(
        registry, "Envelope",
        message(
            "Envelope", field(1, "before", "message", of=".shop.Value"), field(2, "after", "message", of=".shop.Value"),
            field(3, "op", "string", optional=True),
        ), row, file="envelope.proto",
    )  # fmt: skip
    fields = [
        {"name": "id", "type": "integer"}, {"name": "amount", "type": "number"},
        {"name": "op", "type": "string", "from": "envelope"},
    ]  # fmt: skip
    of = decoder(registry, fields, envelope="debezium", deletes=policy)
    value = {"id": 1, "amount": 2.5}
    sent = [write(after=value, op="c"), write(before=value, op="d"), None, write(op="u"), write(after={}, op="r")]
    created, deleted, tombstone, empty, read_row = read_alike(of, *sent)
    assert created == {**value, "op": "c"}
    assert read_row == {"id": 0, "amount": None, "op": "r"}
    assert deleted == ({**value, "op": "d"} if policy == "event" else None)
    assert tombstone is None
    assert str(empty.reason) == "not_an_envelope"
    assert read_alike(of, sent[0], sent[0]) == [created, created]
