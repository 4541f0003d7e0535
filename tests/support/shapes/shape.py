"""The base class of event shapes: how records are written, and how a pipeline reads them."""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

NAMESPACE = "shapes"
BASE, ROUND_MS = 1_774_742_400_000, 600_000
PARTITIONS, MORE_PARTITIONS = 3, 5
PLACES = 100
"""The place of an event is the offset of its record times `PLACES`, plus its index in the record.

No record has as many events.
"""

Part = dict[str, Any] | str
"""The values of an event of a record, or the reason of its dead letter."""

PLAIN: list[dict[str, Any]] = [
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
    """Return the fields of the source, with paths for some fields."""
    return [{**field, **({"path": paths[field["name"]]} if field["name"] in paths else {})} for field in PLAIN]


@dataclass
class Surroundings:
    """The servers, the folder and the exit stack that shapes use.

    Attributes:
        servers: Kafka, Postgres and Redis.
        folder: the folder of the local runtime.
        stack: a stack that ends what a shape has started.
    """

    servers: Any
    folder: Path
    stack: ExitStack

    def write(self, config_map: str, file: str, text: str) -> None:
        """Create or replace a file of a ConfigMap atomically."""
        folder = self.folder / "config-maps" / NAMESPACE / config_map
        folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "new").write_text(text)
        (self.folder / "new").replace(folder / file)


class Shape:
    """A shape of events. The base class writes fields as members of nested objects."""

    name = "nested"
    records_per_part = False
    """Whether the stage writes each part as a record of the topic that the processors read."""
    repeats = False
    """Whether a record without parts is a copy of another record."""

    def __init__(self, around: Surroundings) -> None:
        self.around = around
        self._numbers = itertools.count(1)

    def spec(self) -> dict[str, Any]:
        """Return the members of the spec that belong to this shape."""
        return {"source": {"fields": fields(id="user.id", ts="meta.at", k=["user", "key.part"], v="items[1].v")}}

    def aggregated_fields(self) -> list[dict[str, Any]]:
        """Return the fields that an aggregation can use."""
        return PLAIN

    def draw(self, rnd: random.Random, low: int) -> dict[str, Any]:
        """Return the values of a random event in the ten minutes from `low` on."""
        at = low + rnd.randrange(ROUND_MS) // 1000 * 1000
        key, value = rnd.choice(["a", "b", "c", "", None]), rnd.choice([None, *range(-5, 10)])
        return {"id": next(self._numbers), "ts": at, "k": key, "v": value}

    def write(self, rnd: random.Random, low: int) -> tuple[bytes, list[Part]]:
        """Return a random record, and the parts that are expected of the record."""
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
        """Change the rows of lookups. Return False if the shape has no lookups."""
        return False

    def joined(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Return the values of an event, joined to the current rows of lookups."""
        return dict(values)
