"""Tests of source formats other than plain JSON, on real servers: records are counted exactly or become dead letters.

Formats with schemas use a real schema registry, which one test stops.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
from confluent_kafka import Producer
from confluent_kafka.schema_registry import SchemaRegistryClient
from confluent_kafka.schema_registry.avro import AvroSerializer
from confluent_kafka.schema_registry.protobuf import ProtobufSerializer
from confluent_kafka.serialization import MessageField, SerializationContext
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass

from bench import Bench, MakeBench
from running.schema_registry import SchemaRegistry, running_registry
from tidemill_contract.resource.spec import PipelineSpec
from tidemill_contract.runtime import AggregationRef, PipelineConfig

pytestmark = pytest.mark.integration

BASE = 1_700_000_000_000 // 60_000 * 60_000
Writer = Callable[..., bytes]
LOGIN = ("reader", "a pass:word")


@pytest.fixture
def registry() -> Iterator[SchemaRegistry]:
    with running_registry() as registry:
        yield registry


def config(name: str, source_format: Any, *further: dict[str, Any]) -> PipelineConfig:
    fields = [{"name": "ts", "type": "timestamp"}, {"name": "k", "type": "string"}, {"name": "v", "type": "number"}]
    metrics = [{"name": "n", "function": "count"}, {"name": "total", "function": "sum", "field": "v"}]
    by_k = {"name": "by_k", "groupBy": ["k"], "window": {"type": "tumbling", "size": "1m"}, "metrics": metrics}
    spec = PipelineSpec.model_validate(
        {
            "source": {
                "topic": {"partitions": 2},
                "format": source_format,
                "fields": [*fields, *further],
                "eventTime": {"field": "ts", "idleTimeout": "10m"},
            },
            "aggregations": [by_k],
            "processor": {"flushInterval": "100ms"},
        }
    )
    return PipelineConfig(
        namespace="tests", name=name, generation=1, spec=spec, aggregations=(AggregationRef(name="by_k"),)
    )


def counts(bench: Bench) -> dict[str, tuple[int, float]]:
    rows = bench.query("SELECT k, sum(_count), sum(_sum_v) FROM {s}.by_k_v1 GROUP BY 1")
    return {k: (int(n), float(total)) for k, n, total in rows}


def reasons(bench: Bench) -> Counter[str]:
    return Counter(reason for (reason,) in bench.query("SELECT reason FROM {s}._dead_letters"))


class AvroWriters:
    """Returns functions that serialize records with Confluent's serializer of Avro."""

    kinds: ClassVar = {"ts": "long", "k": "string", "v": ["null", "double"]}

    def __call__(self, registry: SchemaRegistry, topic: str, **further: Any) -> Writer:
        """Return a writer of records with the members `further`, and then `ts`, `k` and `v`."""
        fields = [{"name": name, "type": kind} for name, kind in {**further, **self.kinds}.items()]
        client = SchemaRegistryClient({"url": registry.url, "basic.auth.user.info": ":".join(LOGIN)})
        serialize = AvroSerializer(client, json.dumps({"type": "record", "name": "Order", "fields": fields}))
        return lambda **members: bytes(serialize(members, SerializationContext(topic, MessageField.VALUE)) or b"")


class ProtobufWriters:
    """Returns functions that serialize records with Confluent's serializer of Protobuf."""

    kinds: ClassVar = {"ts": 3, "k": 9, "v": 1}
    further: ClassVar = {"string": 9, "long": 3}

    def __call__(self, registry: SchemaRegistry, topic: str, **further: Any) -> Writer:
        """Return a writer of records with the members `further`, and then `ts`, `k` and `v`."""
        file = FileDescriptorProto(name="order.proto", syntax="proto3")
        order = file.message_type.add(name="Order")
        for number, (name, kind) in enumerate({**further, **self.kinds}.items(), 1):
            order.field.add(name=name, number=number, type=self.further.get(kind, kind), label=1)
        pool = DescriptorPool()
        pool.Add(file)
        kind = GetMessageClass(pool.FindMessageTypeByName("Order"))
        client = SchemaRegistryClient({"url": registry.url, "basic.auth.user.info": ":".join(LOGIN)})
        serialize = ProtobufSerializer(kind, client, {"use.deprecated.format": False})
        context = SerializationContext(topic, MessageField.VALUE)
        return lambda **members: bytes(serialize(kind(**members), context) or b"")


WRITERS = {"avro": AvroWriters(), "protobuf": ProtobufWriters()}


@pytest.mark.parametrize("kind", WRITERS)
def test_records_with_schemas_are_counted_exactly_and_wait_for_the_registry(
    make_bench: MakeBench, registry: SchemaRegistry, tmp_path: Any, kind: str
) -> None:
    """While the registry is down, a partition waits before a record with a new schema. The other partition is read."""
    registry.login = LOGIN
    for name, text in zip(("username", "password"), LOGIN, strict=True):
        (tmp_path / name).write_text(text)
    source_format = {"type": kind, "registry": {"url": registry.url, "secretRef": {"name": "registry"}}}
    bench = make_bench(config(kind, source_format), TIDEMILL_REGISTRY_DIR=str(tmp_path))
    topic = bench.config.events_topic
    write = WRITERS[kind](registry, topic)
    evolved = WRITERS[kind](registry, topic, shop="string")
    later = WRITERS[kind](registry, topic, more="long")
    first = [write(ts=BASE + i, k=f"k{i % 3}", v=float(i)) for i in range(3_000)]
    first[10:10] = [evolved(ts=BASE, k="k0", v=0.0, shop="a"), first[0][:-1], b"\0\0\0\x7f\xff" + first[0][5:]]
    bench.produce(first)
    process = bench.start()
    bench.await_consumed(3_003)
    expected = {f"k{k}": (1_000 + (k == 0), float(sum(range(k, 3_000, 3)))) for k in range(3)}
    assert counts(bench) == expected
    assert reasons(bench) == Counter(unreadable=1, unknown_schema=1)

    waiting = [later(ts=BASE, k="later", v=1.0, more=1) for _ in range(50)]
    registry.stop()
    bench.produce([first[0], *waiting, first[0]], partition=0)
    bench.produce([first[1]] * 100, partition=1)
    bench.eventually(lambda: bench.consumed() == 3_104, what="all readable records are counted")
    health = bench.health()
    assert health["status"] == "degraded"
    assert health["dependencies"]["registry"]["status"] == "down"
    assert registry.url in health["dependencies"]["registry"]["detail"]
    assert "later" not in counts(bench)
    registry.start()
    bench.await_consumed(3_155)
    assert counts(bench)["later"] == (50, 50.0)
    assert counts(bench)["k1"] == (1_100, expected["k1"][1] + 100.0)
    assert reasons(bench) == Counter(unreadable=1, unknown_schema=1)
    bench.eventually(lambda: bench.health()["status"] == "healthy", what="the processor is healthy again")
    assert process.poll() is None
    logs = "".join(path.read_text() for path in bench.folder.glob("*.log"))
    assert "wait for the schema registry" in logs
    assert LOGIN[1] not in logs


@dataclass(frozen=True)
class Texts:
    """Records of a format that is read without a registry.

    Attributes:
        source_format: the format in the spec.
        valid: a template of a record, for a time, a key and a value.
        evolved: a template of a record with further members, as a later version of the writer would write it.
        broken: records that become dead letters, with the reason of each.
    """

    source_format: Any
    valid: bytes
    evolved: bytes
    broken: dict[bytes, str]


UNREACHABLE = {"url": "http://127.0.0.1:9"}
ROW = b'"ts": %d, "k": "k%d", "v": %d'
TEXTS = {
    # A line of CSV does not name its cells. A line with a further cell cannot be read.
    "csv": Texts("csv", b"%d,k%d,%d\n", b'%d,"k%d",%d', {b"1;2": "unreadable", b"1,k0,2,new": "unreadable"}),
    "jsonSchema": Texts(
        {"type": "jsonSchema", "registry": UNREACHABLE},
        b"\0\0\0\0\7{%b}" % ROW,
        b'\0\0\0\0\x08{"more": [1], %b}' % ROW,
        {b'{"ts": 1}': "unreadable", b'\0\0\0\0\7{"ts": 1': "not_json"},
    ),
    "connect": Texts(
        {"envelope": "connect"},
        b'{"schema": {"type": "struct"}, "payload": {%b}}' % ROW,
        b'{"schema": null, "payload": {"more": [1], %b}, "more": 1}' % ROW,
        {b'{"ts": 1}': "not_an_envelope", b'{"schema": null, "payload": null}': "deleted", b"{": "not_json"},
    ),
    "cloudevents": Texts(
        {"envelope": "cloudevents"},
        b'{"specversion": "1.0", "type": "t", "source": "s", "id": "1", "data": {%b}}' % ROW,
        b'{"specversion": "1.0", "type": "t", "more": "m", "data": {"more": [1], %b}}' % ROW,
        {b'{"type": "t", "data": {}}': "not_an_envelope", b'{"specversion": "1.0", "data": 5}': "not_an_object"},
    ),
}


@pytest.mark.parametrize("kind", TEXTS)
def test_records_without_a_schema_are_counted_exactly(make_bench: MakeBench, kind: str) -> None:
    """Valid and evolved records are counted, and broken records become dead letters. No registry is running."""
    texts = TEXTS[kind]
    bench = make_bench(config(kind.lower(), texts.source_format))
    sent = [(texts.evolved if i % 7 == 0 else texts.valid) % (BASE + i, i % 2, i) for i in range(1_000)]
    sent[100:100] = texts.broken
    bench.produce(sent)
    bench.start()
    bench.await_consumed(len(sent))
    assert counts(bench) == {f"k{k}": (500, float(sum(range(k, 1_000, 2)))) for k in range(2)}
    assert reasons(bench) == Counter(texts.broken.values())


def test_inserts_and_updates_of_a_table_are_counted_and_deletes_are_ignored(make_bench: MakeBench) -> None:
    source_format = {"envelope": "debezium", "deletes": "ignore"}
    op = {"name": "op", "type": "string", "from": "envelope"}
    bench = make_bench(config("changes", source_format, op))
    producer = Producer({"bootstrap.servers": bench.servers.kafka})

    def change(op: str, before: Any, after: Any) -> bytes:
        return json.dumps({"op": op, "before": before, "after": after, "source": {"table": "t"}}).encode()

    row = {"ts": BASE, "k": "a", "v": 2.0}
    sent: list[bytes | None] = []
    for number in range(500):
        sent += [
            change("c", None, row),
            change("u", row, {**row, "v": 3.0, "more": [number]}),
            change("d", row, None),
            None,
        ]
        sent += [b"{}"] if number % 100 == 0 else []
    for value in sent:
        producer.produce(bench.config.events_topic, value, partition=0)
        producer.poll(0)
    assert producer.flush(30) == 0
    bench.start()
    bench.await_consumed(2_005)
    assert counts(bench) == {"a": (1_000, 2_500.0)}
    assert reasons(bench) == Counter(not_an_envelope=5)
    ((filtered,),) = bench.query("SELECT sum(filtered) FROM {s}._offsets")
    assert filtered == 1_000
