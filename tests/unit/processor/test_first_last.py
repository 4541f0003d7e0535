"""Tests of `first` and `last`: which event they choose, by the microsecond."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import polars as pl

from kafka_records import KafkaRecord
from tidemill_contract.expressions.compiler import derived_types
from tidemill_contract.functions.partials import build_layout, field_types
from tidemill_contract.resource.spec import PipelineSpec
from tidemill_processor.batches.batch import MICROS
from tidemill_processor.batches.reader import BatchReader
from tidemill_processor.merge.aggregate import aggregate

NOW = 1_795_800_000_000


@dataclass(frozen=True)
class Record(KafkaRecord):
    p: int
    o: int
    ts: str
    v: int

    def value(self) -> bytes:
        return f'{{"ts": {self.ts}, "v": {self.v}}}'.encode()


def spec(function: str) -> PipelineSpec:
    metric = {"name": "m", "function": function, "field": "v"}
    return PipelineSpec.model_validate(
        {
            "source": {
                "fields": [{"name": "ts", "type": "timestamp"}, {"name": "v", "type": "integer"}],
                "eventTime": {"field": "ts"},
            },
            "aggregations": [{"name": "a", "window": {"type": "tumbling", "size": "1m"}, "metrics": [metric]}],
        }
    )


def row(function: str, *records: Record) -> dict[str, Any]:
    pipeline = spec(function)
    frame = BatchReader(pipeline).read(records, NOW).frame
    layout = build_layout(pipeline.aggregations[0], field_types(pipeline, derived_types(pipeline)))
    (values,) = aggregate(frame, layout, closed_until=None, epochs={0: 3, 1: 3}).rows.rows(named=True)
    return values


RECORDS = (
    Record(0, 5, '"2026-11-27T10:00:00.1000019Z"', 1),
    Record(1, 0, '"2026-11-27T10:00:00.100001Z"', 2),
    Record(1, 1, '"2026-11-27T10:00:00.1009999999Z"', 3),
    Record(0, 6, "1795773600100", 4),
    Record(0, 7, '"2026-11-27T10:00:00.100999Z"', 5),
)


def test_events_are_ordered_by_microseconds_and_then_by_partition_and_offset() -> None:
    """A time in milliseconds has 0 microseconds. Digits after the microseconds are ignored."""
    first = row("first", *RECORDS)
    assert (first["_first_v"], first["_first_at_v"]) == (4, "{1795773600100,0,3,0,6}")
    last = row("last", *RECORDS)
    assert (last["_last_v"], last["_last_at_v"]) == (3, "{1795773600100,999,3,1,1}")


def test_batches_contain_microseconds_only_for_first_and_last() -> None:
    frame = BatchReader(spec("sum")).read(RECORDS, NOW).frame
    assert MICROS not in frame.columns
    assert BatchReader(spec("last")).read(RECORDS, NOW).frame.schema[MICROS] == pl.Int64
