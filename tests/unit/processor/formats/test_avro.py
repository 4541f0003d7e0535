"""Tests of Avro records that the official serializer writes with schemas of a real registry."""

from __future__ import annotations

import datetime as dt
import decimal
import json
import math
import uuid
from collections.abc import Iterator
from typing import Any

import pytest
from confluent_kafka.schema_registry import Schema, SchemaReference, SchemaRegistryClient
from confluent_kafka.schema_registry.avro import AvroSerializer
from confluent_kafka.serialization import MessageField, SerializationContext

from kafka_records import NOW_MS, read_alike
from kafka_records import SentRecord as Record
from running.schema_registry import SchemaRegistry, running_registry
from tidemill_contract.events.records import RecordDecoder
from tidemill_contract.resource.kinds.formats import RegistrySpec
from tidemill_contract.resource.spec import PipelineSpec
from tidemill_processor.batches.reader import BatchReader
from tidemill_processor.formats import registry as registry_client
from tidemill_processor.formats.avro import AvroReader
from tidemill_processor.formats.registry import Registry, RegistryUnavailableError, UnknownSchemaError

AT = dt.datetime(2026, 11, 1, 10, 0, 0, 123456, tzinfo=dt.UTC)
AT_MS = 1_793_527_200_123
CONTEXT = SerializationContext("shop.orders", MessageField.VALUE)


@pytest.fixture(scope="module")
def registry() -> Iterator[SchemaRegistry]:
    with running_registry() as server:
        yield server


class Writer:
    """The official serializer of a schema."""

    def __init__(self, registry: SchemaRegistry, fields: list[Any], *references: SchemaReference) -> None:
        document = {"type": "record", "name": "Order", "namespace": "shop", "fields": fields}
        client = SchemaRegistryClient({"url": registry.url})
        schema = Schema(json.dumps(document), "AVRO", list(references))
        self._serialize = AvroSerializer(client, schema)

    def __call__(self, **members: Any) -> bytes:
        raw = self._serialize(members, CONTEXT)
        assert raw is not None
        return bytes(raw)


def spec_of(registry: SchemaRegistry, fields: list[Any], *, time: str | None = None, **format_: Any) -> PipelineSpec:
    source = {
        "format": {"type": "avro", "registry": {"url": registry.url}, **format_},
        "fields": fields,
        "eventTime": {"field": time} if time else {},
    }
    metrics = [{"name": "n", "function": "count"}]
    aggregations = [{"name": "a", "window": {"type": "tumbling", "size": "1m"}, "metrics": metrics}]
    return PipelineSpec.model_validate({"source": source, "aggregations": aggregations})


def decoder(registry: SchemaRegistry, fields: list[Any], **further: Any) -> RecordDecoder:
    spec = spec_of(registry, fields, **further)
    client = Registry(RegistrySpec(url=registry.url))
    return RecordDecoder(spec, exact=True, reader=AvroReader(spec, client, exact=True))


def test_members_of_every_type_become_values_of_fields(registry: SchemaRegistry) -> None:
    def logical(kind: str, name: str) -> dict[str, Any]:
        return {"type": kind, "logicalType": name}

    money = {"type": "bytes", "logicalType": "decimal", "precision": 9, "scale": 2}
    inner = {"type": "record", "name": "Inner", "fields": [{"name": "code", "type": ["null", "string"]}]}
    write = Writer(
        registry,
        [
            {"name": "id", "type": "long"}, {"name": "shop", "type": "string"}, {"name": "paid", "type": "boolean"},
            {"name": "ratio", "type": "double"}, {"name": "count", "type": "int"},
            {"name": "kind", "type": {"type": "enum", "name": "Kind", "symbols": ["web", "app"]}},
            {"name": "inner", "type": ["null", inner]}, {"name": "more", "type": {"type": "map", "values": "string"}},
            {"name": "tags", "type": {"type": "array", "items": "string"}}, {"name": "amount", "type": money},
            {"name": "ref", "type": logical("string", "uuid")},
            {"name": "millis", "type": logical("long", "timestamp-millis")},
            {"name": "micros", "type": logical("long", "timestamp-micros")},
            {"name": "day", "type": logical("int", "date")},
            {"name": "local", "type": logical("long", "local-timestamp-micros")}, {"name": "plain", "type": "long"},
            {"name": "text", "type": "string"},
        ],
    )  # fmt: skip
    ref = uuid.uuid4()
    raw = write(
        id=2**62, shop="a", paid=True, ratio=0.5, count=-3, kind="app", inner={"code": "x"}, more={"k": "v"},
        tags=["s", "t"], amount=decimal.Decimal("12.50"), ref=ref, millis=AT, micros=AT, day=AT.date(),
        local=AT.replace(tzinfo=None), plain=AT_MS * 1000, text="2026-11-01T10:00:00.123Z",
    )  # fmt: skip
    simple = [
        {"name": "id", "type": "integer"}, {"name": "shop", "type": "string", "required": True},
        {"name": "paid", "type": "boolean"}, {"name": "ratio", "type": "number"},
        {"name": "count", "type": "number"}, {"name": "kind", "type": "string"},
        {"name": "code", "type": "string", "path": "inner.code"}, {"name": "ref", "type": "string"},
        {"name": "none", "type": "string", "path": "other.code", "default": "d"},
        {"name": "millis", "type": "timestamp"}, {"name": "micros", "type": "timestamp"},
        {"name": "day", "type": "timestamp"}, {"name": "local", "type": "timestamp"},
        {"name": "plain", "type": "timestamp", "format": "us"}, {"name": "text", "type": "timestamp"},
    ]  # fmt: skip
    expected = {
        "id": 2**62, "shop": "a", "paid": True, "ratio": 0.5, "count": -3.0, "kind": "app", "code": "x",
        "ref": str(ref), "none": "d", "millis": AT_MS, "micros": AT_MS, "day": 1_793_491_200_000, "local": AT_MS,
        "plain": AT_MS, "text": AT_MS, "us": 456,
    }  # fmt: skip
    of = decoder(registry, simple, time="micros")
    assert read_alike(of, raw, raw) == [expected, expected]
    further = [
        {"name": "amount", "type": "number"}, {"name": "k", "type": "string", "path": "more.k"},
        {"name": "second", "type": "string", "path": "tags[1]"}, {"name": "tags", "type": "strings"},
    ]  # fmt: skip
    with_others = {"amount": 12.5, "k": "v", "second": "t", "tags": ["s", "t"]}
    slow = decoder(registry, [*simple, *(field for field in further if field["name"] != "tags")], time="micros")
    assert read_alike(slow, raw) == [
        {name: value for name, value in (expected | with_others).items() if name != "tags"}
    ]
    assert read_alike(decoder(registry, [further[0], further[3]]), raw) == [{"amount": 12.5, "tags": ["s", "t"]}]
    oslo = [{"name": "local", "type": "timestamp", "zone": "Europe/Oslo"}]
    assert read_alike(decoder(registry, oslo), raw) == [{"local": AT_MS - 3_600_000}]


def test_a_value_beyond_its_logical_type_is_refused_only_if_a_field_reads_it(registry: SchemaRegistry) -> None:
    kinds = {"timestamp-millis": 1, "timestamp-micros": 1_000, "local-timestamp-millis": 1}
    for kind, per_millisecond in kinds.items():
        typed = [{"name": "id", "type": "long"}, {"name": "at", "type": {"type": "long", "logicalType": kind}}]
        write = Writer(registry, typed)
        far = 253_402_300_800_000  # The year is 10000.
        raw = write(id=1, at=far * per_millisecond)
        assert read_alike(decoder(registry, [{"name": "id", "type": "integer"}]), raw) == [{"id": 1}]
        (verdict,) = read_alike(decoder(registry, [{"name": "at", "type": "timestamp"}]), raw)
        assert (str(verdict.reason), verdict.field) == ("out_of_range", "at")


def test_decimal_fields_keep_every_digit_of_avro_members(registry: SchemaRegistry) -> None:
    """The digits of the logical type decimal, of numbers and of texts are kept, or the record is refused."""
    money = {"type": "bytes", "logicalType": "decimal", "precision": 18, "scale": 4}
    write = Writer(registry, [{"name": "amount", "type": money}, {"name": "fee", "type": ["null", "string", "double"]}])
    scaled = [{"name": name, "type": "decimal", "scale": 2} for name in ("amount", "fee")]
    of = decoder(registry, scaled)
    large = write(amount=decimal.Decimal("90071992547409.9300"), fee="0.07")
    raws = [large, write(amount=decimal.Decimal("-0.5"), fee=0.29), write(amount=decimal.Decimal("0.125"), fee=None)]
    decoded = of.decode_all(raws, NOW_MS, records=[Record(raw) for raw in raws])
    valid = [event for event in decoded.events if event is not None]
    assert (of.values(valid, "amount"), of.values(valid, "fee")) == ([9_007_199_254_740_993, -50], [7, 29])
    assert "amount: 0.1250 has more than 2 digits after the point" in str(decoded.invalid[2])


def test_a_field_is_read_by_the_schema_that_its_record_was_written_with(registry: SchemaRegistry) -> None:
    at = {"name": "at", "type": {"type": "long", "logicalType": "timestamp-millis"}}
    old = Writer(registry, [{"name": "id", "type": "int"}, at])
    new = Writer(
        registry,
        [
            {"name": "shop", "type": ["null", "string"]},
            {"name": "at", "type": {"type": "long", "logicalType": "timestamp-micros"}},
            {"name": "id", "type": "long"},
        ],
    )
    fields = [{"name": "id", "type": "integer"}, {"name": "shop", "type": "string", "default": "none"}]
    of = decoder(registry, [*fields, {"name": "at", "type": "timestamp"}], time="at")
    before, after = old(id=1, at=AT), new(id=2, shop="a", at=AT)
    assert read_alike(of, before, after, before) == [
        {"id": 1, "shop": "none", "at": AT_MS},
        {"id": 2, "shop": "a", "at": AT_MS, "us": 456},
        {"id": 1, "shop": "none", "at": AT_MS},
    ]


def test_a_record_that_cannot_be_read_is_refused_with_its_reason(registry: SchemaRegistry) -> None:
    write = Writer(registry, [{"name": "id", "type": "long"}, {"name": "v", "type": ["null", "double"]}])
    good = write(id=1, v=1.5)
    number = int.from_bytes(good[1:5])
    other = registry.register("other-value", {"schema": '{"type": "string"}'})
    text = registry.register("text-value", {"schema": "message M {}", "schemaType": "PROTOBUF"})
    of = decoder(registry, [{"name": "id", "type": "integer", "required": True}, {"name": "v", "type": "number"}])
    broken = {
        good[:-1]: ("unreadable", f"the bytes do not match the schema {number} (shop.Order): "),
        good + b"x": ("unreadable", "1 bytes are left after the value; start the record with the id of the writer"),
        b"\0\0\0\0\xff" + good[5:]: ("unknown_schema", f"the registry {registry.url} has no schema 255; name the"),
        b"\0" + other.to_bytes(4) + b"\2a": (
            "unknown_schema",
            f"schema {other} cannot be used: the Avro type is not a record",
        ),
        b"\0" + text.to_bytes(4): ("unknown_schema", f"schema {text} cannot be used: the type is PROTOBUF"),
        b'{"id": 1}': ("unreadable", 'got what looks like JSON, {"id": 1}; write records with a'),
        b"": ("unreadable", "got an empty record"),
        write(id=1, v=math.nan): ("out_of_range", "v: nan is not a finite number"),
    }
    results = read_alike(of, good, *broken, good)
    assert (results[0], results[-1]) == ({"id": 1, "v": 1.5}, {"id": 1, "v": 1.5})
    for verdict, (reason, detail) in zip(results[1:-1], broken.values(), strict=True):
        assert (str(verdict.reason), detail in verdict.detail) == (reason, True), verdict.detail
        assert len(verdict.detail) < 450
    plain = decoder(registry, [{"name": "id", "type": "string"}, {"name": "w", "type": "string", "path": "v.w"}])
    (verdict,) = read_alike(plain, good)
    assert (str(verdict.reason), verdict.field) == ("mistyped", "w")
    (verdict,) = read_alike(decoder(registry, [{"name": "id", "type": "string"}]), good)
    assert verdict.detail.startswith("id: expected string, got number 1")


def test_a_member_that_no_field_reads_is_not_checked(registry: SchemaRegistry) -> None:
    date = {"type": "int", "logicalType": "date"}
    write = Writer(
        registry, [{"name": "id", "type": "long"}, {"name": "note", "type": "string"}, {"name": "day", "type": date}]
    )
    good = write(id=1, note="ab", day=AT.date())
    no_text, no_date = good.replace(b"ab", b"\xff\xfe"), good[:9] + b"\xfe\xff\xff\xff\x0f"
    of = decoder(registry, [{"name": "id", "type": "integer"}])
    results = read_alike(of, no_text, good[:-1], no_date, good)
    assert [results[0], results[2], results[3]] == [{"id": 1}] * 3
    assert str(results[1].reason) == "unreadable"


def test_a_strict_source_refuses_a_schema_with_undeclared_members(registry: SchemaRegistry) -> None:
    write = Writer(registry, [{"name": "id", "type": "long"}, {"name": "extra", "type": "int"}])
    fields = [{"name": "id", "type": "integer"}]
    spec = spec_of(registry, fields)
    strict = spec.model_copy(update={"source": spec.source.model_copy(update={"strict": True})})
    of = RecordDecoder(strict, reader=AvroReader(strict, Registry(RegistrySpec(url=registry.url))))
    (verdict,) = read_alike(of, write(id=1, extra=2))
    assert verdict.detail == "extra is not declared; fields are read from id"


ROW = {"type": "record", "name": "Value", "namespace": "shop.orders",
       "fields": [{"name": "id", "type": "int"}, {"name": "amount", "type": ["null", "double"]}]}  # fmt: skip
CHANGE = [
    {"name": "before", "type": ["null", ROW], "default": None},
    {"name": "after", "type": ["null", "shop.orders.Value"], "default": None},
    {"name": "source", "type": {"type": "record", "name": "Source", "fields": [{"name": "ts_ms", "type": "long"}]}},
    {"name": "op", "type": "string"},
]


@pytest.mark.parametrize("policy", ["ignore", "deadLetter", "event"])
def test_a_change_of_debezium_is_an_event_of_its_row(registry: SchemaRegistry, policy: str) -> None:
    write = Writer(registry, CHANGE)
    fields = [
        {"name": "id", "type": "integer"}, {"name": "amount", "type": "number"},
        {"name": "op", "type": "string", "from": "envelope"},
        {"name": "at", "type": "timestamp", "from": "envelope", "path": "source.ts_ms"},
    ]  # fmt: skip
    of = decoder(registry, fields, time="at", envelope="debezium", deletes=policy)
    row, source = {"id": 1, "amount": 2.5}, {"ts_ms": AT_MS}
    sent = [
        write(before=None, after=row, source=source, op="c"),
        write(before=row, after=None, source=source, op="d"),
        None,
        write(before=row, after={"id": 1, "amount": None}, source=source, op="u"),
        write(before=None, after=None, source=source, op="u"),
    ]
    results = read_alike(of, *sent)
    counted = {"id": 1, "amount": 2.5, "op": "c", "at": AT_MS}
    assert read_alike(of, sent[0], sent[0]) == [counted, counted]
    assert (results[0], results[3]) == (counted, {**counted, "amount": None, "op": "u"})
    assert str(results[4].reason) == "not_an_envelope"
    match policy:
        case "ignore":
            assert results[1:3] == [None, None]
        case "event":
            assert results[1:3] == [{**counted, "op": "d"}, None]
        case "deadLetter":
            assert [str(each.reason) for each in results[1:3]] == ["deleted", "deleted"]


def test_a_schema_may_refer_to_another_schema(registry: SchemaRegistry) -> None:
    registry.register("money", {"schema": json.dumps({"type": "record", "name": "shop.Money", "fields": [
        {"name": "amount", "type": "double"}]})})  # fmt: skip
    write = Writer(registry, [{"name": "total", "type": "shop.Money"}], SchemaReference("shop.Money", "money", 1))
    fields = [{"name": "total", "type": "number", "path": "total.amount"}]
    assert read_alike(decoder(registry, fields), write(total={"amount": 2.5})) == [{"total": 2.5}]


def test_fields_that_nothing_reads_are_skipped_unless_they_are_required(registry: SchemaRegistry) -> None:
    write = Writer(registry, [{"name": "k", "type": "string"}, {"name": "v", "type": ["null", "double"]}])
    for required, dead in ((False, 0), (True, 1)):
        fields = [{"name": "k", "type": "string"}, {"name": "v", "type": "number", "required": required}]
        client = Registry(RegistrySpec(url=registry.url))
        batch = BatchReader(spec_of(registry, fields), registry=client).read(
            [Record(write(k="a", v=None), 0), Record(write(k="b", v=1.0), 1)], NOW_MS
        )
        assert (len(batch.dead_letters), batch.frame.height) == (dead, 2 - dead)


def test_each_schema_is_requested_once(registry: SchemaRegistry) -> None:
    write = Writer(registry, [{"name": "once", "type": "long"}])
    of = decoder(registry, [{"name": "once", "type": "integer"}])
    registry.asked.clear()
    read_alike(of, *(write(once=number) for number in range(5)))
    assert len(registry.asked) == 1


def test_requests_for_unknown_schemas_are_limited_per_round_of_the_loop(
    registry: SchemaRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the limit, thousands of records with random ids would prevent every commit."""
    monkeypatch.setattr(registry_client, "ROUND_SECONDS", 1e-9)
    client = Registry(RegistrySpec(url=registry.url))
    for number in (1_001, 1_003):
        client.begin_round()
        with pytest.raises(UnknownSchemaError):
            client.schema(number)
        with pytest.raises(RegistryUnavailableError):
            client.schema(number + 1)
        assert not client.error
        assert not client.has_missing


def test_records_of_unknown_schemas_wait_while_the_registry_is_unavailable() -> None:
    """Records of known schemas are read meanwhile. After one failure, only `fetch_missing` asks the registry again."""
    with running_registry() as registry:
        known, unknown = (Writer(registry, [{"name": name, "type": "long"}]) for name in ("a", "b"))
        spec = spec_of(registry, [{"name": "a", "type": "integer"}, {"name": "b", "type": "integer"}])
        client = Registry(RegistrySpec(url=registry.url))
        reader = BatchReader(spec, registry=client)
        first, second = known(a=1), unknown(b=2)
        assert reader.read([Record(first, 4)], NOW_MS).dead_letters == ()
        registry.stop()
        records = [Record(first, 5), Record(second, 6), Record(first, 7), Record(second, 3, p=1)]
        with pytest.raises(RegistryUnavailableError):
            reader.decode(records, NOW_MS)
        assert reader.unknown_schema_offsets(records) == {0: 6, 1: 3}
        assert client.has_missing
        assert client.error.startswith(f"{registry.url}: ")
        assert reader.read(records[:1], NOW_MS).consumed == {0: 1}
        with pytest.raises(RegistryUnavailableError):
            client.fetch_missing()
        registry.start()
        with pytest.raises(RegistryUnavailableError):
            reader.decode(records, NOW_MS)
        client.fetch_missing()
        assert (client.error, client.has_missing, reader.unknown_schema_offsets(records)) == ("", False, {})
        assert reader.read(records, NOW_MS).consumed == {0: 3, 1: 1}


@pytest.mark.parametrize("status", [500, 401, 404])
def test_records_wait_if_the_registry_answers_with_another_error_than_an_unknown_schema(status: int) -> None:
    """A wrong path or password must not turn all records into dead letters."""
    with running_registry() as registry:
        write = Writer(registry, [{"name": "a", "type": "long"}])
        raw = write(a=1)
        registry.failing = status
        of = decoder(registry, [{"name": "a", "type": "integer"}])
        with pytest.raises(RegistryUnavailableError, match=f"HTTP {status}: out of order"):
            of.decode_all([raw], NOW_MS)


def test_changed_credentials_of_the_secret_are_used_at_the_next_look(registry: SchemaRegistry, tmp_path: Any) -> None:
    with running_registry() as guarded:
        number = guarded.register("a-value", {"schema": '{"type": "record", "name": "A", "fields": []}'})
        guarded.login = ("reader", "pass:word")
        client = Registry(RegistrySpec(url=guarded.url), tmp_path)
        with pytest.raises(RegistryUnavailableError, match="401"):
            client.schema(number)
        (tmp_path / "username").write_text("reader\n")
        (tmp_path / "password").write_text("pass:word")
        with pytest.raises(RegistryUnavailableError, match="401") as caught:
            client.schema(number)
        client.fetch_missing()
        assert client.schema(number).text == guarded.schemas[number]["schema"]
        assert "pass:word" not in str(caught.value)


@pytest.mark.parametrize("together", [["1793527200"], [None], ["1793527200", None, "2026-11-01T10:00:00Z"]])
@pytest.mark.parametrize("text", ["2026-11-01T10:00:00", "2026-11-01T10:00:00Z", "yesterday"])
def test_a_text_that_is_no_number_is_refused_as_a_time_in_seconds(
    registry: SchemaRegistry, text: str, together: list[str | None]
) -> None:
    """JSON refuses such texts too. Other records of the batch make no difference."""
    write = Writer(registry, [{"name": "at", "type": ["null", "string"]}])
    read = decoder(registry, [{"name": "at", "type": "timestamp", "format": "s"}])
    texts = [text, *together]
    raws = [write(at=each) for each in texts]
    decoded = read.decode_all(raws, NOW_MS, records=[Record(raw) for raw in raws])
    assert sorted(decoded.invalid) == [index for index, each in enumerate(texts) if each not in ("1793527200", None)]
