"""Tests of the batches that records are read into."""

from __future__ import annotations

import json
from dataclasses import dataclass

import pytest

from kafka_records import KafkaRecord
from tidemill_contract.functions.partials import build_layout, field_types
from tidemill_contract.resource.spec import PipelineSpec
from tidemill_contract.windows import decoders
from tidemill_processor.batches.reader import BatchReader
from tidemill_processor.merge.aggregate import aggregate

SPEC = PipelineSpec.model_validate(
    {
        "source": {"fields": [{"name": "ts", "type": "timestamp"}, {"name": "z", "type": "number"}]},
        "transform": {"derive": [{"name": "d", "expression": "z * -1"}]},
        "aggregations": [
            {
                "name": name,
                "groupBy": [name],
                "window": {"type": "tumbling", "size": "1h"},
                "metrics": [{"name": "n", "function": "count"}, {"name": "low", "function": "min", "field": "z"}],
            }
            for name in ("z", "d")
        ],
    }
)


@dataclass(frozen=True)
class Record(KafkaRecord):
    """A record with a number."""

    z: float | None
    o: int
    p: int = 0

    def value(self) -> bytes:
        return json.dumps({"ts": 1_770_000_000_000, "z": self.z}).encode()


@dataclass(frozen=True)
class Tagged(KafkaRecord):
    """A record with an array of strings."""

    tags: object
    o: int
    p: int = 0

    def value(self) -> bytes:
        return json.dumps({"ts": 1_770_000_000_000, "k": self.o % 2, "more": {"tags": self.tags}}).encode()


def test_metrics_of_an_array_count_each_of_its_strings() -> None:
    """Nulls and empty arrays count nothing. Arrays with other elements are dead letters."""
    fields = [{"name": "ts", "type": "timestamp"}, {"name": "k", "type": "integer"}]
    fields.append({"name": "tags", "type": "strings", "path": "more.tags"})
    metrics: list[dict[str, object]] = [{"name": "n", "function": "count"}]
    metrics += [{"name": name, "function": name, "field": "tags"} for name in ("topk", "distinct")]
    by_key = {"name": "a", "groupBy": ["k"], "window": {"type": "tumbling", "size": "1h"}, "metrics": metrics}
    spec = PipelineSpec.model_validate({"source": {"fields": fields}, "aggregations": [by_key]})
    sent = [["a", "b"], ["x"], ["a", None], [], None, ["x", "y"], ["a", "b", "b"], None, 5, [1], "a", ["c\0"]]
    batch = BatchReader(spec).read([Tagged(tags, o) for o, tags in enumerate(sent)], 1_770_000_000_000)
    assert [(letter.offset, letter.reason) for letter in batch.dead_letters] == [
        (8, "mistyped"), (9, "mistyped"), (10, "mistyped"), (11, "bad_string"),
    ]  # fmt: skip
    assert batch.dead_letters[1].detail is not None
    assert batch.dead_letters[1].detail.startswith(
        "tags: expected an array of strings, got array [1]; send an array of str"
    )
    layout = build_layout(spec.aggregations[0], field_types(spec, {}))
    rows = aggregate(batch.frame, layout, closed_until=None, epochs={0: 0}).rows.sort("k")
    read = decoders(layout)
    frequent = [
        [(item["value"], item["count"]) for item in read["topk"](stored) or []] for stored in rows["_frequent_tags"]
    ]
    assert frequent == [[("a", 3), ("b", 3)], [("x", 2), ("y", 1)]]
    assert [read["distinct"](stored) for stored in rows["_uniques_tags"]] == [2, 2]
    assert rows["_count"].to_list() == [4, 4]


@pytest.mark.parametrize("at", [-1, -(2**63) + 1_770_000_000_000])
def test_a_record_with_a_negative_timestamp_gets_the_current_time_as_arrival(
    at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Postgres would overflow when it subtracts the arrival from its clock."""
    monkeypatch.setattr(Record, "timestamp", lambda _: (1, at))
    arrived = BatchReader(SPEC).read([Record(0.0, 7)], 1_770_000_000_000).arrived
    assert arrived[0] > 1_770_000_000_000


def test_zeros_of_both_signs_are_one_group() -> None:
    records = [Record(z, offset) for offset, z in enumerate([-0.0, 0.0, None, 1.5])]
    frame = BatchReader(SPEC).read(records, 1_770_000_000_000).frame
    types = field_types(SPEC, {"d": "number"})
    for aggregation in SPEC.aggregations:
        rows = aggregate(frame, build_layout(aggregation, types), closed_until=None, epochs={}).rows
        groups = {repr(group): (count, repr(low)) for group, count, low in rows.select(
            aggregation.name, "_count", rows.columns[-1]
        ).rows()}  # fmt: skip
        other = "1.5" if aggregation.name == "z" else "-1.5"
        assert groups == {"0.0": (2, "0.0"), "None": (1, "None"), other: (1, "1.5")}
