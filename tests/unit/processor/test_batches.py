"""What a batch of records is read as."""

from __future__ import annotations

import json
from dataclasses import dataclass

from kafka_records import KafkaRecord
from tidemill_contract.functions.partials import field_types, layout
from tidemill_contract.resource.spec import PipelineSpec
from tidemill_processor.batch import BatchReader
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
    """One number."""

    z: float | None
    o: int
    p: int = 0

    def value(self) -> bytes:
        return json.dumps({"ts": 1_770_000_000_000, "z": self.z}).encode()


def test_both_zeros_are_one_group_sent_or_derived() -> None:
    records = [Record(z, offset) for offset, z in enumerate([-0.0, 0.0, None, 1.5])]
    frame = BatchReader(SPEC).read(records, 1_770_000_000_000).frame
    types = field_types(SPEC, {"d": "number"})
    for aggregation in SPEC.aggregations:
        rows = aggregate(frame, layout(aggregation, types), closed_until=None, epochs={}).rows
        found = {repr(group): (count, repr(low)) for group, count, low in rows.select(
            aggregation.name, "_count", rows.columns[-1]
        ).rows()}  # fmt: skip
        other = "1.5" if aggregation.name == "z" else "-1.5"
        assert found == {"0.0": (2, "0.0"), "None": (1, "None"), other: (1, "1.5")}
