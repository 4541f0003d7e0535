"""Nested, Avro, exploded, looked-up and staged events, written while processes die and groups, topics and rows change.

After each operation, every window, every dead letter and the counts are compared with the naive model of the fuzz.
Times go on by the round, so that windows close, and some events come when their windows are closed.
"""

from __future__ import annotations

import itertools
import json
import random
import threading
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Consumer, Producer, TopicPartition
from confluent_kafka.schema_registry import SchemaRegistryClient
from confluent_kafka.schema_registry.avro import AvroSerializer
from confluent_kafka.serialization import MessageField, SerializationContext

from kafka_admin import KafkaAdmin
from oracle.compare import differences, summary
from oracle.events import Event
from oracle.expressions import moment_of
from oracle.model import Model
from oracle.platform import Running
from oracle.queries import Query, answered
from running.schema_registry import running_registry
from tidemill_contract import names
from tidemill_contract.staged import read_origin
from waiting import eventually

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.matrix]

NAMESPACE = "shapes"
BASE, ROUND_MS = 1_774_742_400_000, 600_000
PARTITIONS, MORE_PARTITIONS = 3, 5
PLACES = 100
"""More than the elements of a record: the place of an event is its record's offset times this, plus its index."""

Part = dict[str, Any] | str
"""The values of an event that a record has, or the reason of its dead letter."""

PLAIN = [
    {"name": "id", "type": "integer", "required": True},
    {"name": "ts", "type": "timestamp", "required": True},
    {"name": "k", "type": "string"},
    {"name": "v", "type": "integer"},
]
METRICS = [
    {"name": "n", "function": "count"},
    {"name": "ids", "function": "distinct", "field": "id"},
    *({"name": name, "function": name, "field": "v"} for name in ("sum", "min", "max", "first", "last")),
    {"name": "large", "function": "count", "where": "big"},
]
TRANSFORM = {"filter": "v IS NULL OR v <> 3", "derive": [{"name": "big", "expression": "v > 5"}]}


def fields(**paths: Any) -> list[dict[str, Any]]:
    """The fields, each at its path."""
    return [{**each, **({"path": paths[each["name"]]} if each["name"] in paths else {})} for each in PLAIN]


@dataclass
class Surroundings:
    """What a shape needs beside its pipeline."""

    servers: Any
    folder: Path
    stack: ExitStack

    def write(self, config_map: str, file: str, text: str) -> None:
        """Put a file into a ConfigMap, at once."""
        folder = self.folder / "config-maps" / NAMESPACE / config_map
        folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "new").write_text(text)
        (self.folder / "new").replace(folder / file)


class Shape:
    """How events are written, and how the pipeline reads them: here as members of nested objects."""

    name = "nested"
    records_per_part = False
    """Whether each part is a record of the topic that the processors read."""
    repeats = False
    """Whether a record without parts is a copy of another one."""

    def __init__(self, around: Surroundings) -> None:
        self.around = around
        self._numbers = itertools.count(1)

    def spec(self) -> dict[str, Any]:
        """The members of the spec that are this shape's."""
        return {"source": {"fields": fields(id="user.id", ts="meta.at", k=["user", "key.part"], v="items[1].v")}}

    def known(self) -> list[dict[str, Any]]:
        """The fields that an aggregation knows."""
        return PLAIN

    def draw(self, rnd: random.Random, low: int) -> dict[str, Any]:
        """The values of an event in the ten minutes from a time on."""
        at = low + rnd.randrange(ROUND_MS) // 1000 * 1000
        key, value = rnd.choice(["a", "b", "c", "", None]), rnd.choice([None, *range(-5, 10)])
        return {"id": next(self._numbers), "ts": at, "k": key, "v": value}

    def write(self, rnd: random.Random, low: int) -> tuple[bytes, list[Part]]:
        """A record, and the parts that it should become."""
        event = self.draw(rnd, low)
        user = {"id": event["id"], "key.part": event["k"], "more": [1]}
        record: dict[str, Any] = {"meta": {"at": event["ts"]}, "user": user, "items": [{"v": 1000}, {"v": event["v"]}]}
        match rnd.randrange(40):
            case 0:
                return b"{", ["not_json"]
            case 1:
                return json.dumps({**record, "user": {**user, "id": "x"}}).encode(), ["mistyped"]
            case 2:
                return json.dumps({**record, "meta": None}).encode(), ["missing_field"]
        return json.dumps(record).encode(), [event]

    def change_rows(self) -> bool:
        """Change what is joined to events; False if nothing is."""
        return False

    def joined(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """The values of an event with those of the present rows."""
        return dict(values)


class Avro(Shape):
    """Avro with a registry; from some record on, the writer has another schema."""

    name = "avro"

    def __init__(self, around: Surroundings) -> None:
        super().__init__(around)
        registry = around.stack.enter_context(running_registry())
        client = SchemaRegistryClient({"url": registry.url})
        self._url = registry.url
        context = SerializationContext(names.topic(NAMESPACE, self.name, "events"), MessageField.VALUE)
        meta = {"type": "record", "name": "Meta", "fields": [{"name": "at", "type": "long"}]}
        members = [
            {"name": "meta", "type": meta},
            {"name": "id", "type": "long"},
            {"name": "k", "type": ["null", "string"]},
            {"name": "v", "type": ["null", "long"]},
        ]
        further = {"name": "shop", "type": "string", "default": "none"}
        texts = [json.dumps({"type": "record", "name": "Order", "fields": m}) for m in (members, [further, *members])]
        self._writers = [AvroSerializer(client, text) for text in texts]
        self._context = context

    def spec(self) -> dict[str, Any]:
        """The members of the spec that are this shape's."""
        return {"source": {"format": {"type": "avro", "registry": {"url": self._url}}, "fields": fields(ts="meta.at")}}

    def write(self, rnd: random.Random, low: int) -> tuple[bytes, list[Part]]:
        """A record, and the parts that it should become."""
        event = self.draw(rnd, low)
        evolved = event["id"] > 1_000 and rnd.random() < 0.5
        members = {**event, "meta": {"at": event["ts"]}, "shop": "s"}
        raw = bytes(self._writers[evolved](members, self._context) or b"")
        match rnd.randrange(40):
            case 0:
                return raw[:-1], ["unreadable"]
            case 1:
                return b"\0\0\0\x7f\xff" + raw[5:], ["unknown_schema"]
        return raw, [event]


class Exploded(Shape):
    """Events in an array, with times of their own."""

    name = "exploded"

    def spec(self) -> dict[str, Any]:
        """The members of the spec that are this shape's."""
        return {"source": {"fields": fields(ts="items[].at", k="items[].k", v="items[].v.n")}}

    def write(self, rnd: random.Random, low: int) -> tuple[bytes, list[Part]]:
        """A record, and the parts that it should become."""
        number = next(self._numbers)
        if rnd.random() < 0.03:
            return json.dumps({"id": number, "items": None}).encode(), ["missing_field"]
        items: list[Any] = []
        parts: list[Part] = []
        for _ in range(rnd.choice([0, 1, 2, 5])):
            event = self.draw(rnd, low) | {"id": number}
            item = {"at": event["ts"], "k": event["k"], "v": {"n": event["v"], "unit": "x"}}
            wrong = rnd.random() < 0.04
            items.append({**item, "k": 5} if wrong else item)
            parts.append("mistyped" if wrong else event)
        if rnd.random() < 0.03:
            return json.dumps({"id": "x", "items": items}).encode(), ["mistyped"]
        return json.dumps({"id": number, "items": items}).encode(), parts


class LookedUp(Shape):
    """Groups and values are those of rows: of a compacted topic and of a file."""

    name = "lookup"
    topic = f"{NAMESPACE}.customers"

    def __init__(self, around: Surroundings) -> None:
        super().__init__(around)
        admin = KafkaAdmin(around.servers.kafka)
        admin.create(self.topic, 2, config={"cleanup.policy": "compact"})
        around.stack.callback(admin.delete, self.topic)
        self._customers: dict[str, str] = {}
        self._products: dict[str, int] = {}
        self._set({"c1": "a", "c2": "b", "c3": "a", "c4": "c"}, {f"p{n}": n for n in range(8)})

    def _set(self, customers: dict[str, str], products: dict[str, int]) -> None:
        producer = Producer({"bootstrap.servers": self.around.servers.kafka, "partitioner": "murmur2_random"})
        for key in self._customers.keys() | customers.keys():
            row = json.dumps({"about": {"k": customers[key]}}).encode() if key in customers else None
            producer.produce(self.topic, row, key=key)
        assert producer.flush(60) == 0
        self._customers, self._products = customers, products
        lines = [f"{code},{value}\n" for code, value in products.items()]
        self.around.write("products", "products.csv", "".join(["code,v\n", *lines]))

    def change_rows(self) -> bool:
        """Change what is joined to events."""
        self._set({"c1": "z", "c2": "b", "c5": "a"}, {f"p{n}": n * 2 for n in range(3, 10)})
        return True

    def spec(self) -> dict[str, Any]:
        """The members of the spec that are this shape's."""
        key, value = PLAIN[2:]
        source = {"fields": [*PLAIN[:2], {"name": "c", "type": "string"}, {"name": "p", "type": "string"}]}
        file = {"configMap": "products", "file": "products.csv", "key": "code"}
        lookups = [
            {"name": "customers", "on": "c", "from": {"topic": self.topic}, "fields": [{**key, "path": "about.k"}]},
            {"name": "products", "on": "p", "from": file, "fields": [value]},
        ]
        return {"source": source, "lookups": lookups}

    def write(self, rnd: random.Random, low: int) -> tuple[bytes, list[Part]]:
        """A record, and the parts that it should become."""
        event = self.draw(rnd, low) | {
            "c": rnd.choice(["c1", "c2", "c3", "c4", "c5", None]),
            "p": f"p{rnd.randrange(10)}",
        }
        sent = {name: event[name] for name in ("id", "ts", "c", "p")}
        if rnd.random() < 0.03:
            return json.dumps({**sent, "c": 5}).encode(), ["mistyped"]
        return json.dumps(sent).encode(), [self.joined(event)]

    def joined(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """The values of an event with those of the present rows."""
        return {**values, "k": self._customers.get(values["c"]), "v": self._products.get(values["p"])}


class Staged(Shape):
    """A Python function renames members, drops events, makes several of one, and fails."""

    name = "staged"
    records_per_part = True
    FUNCTION = """
def shape(event):
    number = event["number"]
    if number % 5 == 0:
        return None
    if number % 11 == 0:
        raise ValueError(number)
    made = {"id": number, "ts": event["at"], "k": event["who"], "v": event["v"]}
    if number % 13 == 0:
        return {**made, "v": "many"}
    return [made, {**made, "k": "copy"}] if number % 7 == 0 else made
"""

    def __init__(self, around: Surroundings) -> None:
        super().__init__(around)
        around.write("shape", "shape.py", self.FUNCTION)

    def spec(self) -> dict[str, Any]:
        """The members of the spec that are this shape's."""
        python = {"configMap": "shape", "file": "shape.py", "function": "shape"}
        return {"source": {"fields": PLAIN}, "transform": {**TRANSFORM, "python": python}}

    def write(self, rnd: random.Random, low: int) -> tuple[bytes, list[Part]]:
        """A record, and the parts that it should become."""
        event = self.draw(rnd, low)
        number = event["id"]
        raw = json.dumps({"number": number, "at": event["ts"], "who": event["k"], "v": event["v"]}).encode()
        if rnd.random() < 0.03:
            return raw[:-1], ["not_json"]
        if number % 5 == 0:
            return raw, []
        if number % 11 == 0 or number % 13 == 0:
            return raw, ["transform_failed" if number % 11 == 0 else "mistyped"]
        return raw, [event, {**event, "k": "copy"}] if number % 7 == 0 else [event]


class Repeated(Shape):
    """Every third record is a copy of one of the latest events, in any partition, and is left out.

    No two events have the same time, because it is not defined which copy counts, and `first` compares the places of
    events with equal times. Late events have no copies, because either copy may become the dead letter.
    """

    name = "repeated"
    repeats = True

    def __init__(self, around: Surroundings) -> None:
        super().__init__(around)
        self._latest: list[bytes] = []
        self._low = 0

    def spec(self) -> dict[str, Any]:
        """The members of the spec that are this shape's."""
        return {"source": {"fields": PLAIN, "dedupe": {"field": "id", "window": "1h"}}}

    def write(self, rnd: random.Random, low: int) -> tuple[bytes, list[Part]]:
        """A record, and the parts that it should become."""
        if low > self._low:
            self._low, self._latest = low, []
        if self._latest and rnd.random() < 0.33:
            return rnd.choice(self._latest), []
        if rnd.random() < 0.03:
            return b"{", ["not_json"]
        event = self.draw(rnd, low)
        event["ts"] = low + event["id"] * 7_919 % ROUND_MS
        raw = json.dumps(event).encode()
        if low == self._low and event["v"] != 3:
            self._latest = [*self._latest[-200:], raw]
        return raw, [event]


SHAPES = {shape.name: shape for shape in (Shape, Avro, Exploded, LookedUp, Staged, Repeated)}


class Play:
    """A pipeline of a shape, its events, and the model."""

    def __init__(self, servers: Any, folder: Path, stack: ExitStack, shape: type[Shape]) -> None:
        self._rnd = random.Random(shape.name)
        self._kafka = servers.kafka
        self.shape = shape(Surroundings(servers, folder, stack))
        own = self.shape.spec()
        source = {
            "topic": {"partitions": PARTITIONS},
            "eventTime": {"field": "ts", "maxDisorder": "10m", "idleTimeout": "5h", "maxAdvance": "90d"},
            **own.pop("source"),
        }
        by_key = {"name": "by_k", "groupBy": ["k"], "window": {"type": "tumbling", "size": "1m"}, "metrics": METRICS}
        hops = {"type": "hopping", "size": "3m", "hop": "1m"}
        self.spec: dict[str, Any] = {
            "source": source,
            "transform": TRANSFORM,
            "aggregations": [by_key, {"name": "all", "window": hops, "metrics": METRICS}],
            "processor": {"flushInterval": "100ms", "replicas": 1},
            "ingest": {"enabled": False},
            "api": {"cacheTtl": "0s"},
            "auth": {"required": False},
            **own,
        }
        known = {**source, "fields": [*source["fields"], *self.shape.known()]}
        self.model = Model({**self.spec, "source": known})
        self._logs = dict.fromkeys(range(PARTITIONS), 0)
        self._low = BASE
        self._consumed = self._copies = 0
        self.running = Running(servers, folder, self._document())
        stack.callback(self.running.close)

    def _document(self) -> dict[str, Any]:
        metadata = {"name": self.shape.name, "namespace": NAMESPACE, "uid": f"uid-{self.shape.name}", "generation": 1}
        head = {"apiVersion": "tidemill.dev/v1alpha1", "kind": "AnalyticsPipeline"}
        return {**head, "metadata": metadata, "spec": self.spec}

    # --- events ---

    def _send(self, drawn: list[tuple[int, bytes, list[Part]]]) -> list[Event]:
        """Write records to their partitions; the events that they should become."""
        carriers, events = list[Event](), list[Event]()
        for partition, raw, parts in drawn:
            offset = self._logs[partition]
            self._logs[partition] += 1
            carriers.append(Event(partition, offset, raw))
            self._consumed += len(parts) if self.shape.records_per_part else 1
            self._copies += self.shape.repeats and not parts
            for place, part in enumerate(parts, offset * PLACES):
                if isinstance(part, str):
                    events.append(Event(partition, place, raw, reason=part))
                else:
                    values = {**part, "ts": moment_of(part["ts"])}
                    events.append(Event(partition, place, raw, part["ts"], values))
        self.running.send(carriers)
        return events

    def _some(self, number: int, *, late: bool) -> list[Event]:
        """Records of this round, and some of which all windows are closed."""
        drawn = []
        for _ in range(number):
            low = self._low
            if late and self._rnd.random() < 0.05:
                low -= 3 * ROUND_MS
            drawn.append((self._rnd.choice(list(self._logs)), *self.shape.write(self._rnd, low)))
        return self._send(drawn)

    def _brakes(self) -> list[Event]:
        """Events at the end of the round, so many in each partition that its time is believed."""
        drawn = []
        for partition in self._logs:
            found = 0
            while found < 3:
                raw, parts = self.shape.write(self._rnd, self._low + ROUND_MS)
                if any(isinstance(part, dict) for part in parts):
                    drawn.append((partition, raw, parts))
                    found += 1
        return self._send(drawn)

    def round(self, operation: Callable[[], None], *, late: bool = True, compare: bool = True) -> None:
        """Write events before, during and after an operation, and compare what is counted."""
        self._low += ROUND_MS
        events, errors, stop, begun = list[Event](), list[BaseException](), threading.Event(), threading.Event()

        def write() -> None:
            try:
                for number in itertools.count():
                    if stop.is_set() and number >= 20:
                        return
                    events.extend(self._some(30, late=late))
                    if number > 3:
                        begun.set()
                    if not stop.is_set():
                        stop.wait(0.1)
            except BaseException as error:
                errors.append(error)
                begun.set()

        writer = threading.Thread(target=write)
        writer.start()
        try:
            assert begun.wait(120)
            operation()
        finally:
            stop.set()
            writer.join()
        assert not errors, errors
        self.model.take(events + self._brakes())
        self.model.settle()
        if compare:
            self.check()

    def begin(self) -> None:
        """The first events in each partition, by which windows are closed."""
        self.model.take(self._brakes())
        self.model.settle()
        self.check()

    # --- comparison ---

    def check(self) -> None:
        """Compare every window, dead letter and count."""
        model, sql = self.model, self.running.sql
        self.running.await_counted(self._consumed)
        versions = model.versions.values()
        self.running.await_closed({(version.name, version.number): version.closed for version in versions})
        for version in versions:
            query, rows = Query(), self.running.rows(version.name, Query())
            cells, wrong = differences(model, version, query, answered(model, version, query), rows)
            assert cells > 0
            assert not wrong, f"{version.name}:\n{summary(wrong)}"
            which = f"name = '{version.name}' AND version = {version.number}"
            late = sql(f"SELECT late_dead FROM {{s}}._aggregations WHERE {which}")
            assert late == [(version.late["dead"],)]
        counts = sql("SELECT sum(consumed), sum(filtered), sum(invalid) FROM {s}._offsets WHERE reader = 'live'")
        invalid = sum(event.values is None for event in model.seen)
        assert [tuple(map(int, row)) for row in counts] == [(self._consumed, model.filtered, invalid)]
        copies = sql("SELECT sum(duplicates)::bigint FROM {s}._offsets WHERE reader = 'live'")
        assert copies == [(self._copies,)]
        letters = sql('SELECT partition, "offset", element, aggregation, reason FROM {s}._dead_letters')
        places = self._staged() if self.shape.records_per_part else None
        dead = [
            (p, o * PLACES + max(element, 0) if places is None else places[p, o], name, reason)
            for p, o, element, name, reason in letters
        ]
        assert sorted(dead) == sorted(model.dead)

    def _staged(self) -> dict[tuple[int, int], int]:
        """The place of each record of the stage topic: the offset of its origin, and how many it has before."""
        topic, found = names.topic(NAMESPACE, self.shape.name, "stage"), dict[tuple[int, int], int]()
        settings = {"enable.partition.eof": True, "auto.offset.reset": "earliest", "group.id": "tests.shapes"}
        consumer = Consumer({"bootstrap.servers": self._kafka, **settings, "enable.auto.commit": False})
        try:
            consumer.assign([TopicPartition(topic, partition, 0) for partition in self._logs])
            ended, last = 0, dict[int, int]()
            while ended < len(self._logs):
                for message in consumer.consume(1_000, 1.0):
                    if message.error() is not None:
                        ended += 1
                        continue
                    origin = read_origin(message.headers())
                    assert origin is not None
                    partition, place = message.partition(), origin.offset * PLACES
                    last[partition] = place = max(place, last.get(partition, -1) + 1)
                    found[partition, message.offset()] = place
        finally:
            consumer.close()
        return found

    # --- operations ---

    def kill(self) -> None:
        """End processors at once, and the stage as well."""
        for _ in range(3):
            for component in ("processor", *(["stage"] if self.shape.records_per_part else [])):
                before = self.running.pids(component)
                assert self.running.kill(self._rnd, component)
                eventually(lambda: self.running.pids(component) not in (before, []), what=f"another {component} runs")  # noqa: B023

    def rebalance(self) -> None:
        """A second processor comes, and goes."""
        self.running.await_members(1)
        for replicas in (2, 1):
            self.spec["processor"] = {**self.spec["processor"], "replicas": replicas}
            self.running.edit(self.spec, {})
            self.running.await_members(replicas)

    def reset(self) -> None:
        """The processors' group begins anew, and the stage's as well."""
        if self.shape.records_per_part:
            self.running.reset_group("live", "stage")
            self.running.reset_group("stage", "events")
        else:
            self.running.reset_group()

    def grow(self) -> None:
        """The topic gets more partitions."""
        self.spec["source"] = {**self.spec["source"], "topic": {"partitions": MORE_PARTITIONS}}
        self.running.grow(self.spec)
        for partition in range(PARTITIONS, MORE_PARTITIONS):
            self.model.times[partition] = []
            self._logs[partition] = 0

    def replay(self) -> None:
        """Everything is counted again while events arrive, with the rows of now."""
        if self.shape.change_rows():
            # A processor reads all rows before it counts.
            assert self.running.kill(self._rnd)
        self.round(lambda: self.running.replay(list(self.model.versions), lambda: None), late=False, compare=False)
        self.model.seen = [
            event if event.values is None else replace(event, values=self.shape.joined(event.values))
            for event in self.model.seen
        ]
        self.model.replay(list(self.model.versions), self.running.versions())
        self.check()


@pytest.mark.parametrize("name", SHAPES)
def test_windows_are_exact_whatever_happens(servers: Any, tmp_path: Path, name: str) -> None:
    """Kills, a rebalance, a reset, more partitions and a replay, one after the other."""
    with ExitStack() as stack:
        play = Play(servers, tmp_path, stack, SHAPES[name])
        play.begin()
        for operation in (play.kill, play.rebalance, play.reset, play.grow):
            play.round(operation)
        assert play.model.filtered > 0
        assert {reason for *_, reason in play.model.dead} > {"late"}
        play.replay()
        play.round(play.kill)
