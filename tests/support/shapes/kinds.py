"""Shapes of events: Avro, exploded, looked up, staged and repeated."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from typing import Any

from confluent_kafka import Producer
from confluent_kafka.schema_registry import SchemaRegistryClient
from confluent_kafka.schema_registry.avro import AvroSerializer
from confluent_kafka.serialization import MessageField, SerializationContext

from kafka_admin import KafkaAdmin
from running.schema_registry import running_registry
from shapes.shape import NAMESPACE, PLAIN, ROUND_MS, TRANSFORM, Part, Shape, Surroundings, fields
from tidemill_contract import names


class Avro(Shape):
    """Avro with a schema registry. After 1,000 events, half of the records have a newer schema."""

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
        return {"source": {"format": {"type": "avro", "registry": {"url": self._url}}, "fields": fields(ts="meta.at")}}

    def write(self, rnd: random.Random, low: int) -> tuple[bytes, list[Part]]:
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
    """Events in an array. Each event has a time."""

    name = "exploded"

    def spec(self) -> dict[str, Any]:
        return {"source": {"fields": fields(ts="items[].at", k="items[].k", v="items[].v.n")}}

    def write(self, rnd: random.Random, low: int) -> tuple[bytes, list[Part]]:
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
    """Groups and values are joined from lookups: the rows of a compacted topic and of a file."""

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
        self._set({"c1": "z", "c2": "b", "c5": "a"}, {f"p{n}": n * 2 for n in range(3, 10)})
        return True

    def spec(self) -> dict[str, Any]:
        key, value = PLAIN[2:]
        source = {"fields": [*PLAIN[:2], {"name": "c", "type": "string"}, {"name": "p", "type": "string"}]}
        file = {"configMap": "products", "file": "products.csv", "key": "code"}
        lookups = [
            {"name": "customers", "on": "c", "from": {"topic": self.topic}, "fields": [{**key, "path": "about.k"}]},
            {"name": "products", "on": "p", "from": file, "fields": [value]},
        ]
        return {"source": source, "lookups": lookups}

    def write(self, rnd: random.Random, low: int) -> tuple[bytes, list[Part]]:
        event = self.draw(rnd, low) | {
            "c": rnd.choice(["c1", "c2", "c3", "c4", "c5", None]),
            "p": f"p{rnd.randrange(10)}",
        }
        sent = {name: event[name] for name in ("id", "ts", "c", "p")}
        if rnd.random() < 0.03:
            return json.dumps({**sent, "c": 5}).encode(), ["mistyped"]
        return json.dumps(sent).encode(), [self.joined(event)]

    def joined(self, values: Mapping[str, Any]) -> dict[str, Any]:
        return {**values, "k": self._customers.get(values["c"]), "v": self._products.get(values["p"])}


class Staged(Shape):
    """A Python function renames members, drops events, duplicates events, and fails."""

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
        python = {"configMap": "shape", "file": "shape.py", "function": "shape"}
        return {"source": {"fields": PLAIN}, "transform": {**TRANSFORM, "python": python}}

    def write(self, rnd: random.Random, low: int) -> tuple[bytes, list[Part]]:
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
    """Every third record is a copy of a recent event, in any partition, and is left out as a duplicate.

    All events have different times. With equal times, `first` would depend on the places of the copies, and it is not
    defined which copy counts. Late events have no copies, because either copy may become the dead letter.
    """

    name = "repeated"
    repeats = True

    def __init__(self, around: Surroundings) -> None:
        super().__init__(around)
        self._latest: list[bytes] = []
        self._low = 0

    def spec(self) -> dict[str, Any]:
        return {"source": {"fields": PLAIN, "dedupe": {"field": "id", "window": "1h"}}}

    def write(self, rnd: random.Random, low: int) -> tuple[bytes, list[Part]]:
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
