"""How events are written, and how a pipeline reads them: as members of nested objects."""

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
"""More than the elements of a record: the place of an event is its record's offset times this, plus its index."""

Part = dict[str, Any] | str
"""The values of an event that a record has, or the reason of its dead letter."""

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
