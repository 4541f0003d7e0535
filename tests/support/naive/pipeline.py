"""A pipeline with tumbling, hopping and session windows and many metrics, and random events for the pipeline."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass, replace
from typing import Any

from kafka_records import KafkaRecord
from tidemill_contract.resource.spec import PipelineSpec
from tidemill_contract.runtime import AggregationRef, PipelineConfig
from tidemill_contract.times import rfc3339_ms

BASE = 1_700_000_000_000 // 60_000 * 60_000
METRICS = [
    {"name": "n", "function": "count"},
    {"name": "nv", "function": "count", "field": "v"},
    {"name": "sv", "function": "sum", "field": "v"},
    {"name": "si", "function": "sum", "field": "i"},
    {"name": "av", "function": "avg", "field": "v"},
    {"name": "mn", "function": "min", "field": "v"},
    {"name": "mx", "function": "max", "field": "i"},
    {"name": "fst", "function": "first", "field": "v"},
    {"name": "lst", "function": "last", "field": "k"},
    {"name": "va", "function": "variance", "field": "v"},
    {"name": "sd", "function": "stddev", "field": "i"},
    {"name": "share", "function": "avg", "field": "big"},
    {"name": "p90", "function": "quantile", "field": "v", "q": 0.9},
    {"name": "low", "function": "quantile", "field": "v", "q": 0.01},
    {"name": "uk", "function": "distinct", "field": "k"},
    {"name": "ui", "function": "distinct", "field": "i"},
    {"name": "tk", "function": "topk", "field": "k"},
    {"name": "ti", "function": "topk", "field": "i", "k": 3},
    {"name": "tb", "function": "topk", "field": "big"},
]
SPEC = PipelineSpec.model_validate(
    {
        "source": {
            "topic": {"partitions": 3},
            "fields": [
                {"name": "ts", "type": "timestamp", "required": True},
                {"name": "k", "type": "string"},
                {"name": "v", "type": "number"},
                {"name": "i", "type": "integer"},
            ],
            "eventTime": {"field": "ts"},
        },
        "transform": {"filter": "i IS NULL OR i <> 13", "derive": [{"name": "big", "expression": "v > 5"}]},
        "aggregations": [
            {"name": "tumbling", "groupBy": ["k"], "window": {"type": "tumbling", "size": "1m"}, "metrics": METRICS},
            {
                "name": "hopping",
                "groupBy": ["k"],
                "window": {"type": "hopping", "size": "3m", "hop": "1m"},
                "metrics": METRICS,
            },
            {
                "name": "total",
                "window": {"type": "hopping", "size": "2m", "hop": "1m"},
                "latePolicy": "drop",
                "metrics": METRICS,
            },
            {
                "name": "visits",
                "groupBy": ["k", "i"],
                "window": {"type": "session", "gap": "25s", "maxLength": "2m"},
                "metrics": METRICS,
            },
            {
                "name": "bursts",
                "window": {"type": "session", "gap": "2s"},
                "latePolicy": "drop",
                "metrics": METRICS,
            },
            {
                "name": "again",
                "groupBy": ["k"],
                "window": {"type": "hopping", "size": "2m", "hop": "1m"},
                "latePolicy": "reopen",
                "retention": "3m",
                "metrics": METRICS,
            },
            {
                "name": "revisits",
                "groupBy": ["k"],
                "window": {"type": "session", "gap": "20s"},
                "latePolicy": "reopen",
                "retention": "3m",
                "metrics": METRICS,
            },
        ],
    }
)
CONFIG = PipelineConfig(
    namespace="tests", name="exactness", generation=1, spec=SPEC,
    aggregations=tuple(AggregationRef(name=a.name) for a in SPEC.aggregations),
)  # fmt: skip
WINDOWS = {
    "tumbling": (60_000, 60_000, True),
    "hopping": (180_000, 60_000, True),
    "total": (120_000, 60_000, False),
    "again": (120_000, 60_000, True),
}
"""Size and hop in milliseconds, and whether `k` is the group, of tumbling and hopping windows."""
SESSIONS = {
    "visits": (25_000, 120_000, ("k", "i")),
    "bursts": (2_000, 86_400_000, ()),
    "revisits": (20_000, 86_400_000, ("k",)),
}
"""Gap and maximum length in milliseconds, and the group columns, of session windows."""
REOPEN = {"again": 180_000, "revisits": 180_000}
"""The time in milliseconds after which a closed window is no longer reopened."""
NAMES = (*WINDOWS, *SESSIONS)


@dataclass(frozen=True)
class Record(KafkaRecord):
    """A record of this pipeline with one event.

    Attributes:
        p: the partition.
        o: the offset, or the offset and the index in the array.
        members: the members of the event.
        us: the microseconds of the event's time after the full millisecond.
    """

    p: int
    o: Any
    members: dict[str, Any]
    us: int = 0

    def value(self) -> bytes:
        if not self.us:
            return json.dumps(self.members).encode()
        seconds, ms = divmod(self.members["ts"], 1000)
        text = f"{rfc3339_ms(seconds * 1000)[:-1]}.{ms:03}{self.us:03}9Z"
        return json.dumps({**self.members, "ts": text}).encode()


KEYS = ["a", "b", None, "", 'Ü,"\n\\N']


def draw_events(rnd: random.Random, number: int) -> dict[int, list[Record]]:
    """Return random events by partition, with few keys, many equal times and missing members.

    Some integers are at the limits of 64 bits. Half of the times are texts with fractions of a millisecond, some of
    which would be rounded up to the next millisecond.
    """
    logs: dict[int, list[Record]] = {0: [], 1: [], 2: []}
    for _ in range(number):
        members: dict[str, Any] = {"ts": BASE + rnd.randrange(0, 360) * 1_000, "k": rnd.choice(KEYS)}
        if rnd.random() < 0.8:
            members["v"] = round(rnd.uniform(-100, 100), 3)
        if rnd.random() < 0.8:
            members["i"] = rnd.choice([rnd.randint(-(2**63), 2**63 - 1), rnd.randint(-5, 5), 13, 2**63 - 1])
        p = rnd.randrange(3)
        logs[p].append(Record(p, len(logs[p]), members, rnd.choice([0, 0, rnd.randrange(1000), 999])))
    return logs


FIELDS = [field.model_copy(update={"path": f"items[].{field.name}"}) for field in SPEC.source.fields]
EXPLODED = SPEC.model_copy(update={"source": SPEC.source.model_copy(update={"fields": FIELDS})})


@dataclass(frozen=True)
class Array(KafkaRecord):
    """A record with events in an array. An event's `o` is the offset of the record and the index in the array."""

    p: int
    o: int
    elements: tuple[Record, ...]

    def value(self) -> bytes:
        return b'{"items": [%b]}' % b", ".join(event.value() for event in self.elements)


def in_arrays(logs: dict[int, list[Record]], rnd: random.Random) -> dict[int, list[Any]]:
    """Return the same events packed into records with 0, 1, 2 or up to 7 events."""
    packed: dict[int, list[Any]] = {p: [] for p in logs}
    for p, log in logs.items():
        while log:
            events, log = log[: (size := rnd.choice([0, 1, 2, 7]))], log[size:]
            offset = len(packed[p])
            packed[p].append(Array(p, offset, tuple(replace(event, o=(offset, n)) for n, event in enumerate(events))))
    return packed


def take(logs: dict[int, list[Record]], start: dict[int, int], size: int, rnd: random.Random) -> list[Record]:
    """Return at most `size` records from the start offsets on, with partitions mixed at random."""
    waiting = {p: log[start[p] : start[p] + size] for p, log in logs.items()}
    batch: list[Any] = []
    while any(waiting.values()) and len(batch) < size:
        p = rnd.choice([p for p, rest in waiting.items() if rest])
        batch.append(waiting[p].pop(0))
    return batch
