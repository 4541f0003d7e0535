"""Benchmark of decoding and aggregating events in different shapes, in one process without Kafka and Postgres.

The processor's code turns the bytes of records into the rows of a batch. All shapes have the same events. The shapes
take turns, and the best round of each counts. So other work on the machine affects all shapes alike.
"""

from __future__ import annotations

import argparse
import base64
import datetime as dt
import io
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import fastavro
import polars as pl
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from tidemill_contract.functions.partials import build_layout, field_types
from tidemill_contract.resource.kinds.formats import FormatSpec
from tidemill_contract.resource.spec import PipelineSpec
from tidemill_contract.stage_records import ORIGIN_HEADER, Origin
from tidemill_processor.batches.exploding import batch_reader
from tidemill_processor.formats.registry import Registry, Schema
from tidemill_processor.lookups.lookups import Lookups
from tidemill_processor.lookups.table import KEY, Table
from tidemill_processor.merge.aggregate import aggregate
from tidemill_processor.source.stage_topic import wrap_staged

BASE = 1_700_000_000_000
BATCH, PIECE = 50_000, 4_000
ELEMENTS = 5
"""Number of elements of an array that is exploded."""

SCHEMA = {
    "type": "record",
    "name": "View",
    "fields": [
        {"name": "ts", "type": {"type": "long", "logicalType": "timestamp-millis"}},
        {"name": "page", "type": "string"},
        {"name": "user_id", "type": "string"},
        {"name": "latency_ms", "type": "double"},
        {"name": "country", "type": "string"},
    ],
}
PARSED = fastavro.parse_schema(SCHEMA)
AVRO = {"type": "avro", "registry": {"url": "http://127.0.0.1:9"}}
PROTOBUF = {**AVRO, "type": "protobuf"}
ORIGIN = Origin("tWf-1_x3Q8mYp0aBcDeFgh", 1_234_567, BASE).encode()
FRAME = b"\0\0\0\0\1"
_PATTERN = "%d/%b/%Y:%H:%M:%S %z"

LOOKUP = {
    "name": "users",
    "on": "user_id",
    "from": {"topic": "default.users"},
    "fields": [{"name": "tier", "type": "string"}],
}

Members = dict[str, Any]


@dataclass(frozen=True)
class Shape:
    """A way to write events.

    Attributes:
        fields: Additional members of fields in the spec, by the field's name.
        write: Function that returns an event as it is sent.
        elements: Number of events in a record.
        record: Function that returns the record of plain events and of the same events as they are sent.
        format: Format in the spec.
        encode: Function that returns the bytes of a record.
        staged: Whether the records come from a Python stage.
        looked_up: Number of rows of a lookup by user. The events are grouped by its field. 0 means no lookup.
    """

    fields: dict[str, Members]
    write: Callable[[Members], Any]
    elements: int = 1
    record: Callable[[Sequence[Members], list[Any]], Members] = lambda _, written: written[0]
    format: Members | str | None = None
    encode: Callable[[Members], bytes] = lambda event: json.dumps(event).encode()
    staged: bool = False
    looked_up: int = 0


def _nested(event: Members) -> Members:
    return {
        "ts": event["ts"],
        "request": {"page": event["page"], "latency_ms": event["latency_ms"]},
        "user": {"id": event["user_id"], "country": event["country"]},
    }


def _changed(event: Members) -> Members:
    """Return a change event as Debezium writes it."""
    source = {
        "version": "3.6.1.Final", "connector": "postgresql", "name": "shop", "ts_ms": event["ts"], "snapshot": "false",
        "db": "shop", "sequence": '["1","2"]', "schema": "public", "table": "orders", "txId": 555, "lsn": 24023128,
        "xmin": None,
    }  # fmt: skip
    return {"before": None, "after": event, "source": source, "transaction": None, "op": "c", "ts_ms": event["ts"]}


def _avro(event: Members) -> bytes:
    stream = io.BytesIO()
    fastavro.schemaless_writer(stream, PARSED, event)
    return FRAME + stream.getvalue()


def _message() -> type[Message]:
    kinds = {"ts": 3, "page": 9, "user_id": 9, "latency_ms": 1, "country": 9}
    file = FileDescriptorProto(name="view.proto", syntax="proto3")
    view = file.message_type.add(name="View")
    for number, (name, kind) in enumerate(kinds.items(), 1):
        view.field.add(name=name, number=number, type=kind, label=1)  # type: ignore[arg-type]
    pool = DescriptorPool()
    pool.Add(file)
    return GetMessageClass(pool.FindMessageTypeByName("View"))


VIEW = _message()


class KnownSchema(Registry):
    """A schema registry with one schema of each type, in memory."""

    def __init__(self, written: FormatSpec) -> None:
        assert written.registry is not None
        super().__init__(written.registry)
        self._avro = written.type == "avro"

    def schema(self, number: int) -> Schema:
        if self._avro:
            return Schema(json.dumps(SCHEMA))
        return Schema(base64.b64encode(VIEW.DESCRIPTOR.file.serialized_pb).decode(), "PROTOBUF")


class KnownRows(Lookups):
    """A lookup whose rows are in memory."""

    def __init__(self, number: int) -> None:
        users = [f"u{i}" for i in range(number)]
        self._table = Table(pl.DataFrame({KEY: users, "tier": [f"t{i % 100}" for i in range(number)]}))

    def join(self, frame: pl.DataFrame) -> pl.DataFrame:
        return self._table.join(frame, "user_id")


def _text(time: int, pattern: str) -> str:
    return dt.datetime.fromtimestamp(time / 1000, dt.UTC).strftime(pattern)


SHAPES: dict[str, Shape] = {
    "flat": Shape({}, lambda event: event),
    "nested": Shape(
        {
            "page": {"path": "request.page"},
            "latency_ms": {"path": "request.latency_ms"},
            "user_id": {"path": "user.id"},
            "country": {"path": "user.country"},
        },
        _nested,
    ),
    "default": Shape({"country": {"default": "DE"}}, lambda event: event),
    "rfc3339": Shape({}, lambda event: {**event, "ts": _text(event["ts"], "%Y-%m-%dT%H:%M:%S.%fZ")}),
    "seconds": Shape({"ts": {"format": "s"}}, lambda event: {**event, "ts": event["ts"] // 1000}),
    "fractions": Shape({"ts": {"format": "s"}}, lambda event: {**event, "ts": event["ts"] / 1000}),
    "pattern": Shape({"ts": {"format": _PATTERN}}, lambda event: {**event, "ts": _text(event["ts"], _PATTERN)}),
    "exploded": Shape(
        {name: {"path": f"items[].{name}"} for name in ("page", "latency_ms", "user_id")},
        lambda event: {name: event[name] for name in ("page", "latency_ms", "user_id")},
        ELEMENTS,
        lambda events, items: {"ts": events[0]["ts"], "country": events[0]["country"], "items": items},
    ),
    "values": Shape(
        {"page": {"path": "pages[]"}},
        lambda event: event["page"],
        ELEMENTS,
        lambda events, pages: {**events[0], "page": None, "pages": pages},
    ),
    "decimal": Shape({"latency_ms": {"type": "decimal", "scale": 2}}, lambda event: event),
    "decimal text": Shape(
        {"latency_ms": {"type": "decimal", "scale": 2}},
        lambda event: {**event, "latency_ms": f"{event['latency_ms']:.2f}"},
    ),
    "header": Shape({"country": {"from": "header"}}, lambda event: event),
    "csv": Shape(
        {}, lambda event: event, format="csv", encode=lambda event: ",".join(map(str, event.values())).encode()
    ),
    "jsonSchema": Shape(
        {}, lambda event: event, format="jsonSchema", encode=lambda event: FRAME + json.dumps(event).encode()
    ),
    "avro": Shape({}, lambda event: event, format=AVRO, encode=_avro),
    "protobuf": Shape(
        {}, lambda event: event, format=PROTOBUF, encode=lambda event: FRAME + b"\0" + VIEW(**event).SerializeToString()
    ),
    "debezium": Shape({}, _changed, format={"envelope": "debezium"}),
    "after a Python stage": Shape({}, lambda event: event, staged=True),
    "with lookup": Shape({}, lambda event: event, looked_up=10_000),
    "large lookup": Shape({}, lambda event: event, looked_up=1_000_000),
    "with op": Shape({"country": {"from": "envelope", "path": "op"}}, _changed, format={"envelope": "debezium"}),
}


class Record:
    """A Kafka record, in memory."""

    def __init__(self, offset: int, raw: bytes) -> None:
        self._offset, self._raw = offset, raw

    def key(self) -> bytes | None:
        return None

    def value(self) -> bytes:
        return self._raw

    def partition(self) -> int:
        return 0

    def offset(self) -> int:
        return self._offset

    def timestamp(self) -> tuple[int, int]:
        return 1, BASE

    def headers(self) -> list[tuple[str, bytes]]:
        return [("country", b"DE"), (ORIGIN_HEADER, ORIGIN)]


def spec_of(shape: Shape) -> PipelineSpec:
    """Return the spec of a pipeline that reads events of a shape."""
    kinds = {"ts": "timestamp", "page": "string", "user_id": "string", "latency_ms": "number", "country": "string"}
    named = ("total", "sum"), ("low", "min"), ("high", "max")
    metrics = [{"name": "n", "function": "count"}]
    metrics += [{"name": name, "function": function, "field": "latency_ms"} for name, function in named]
    return PipelineSpec.model_validate(
        {
            "source": {
                "fields": [{"name": n, "type": kind} | shape.fields.get(n, {}) for n, kind in kinds.items()],
                "eventTime": {"field": "ts"},
                **({"format": shape.format} if shape.format else {}),
            },
            **({"lookups": [LOOKUP]} if shape.looked_up else {}),
            "aggregations": [
                {
                    "name": "by_page",
                    "groupBy": ["tier" if shape.looked_up else "page"],
                    "window": {"type": "tumbling", "size": "1m"},
                    "metrics": metrics,
                }
            ],
        }
    )


def events_of(shape: Shape) -> list[Record]:
    """Return a batch of records of a shape."""
    plain = [
        {"ts": BASE + i * 20, "page": f"/p{i % 100}", "user_id": f"u{i % 9_973}", "latency_ms": (i * 7 % 4_000) / 10,
         "country": "DE"}
        for i in range(BATCH)
    ]  # fmt: skip
    together = [plain[at : at + shape.elements] for at in range(0, BATCH, shape.elements)]
    sent = (shape.record(some, [shape.write(event) for event in some]) for some in together)
    return [Record(i, shape.encode(record)) for i, record in enumerate(sent)]


class Runner:
    """A batch of one shape that runs repeatedly.

    Attributes:
        best: CPU seconds of the fastest round.
    """

    def __init__(self, shape: Shape) -> None:
        spec = spec_of(shape)
        self._records = events_of(shape)
        written = spec.source.record_format
        registry = None if written.registry is None else KnownSchema(written)
        lookups = KnownRows(shape.looked_up) if shape.looked_up else None
        self._reader = batch_reader(spec, registry=registry, lookups=lookups)
        self._piece = PIECE // shape.elements
        self._taken: Callable[[list[Any]], list[Any]] = wrap_staged if shape.staged else lambda records: records
        self._layout = build_layout(spec.aggregations[0], field_types(spec, {}))
        self.best = float("inf")

    def run(self) -> None:
        """Run the batch once."""
        begin = time.process_time()
        starts = range(0, len(self._records), self._piece)
        pieces = [
            self._reader.decode(self._taken(self._records[at : at + self._piece]), BASE + 10**7, at) for at in starts
        ]
        batch = self._reader.join(pieces)
        rows = aggregate(batch.frame, self._layout, closed_until=None, epochs={0: 0}).rows
        self.best = min(self.best, time.process_time() - begin)
        if batch.dead_letters or rows["_count"].sum() != BATCH:
            raise RuntimeError(
                f"{len(batch.dead_letters)} dead letters, {rows['_count'].sum()} of {BATCH} events counted"
            )


def main(arguments: Sequence[str] | None = None) -> int:
    """Print a table of all shapes, or of the shapes in `--shapes`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shapes", default=",".join(SHAPES), help="shapes, separated by commas")
    parser.add_argument("--rounds", type=int, default=30)
    chosen = parser.parse_args(arguments)
    runners = {name: Runner(SHAPES[name]) for name in chosen.shapes.split(",")}
    for _ in range(chosen.rounds):
        for runner in runners.values():
            runner.run()
    first = next(iter(runners.values())).best
    print("| Events | Per CPU-second | Microseconds each | Cost beside the first |\n|---|---|---|---|")
    for name, runner in runners.items():
        each = runner.best / BATCH
        print(f"| {name} | {1 / each:,.0f} | {each * 1e6:.2f} | {runner.best / first - 1:+.1%} |")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
