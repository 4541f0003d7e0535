"""Tests of batches with Debezium envelopes: which records are events, filtered, or dead letters."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import pytest

from kafka_records import KafkaRecord
from tidemill_contract.resource.spec import PipelineSpec
from tidemill_processor.batches.reader import BatchReader

NOW = 1_770_000_000_000


@dataclass(frozen=True)
class Record(KafkaRecord):
    """A record. With the value None, it is a tombstone."""

    sent: Any
    o: int
    p: int = 0

    def value(self) -> bytes | None:  # type: ignore[override]
        return None if self.sent is None else json.dumps(self.sent).encode()


def reader(*, deletes: str, time: bool, where: str | None = None) -> BatchReader:
    fields = [{"name": "ts", "type": "timestamp"}, {"name": "k", "type": "string", "required": True}]
    metrics = [{"name": "n", "function": "count"}]
    aggregation = {
        "name": "a", "groupBy": ["k"], "window": {"type": "tumbling", "size": "1h"}, "metrics": metrics,
    }  # fmt: skip
    source = {
        "format": {"envelope": "debezium", "deletes": deletes},
        "fields": fields,
        "eventTime": {"field": "ts"} if time else {},
    }
    transform = {"filter": where} if where else {}
    spec = {"source": source, "transform": transform, "aggregations": [aggregation]}
    return BatchReader(PipelineSpec.model_validate(spec))


def row(key: str) -> dict[str, Any]:
    return {"ts": NOW, "k": key}


SENT = [
    {"op": "c", "after": row("a")},
    {"op": "d", "before": row("b"), "after": None},
    None,
    {"op": "u", "after": row("c")},
    {"op": "u", "after": {"ts": NOW}},
]


@pytest.mark.parametrize("time", [True, False])
@pytest.mark.parametrize(
    ("deletes", "kept", "filtered", "dead"),
    [
        ("ignore", ["a", "c"], 2, [(4, "missing_field")]),
        ("deadLetter", ["a", "c"], 0, [(1, "deleted"), (2, "deleted"), (4, "missing_field")]),
        ("event", ["a", "b", "c"], 1, [(4, "missing_field")]),
    ],
)
def test_every_record_is_an_event_filtered_or_a_dead_letter(
    deletes: str, kept: list[str], filtered: int, dead: list[Any], time: bool
) -> None:
    records = [Record(sent, offset) for offset, sent in enumerate(SENT)]
    batch = reader(deletes=deletes, time=time).read(records, NOW)
    assert batch.frame["k"].to_list() == kept
    assert batch.filtered == ({0: filtered} if filtered else {})
    assert [(letter.offset, letter.reason) for letter in batch.dead_letters] == dead
    assert (batch.consumed, batch.next_offsets) == ({0: 5}, {0: 5})
    assert batch.times.height == len(kept)


def test_ignored_deletes_and_events_that_the_filter_drops_are_counted_together() -> None:
    records = [Record(sent, offset) for offset, sent in enumerate(SENT[:4])]
    of = reader(deletes="ignore", time=True, where="k <> 'a'")
    batch = of.join([of.decode(records, NOW), of.decode([Record(SENT[1], 9, p=1)], NOW, 4)])
    assert batch.frame["k"].to_list() == ["c"]
    assert batch.filtered == {0: 3, 1: 1}
    assert batch.consumed == {0: 4, 1: 1}
